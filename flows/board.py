"""What people see, as Prefect artifacts: a table kept up to date while the flow runs, and a report at its end."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger

from flows.grid import Stage
from flows.outcome import BAD, GOOD, Outcome, Progress, count_outcomes
from gtl_lightning.errors import UserError
from gtl_lightning.records import read_record

REFRESH_SECONDS = 15.0  # durations of running stages are brought up to date this often
FIGURE = Path("reports/figures/headline.svg")
FIGURE_BYTES = 500_000  # larger figures are left out of the artifact


class Board:
    """The tables of one flow run.

    Args:
        key: of the artifacts; their history is found under it.
        stages: of this run, in order.
        root: the repository.
        tracking_uri: where MLflow is, for links.
    """

    def __init__(self, key: str, stages: list[Stage], root: Path, tracking_uri: str) -> None:
        self._key = key
        self._stages = stages
        self._root = root
        self._link = run_link(tracking_uri)
        self._artifact: UUID | None = None
        self._shown: list[tuple[str, Progress]] = []
        self._shown_at = 0.0

    def show(self, outcomes: Mapping[str, Outcome]) -> None:
        """Bring the table artifact up to date if a state has changed, or durations have grown."""
        states = [(address, outcome.state) for address, outcome in outcomes.items()]
        running = any(outcome.state == "running" for outcome in outcomes.values())
        if states == self._shown and not (running and time.monotonic() - self._shown_at > REFRESH_SECONDS):
            return
        self._shown, self._shown_at = states, time.monotonic()
        rows = self.rows(outcomes)
        title = count_outcomes(outcomes.values())
        try:
            if self._artifact is None:
                self._artifact = _create_table(rows, f"{self._key}-progress", title)
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(self._artifact, ArtifactUpdate(data=json.dumps(rows), description=title))
        except httpx.HTTPError as error:
            self._warn(error)

    def finish(self, outcomes: Mapping[str, Outcome]) -> None:
        """Publish the report artifact."""
        try:
            create_markdown_artifact(self.report(outcomes), key=f"{self._key}-report")
        except httpx.HTTPError as error:
            self._warn(error)

    def rows(self, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
        """One row per stage: state, duration, and what the cell came to."""
        rows = []
        for stage in self._stages:
            outcome = outcomes[stage.address]
            result = self._result(stage) if outcome.state in GOOD else {}
            run = result.get("mlflow_run")
            rows.append(
                {
                    "stage": stage.label,
                    "state": outcome.state,
                    "duration": "" if outcome.seconds is None else f"{outcome.seconds:.0f} s",
                    "test NELBO": _number(result.get("nelbo")),
                    "MAUVE": _number(result.get("mauve")),
                    "MLflow run": self._link(run) if run else "",
                    "reason": outcome.reason,
                }
            )
        return rows

    def report(self, outcomes: Mapping[str, Outcome]) -> str:
        """Markdown: how many stages did what, the results, the holes with their reasons, the figure."""
        rows = self.rows(outcomes)
        parts = [f"# {self._key}: {count_outcomes(outcomes.values())}"]
        if all(outcome.state == "cached" for outcome in outcomes.values()):
            parts.append("Everything was up to date; nothing was run.")
        results = [row for stage, row in zip(self._stages, rows, strict=True) if stage.row is not None]
        if results:
            parts += ["## Cells", _table(results, ("stage", "state", "test NELBO", "MAUVE", "MLflow run"))]
        holes = [row for row in rows if row["state"] in BAD]
        if holes:
            parts += ["## Holes", _table(holes, ("stage", "state", "reason"))]
        figure = self._root / FIGURE
        made_here = any(str(FIGURE).startswith(f"{out}/") for stage in self._stages for out in stage.outs)
        if made_here and not holes and figure.is_file() and figure.stat().st_size <= FIGURE_BYTES:
            image = base64.b64encode(figure.read_bytes()).decode()
            parts += ["## Transfer by fraction", f"![quality by fraction](data:image/svg+xml;base64,{image})"]
        return "\n\n".join(parts) + "\n"

    def _result(self, stage: Stage) -> dict[str, Any]:
        if stage.row is None:
            return {}
        try:
            return read_record(self._root / stage.row)
        except UserError:
            return {}

    def _warn(self, error: Exception) -> None:
        # The sweep itself does not depend on its tables.
        get_run_logger().warning("the progress table could not be brought up to date: %s", error)


def run_link(tracking_uri: str) -> Callable[[str], str]:
    """Run id -> Markdown link to its MLflow page, without credentials; the bare id when there is no server."""
    address = urlsplit(tracking_uri)
    if address.scheme not in ("http", "https"):
        return lambda run_id: run_id
    host = f"{address.hostname}:{address.port}" if address.port else address.hostname
    base = f"{address.scheme}://{host}{address.path.rstrip('/')}"
    return lambda run_id: f"[{run_id[:8]}]({base}/#/runs/{run_id})"


def _create_table(rows: list[dict[str, Any]], key: str, title: str) -> UUID:
    made = create_table_artifact(rows, key=key, description=title)
    assert isinstance(made, UUID)  # outside of an event loop
    return made


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]).replace("|", "\\|") for column in columns) + " |" for row in rows]
    return "\n".join(lines)
