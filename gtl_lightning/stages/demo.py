"""A first look: a small transfer from generated texts to its report, in one process and in a folder of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path

from gtl_lightning.data.sample import write_sample
from gtl_lightning.files import make_folder
from gtl_lightning.report import DEMO
from gtl_lightning.stages.data import split, tokenize
from gtl_lightning.stages.evaluate import ablation, evaluate_cell
from gtl_lightning.stages.real import measure_real
from gtl_lightning.stages.report import AFTER_DEMO, make_report
from gtl_lightning.stages.train import train_causal, train_cell, train_classifier, train_judge, train_source
from gtl_lightning.workspace.browser import show
from gtl_lightning.workspace.params import Params, write_params
from gtl_lightning.workspace.paths import DATA, REPORTS, log

FOLDER = Path(".demo")
RECORDS = {"source_records": 4000, "target_records": 3000}
FOLLOWING = (
    f"next: {AFTER_DEMO}   the comparison itself, on the generated sample: reports/report.html",
    "  or: gtl data import --source a.jsonl --target b.jsonl && gtl sweep   on texts of your own",
)


def run_demo(params: Params, records: dict[str, int] = RECORDS) -> Path:
    """.demo/, made anew: data, models, cells and a report that says what it is. Nothing else is written.

    Args:
        params: of the profile `demo`, by which the report knows it.
        records: how many texts are generated, as `write_sample` takes them.

    Returns:
        The page.
    """
    _say(DEMO)
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    make_folder(FOLDER)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the runs belong into the folder too
    with chdir(FOLDER):
        write_params(params)
        steps = _steps(params, records)
        for number, (what, run) in enumerate(steps, 1):
            log.info("[%d of %d] %s", number, len(steps), what)
            run()
        page = (REPORTS / "report.html").resolve()
    _say(DEMO)
    log.info("report: %s%s", page, " (opened in the browser)" if show(page.as_uri()) else "")
    for line in FOLLOWING:
        log.info("%s", line)
    return page


def _steps(params: Params, records: dict[str, int]) -> list[tuple[str, Callable[[], object]]]:
    """What the pipeline does, in its order: (words, what is run)."""
    sweep = params.sweep
    points = sweep.points
    cells = [(method, *point) for point in points for method in sweep.methods]

    def cell(method: str, fraction: float, seed: int) -> None:
        train_cell(params, method, fraction, seed)
        evaluate_cell(params, method, fraction, seed)

    return [
        ("two domains of generated texts", partial(write_sample, DATA, seed=0, **records)),
        ("disjoint splits", partial(split, params)),
        ("tokens", partial(tokenize, params)),
        ("the causal model, where the source denoiser starts from one", partial(train_causal, params)),
        ("the source denoiser, which all that follows starts from", partial(train_source, params)),
        ("judge and reference model", partial(train_judge, params)),
        ("what real target texts measure", partial(measure_real, params)),
        *((f"domain classifiers at {100 * f:g} %", partial(train_classifier, params, f, s)) for f, s in points),
        *((f"the untouched source, seed {s}", partial(evaluate_cell, params, "source", None, s)) for s in sweep.seeds),
        *((f"{m} at {100 * f:g} %: train, sample, measure", partial(cell, m, f, s)) for m, f, s in cells),
        ("the ratio at other strengths", partial(ablation, params, sweep.seeds[0])),
        ("the report", partial(make_report, params)),
    ]  # fmt: skip


def _say(sentence: str) -> None:
    for line in ("=" * len(sentence), sentence, "=" * len(sentence)):
        log.info("%s", line)
