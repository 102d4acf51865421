"""A first look: a small transfer from generated texts to its report, in one process and in a folder of its own."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from gtl_lightning.data.sample import write_sample
from gtl_lightning.files import make_folder
from gtl_lightning.report import DEMO
from gtl_lightning.stages.report import AFTER_DEMO
from gtl_lightning.stages.whole import whole, working_in
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
    with working_in(FOLDER):
        write_params(params)
        steps = whole(params, ("two domains of generated texts", partial(write_sample, DATA, seed=0, **records)))
        for number, (what, run) in enumerate(steps, 1):
            log.info("[%d of %d] %s", number, len(steps), what)
            run()
        page = (REPORTS / "report.html").resolve()
    _say(DEMO)
    log.info("report: %s%s", page, " (opened in the browser)" if show(page.as_uri()) else "")
    for line in FOLLOWING:
        log.info("%s", line)
    return page


def _say(sentence: str) -> None:
    for line in ("=" * len(sentence), sentence, "=" * len(sentence)):
        log.info("%s", line)
