"""Pages of MLflow: where a server shows a run, an experiment, and the comparisons that a study is made for.

MLflow shows runs as a tree while they are sorted by date; sorted by a metric they are a flat list, which is what a
comparison needs. Columns are part of a shared view, which is a tag of the experiment.
"""

from __future__ import annotations

import json
from urllib.parse import quote

from gtl_lightning.workspace.addresses import has_server, without_credentials

LOCAL = "http://127.0.0.1:5000"
"""Of `make ui`."""
CELLS = "tags.kind = 'cell'"
CURVES = "tags.kind = 'curve'"
BY_NELBO = {"orderByKey": "metrics.`nelbo`", "orderByAsc": True}
COLUMNS = [f"params.`{name}`" for name in ("method", "fraction", "seed", "gamma")]
COLUMNS += [f"metrics.`{name}`" for name in ("nelbo", "mauve", "domain_score")]
SHARED = "cells"
VIEW = {f"mlflow.sharedViewState.{SHARED}": json.dumps({"searchFilter": CELLS, **BY_NELBO, "selectedColumns": COLUMNS})}
"""Tag of an experiment: the cells, the lowest NELBO first, in few columns."""


def page(uri: str, place: str) -> str | None:
    """The address of a page of a tracking server, without credentials; None for a database, which has no pages."""
    return f"{without_credentials(uri).rstrip('/')}/{place}" if has_server(uri) else None


def shown_at(uri: str, place: str) -> str:
    """The address of a page, a database's where `make ui` serves it."""
    return page(uri, place) or f"{LOCAL}/{place}"


def run_place(run_id: str) -> str:
    """Where a server shows a run."""
    return f"#/runs/{run_id}"


def experiment_place(experiment_id: str) -> str:
    """Where a server shows an experiment's runs. Without the last part it shows the traces of an agent."""
    return f"#/experiments/{experiment_id}?workflowType=machine_learning"


def comparisons(experiment_id: str) -> dict[str, str]:
    """What is compared -> where a server shows that."""

    def runs(query: str) -> str:
        return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&{query}"

    order = f"orderByKey={quote('metrics.`nelbo`')}&orderByAsc=true"
    return {
        "cells by NELBO": runs(f"viewStateShareKey={SHARED}"),
        "metrics against examples": runs(f"{order}&searchFilter={quote(CURVES)}&compareRunsMode=CHART"),
        "texts side by side": runs(f"{order}&searchFilter={quote(CELLS)}&compareRunsMode=ARTIFACT"),
    }
