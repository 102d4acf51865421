"""The report stage: gathers the cells of the grid, writes the rows, the pages and the figures."""

from __future__ import annotations

import itertools
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.data.origin import read_provenance
from gtl_lightning.data.split import SUMMARY
from gtl_lightning.errors import UserError
from gtl_lightning.files import digest, write_json
from gtl_lightning.records import Each, Row, Shape, read_list, read_record, read_records
from gtl_lightning.report import summarise, write_report
from gtl_lightning.report.differences import comparisons, other_methods
from gtl_lightning.sources import SOURCES
from gtl_lightning.stages.trace import traced
from gtl_lightning.workspace.costs import training_costs
from gtl_lightning.workspace.frozen import of_others
from gtl_lightning.workspace.options import SampleRequest
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import (
    ABLATION,
    CELLS,
    DATA,
    MODELS,
    REAL_TEXTS,
    REAL_VALUES,
    REPORTS,
    ROW,
    ROWS,
    SPLITS,
    Cell,
    log,
    read_samples,
    run_of,
    study,
    with_times,
)
from gtl_lightning.workspace.provenance import mixtures
from gtl_lightning.workspace.real import SHAPE
from gtl_lightning.workspace.sampler import Sampler

if TYPE_CHECKING:
    from gtl_lightning.workspace.tracking import Study

POINT: Shape = {"method": str, "fraction": (float, type(None)), "seed": int}
"""What every row of a cell says of where it belongs."""
TEXTS = frozenset({"verdict", "made_with", "trained_with", "source", "settings", "guidance_settings", "mlflow_run"})
ADVICE = Row({"fraction": float, "seed": int, "verdict": str, "sentence": str})
SHARED = ("source", "causal", "planner", "judge")
"""Folders of models/ that all cells share."""
SHOWN = ("mauve", "nelbo", "domain_score")
COSTS_SHOWN = ("trainable_parameters", "kept_bytes", "cost_seconds", "peak_bytes", "denoiser_passes", "ratio_passes")
COLUMNS = (*SHOWN, *COSTS_SHOWN)
"""Of a method and share, means over the seeds: what DVC, MLflow and curves.json are told."""
TRACED_TEXTS, TRACED_TOKENS = 3, 32
"""Texts whose making is shown, and how long they are at most: seconds of sampling, whatever the profile."""
DEMO_PROFILE, AFTER_DEMO = "demo", "make repro"
"""A profile whose results are for show, and the command that makes those that count."""


def make_report(params: Params) -> None:
    """reports/: transfer.json, differences.json, ablation.json, advisor.json, curves.json, metrics/, report.md,
    report.html, figures/.

    A cell of the grid without a result is shown as a hole, with its reason.
    """
    rows, holes = _rows(params)
    measured = read_record(REAL_VALUES, SHAPE)["measured"]
    ablation = with_times(ABLATION / ROWS, read_records(ABLATION / ROWS, Row({**POINT, "axis": str}, TEXTS)))
    advisor = [row for cell in _classifiers(params) for row in _advice(cell)]
    summary, provenance = read_record(SPLITS / "summary.json", SUMMARY), read_provenance(DATA)
    samples = _samples(params)
    tracked, demo = study(params), params.profile == DEMO_PROFILE
    write_json(REPORTS / "transfer.json", rows)
    write_json(REPORTS / "ablation.json", ablation)
    write_json(REPORTS / "advisor.json", advisor)
    write_json(REPORTS / "differences.json", [*comparisons(rows), *comparisons(rows, other_methods(rows))])
    written = write_report(
        REPORTS,
        transfer=rows,
        ablation=ablation,
        advisor=advisor,
        samples=samples,
        data_summary=summary,
        provenance=provenance,
        settings={
            "profile": params.profile,
            "methods": ["source", *params.sweep.methods],
            "fractions": list(params.sweep.fractions),
            "seeds": list(params.sweep.seeds),
            "repeats": list(params.sweep.repeats),
            "planner": params.sampling.planner,
            "positions_per_step": params.sampling.positions_per_step,
            "featurizer": measured["featurizer"],
            "samples": measured["samples"],
            "mauve_buckets": measured["mauve_buckets"],
        },
        notes=mixtures(rows),
        holes=holes,
        warnings=_warnings(params),
        made=_made(tracked, params.source.kind) | ({"runs": ""} if demo else {}),  # `make ui` shows the checkout's
        after_demo=AFTER_DEMO if demo else "",
        trajectory=trajectory(params),
    )
    means = {
        f"{row['method']}.{row['fraction'] if row['fraction'] is not None else 'all'}.{row['metric']}": row["mean"]
        for row in summarise(rows)
        if row["metric"] in COLUMNS
    }
    found = points(rows)
    _write_for_dvc(found)
    with tracked.parent() as run:
        run.log_metrics(means)
        for path in (written.markdown, written.html, *written.figures):
            run.log_file(path, "report")
    _track_curves(tracked, found)
    for sentence in written.answer:
        log.info("%s", sentence)
    log.info("report: %s (%d cells, %d holes)", written.html, len(rows), len(written.holes))


def points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every method and share, means over the seeds: method, fraction, examples, COLUMNS."""
    examples = {(row["method"], row["fraction"]): row["examples"] for row in rows}
    found: dict[tuple[str, float | None], dict[str, Any]] = {}
    for one in summarise(rows):
        if one["metric"] in COLUMNS:
            at = one["method"], one["fraction"]
            empty = {"method": at[0], "fraction": at[1], "examples": examples[at]}
            found.setdefault(at, empty)[one["metric"]] = one["mean"]
    return sorted(found.values(), key=lambda point: (point["method"], point["examples"]))


def _write_for_dvc(found: list[dict[str, Any]]) -> None:
    """reports/metrics/: a file a method and share, a row of `dvc metrics show`; curves.json: what `dvc plots` draws."""
    for point in found:
        name = point["method"] if point["fraction"] is None else f"{point['method']}-{point['fraction']}"
        columns = {key: point[key] for key in ("examples", *SHOWN) if key in point}
        write_json(REPORTS / "metrics" / f"{name}.json", columns)
    write_json(REPORTS / "curves.json", [point for point in found if point["fraction"] is not None])


def _track_curves(tracked: Study, found: list[dict[str, Any]]) -> None:
    """A run for each method whose steps are numbers of target examples, so that MLflow draws one against the other.

    Points of a run cannot be taken back: other points are another run, in place of the one that was there.
    """
    for method, group in itertools.groupby(found, key=lambda point: str(point["method"])):
        curve = list(group)
        tags = {"kind": "curve", "method": method}
        note = f"{method}: metrics against the number of target examples (the step), means over seeds."
        name, key = f"curve {method}", f"curve-{method}-{digest(curve)}"
        whole = tracked.runs({**tags, "key": key, "complete": True})
        tracked.discard(set(tracked.runs(tags)).difference(whole))
        if whole:
            continue
        with tracked.child("curve", name, key, {"method": method}, note) as run:
            for point in curve:
                run.log_metrics({metric: point[metric] for metric in COLUMNS if metric in point}, point["examples"])
            run.set_tags({"complete": True})


def _rows(params: Params) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, holes = [], []
    for cell in _grid(params):
        path = CELLS / cell.name / ROW
        if path.exists():
            row = read_record(path, Row(POINT, TEXTS, frozenset({"gamma_curve", "trials"})))
            rows.append({**row, **training_costs(cell), **run_of(path)})
        else:
            cause = f"{path} does not exist: its stage failed or has not run"
            holes.append({"method": cell.method, "fraction": cell.fraction, "seed": cell.seed, "cause": cause})
    return rows, holes


def _grid(params: Params) -> list[Cell]:
    sweep = params.sweep
    cells = [Cell(method, *point) for method in sweep.methods for point in sweep.points]
    return [Cell("source", None, seed) for seed in sweep.seeds] + cells


def _classifiers(params: Params) -> list[Cell]:
    return [Cell("classifier", *point) for point in params.sweep.points]


def _advice(cell: Cell) -> list[dict[str, Any]]:
    path = MODELS / cell.name / "advisor.json"
    return list(read_record(path, {"rows": Each(ADVICE)})["rows"]) if path.exists() else []


def _samples(params: Params) -> dict[float | None, dict[str, list[str]]]:
    """Of the first seed: share of the data -> method -> texts; target texts and the untouched source's under None."""
    sweep, found = params.sweep, {"real": read_list(REAL_TEXTS, str)}
    source = Cell("source", None, sweep.seeds[0])
    samples: dict[float | None, dict[str, list[str]]] = {None: found | _texts([source])}
    for fraction in sweep.fractions:
        samples[fraction] = _texts([Cell(method, fraction, sweep.seeds[0]) for method in sweep.methods])
    return {fraction: texts for fraction, texts in samples.items() if texts}


def _texts(cells: list[Cell]) -> dict[str, list[str]]:
    return {cell.method: read_samples(CELLS / cell.name) for cell in cells if (CELLS / cell.name / ROW).exists()}


def trajectory(params: Params) -> str | None:
    """How the ablation's cell writes, beside the unguided denoiser; None, and a line that says why, where it cannot."""
    cell = Cell(params.ablation.method, params.ablation.fraction, params.sweep.seeds[0])
    if not (CELLS / cell.name / ROW).exists():
        return None
    try:
        sampler = Sampler.open(params, cell)
    except UserError as error:  # the report gathers what was measured, whatever became of the networks since
        log.warning("the report does not show how a text came to be: %s", error)
        return None
    asked = SampleRequest(count=TRACED_TEXTS, length=min(TRACED_TOKENS, sampler.corpus.length))
    return traced(params, cell, asked, sampler)


def _warnings(params: Params) -> list[str]:
    """What the trainings of this grid warned of, each with the model that it is about."""
    folders = [*SHARED, *(cell.name for cell in [*_grid(params), *_classifiers(params)])]
    results = [path for name in folders for path in sorted((MODELS / name).glob("*.json"))]
    told = [(path, read_record(path, {"warning?": str}).get("warning")) for path in results]
    return [f"{path.parent.as_posix()}: {warning}" for path, warning in told if warning]


def _made(tracked: Study, source: str) -> dict[str, str]:
    """When, from what and by what the report was made, and where the runs are seen."""
    others = of_others()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": tracked.commit,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": ", ".join(
            [f"{name} {version(name)}" for name in ("gtl-lightning", "torch")] + [f"Python {platform.python_version()}"]
        ),
        "source denoiser": f"{SOURCES[source].help} {others}" if others else SOURCES[source].help,
        "runs": tracked.page,
    }
