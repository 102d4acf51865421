"""Which stages may still run when another has failed."""

from __future__ import annotations

from pathlib import Path

from flows.grid import Stage
from flows.runner import SKIPPED_NAMED, Limits, Outcome, _Run, unmade

CELL = Stage("cell", outs=("cells/a",))
REPORT = Stage("report", needs=("cell",), gathers=("cell",))
AFTER = Stage("after", needs=("report",))


def skipped(root: Path, **states: str) -> dict[str, str]:
    """Address -> reason of what is skipped, when stages are in these states."""
    stages = {stage.address: stage for stage in (CELL, REPORT, AFTER)}
    outcomes = {address: Outcome(states.get(address, "waiting")) for address in stages}  # type: ignore[arg-type]
    run = _Run(stages, root, Limits(1, None, None), outcomes)
    run.skip_hopeless()
    return {address: outcome.reason for address, outcome in outcomes.items() if outcome.state == "skipped"}


def test_what_gathers_goes_on_without_a_stage_that_left_nothing(tmp_path: Path) -> None:
    assert skipped(tmp_path, cell="failed") == {}


def test_what_gathers_is_skipped_where_an_old_result_stands_in_for_a_failed_one(tmp_path: Path) -> None:
    (tmp_path / "cells" / "a").mkdir(parents=True)
    old = "cell failed, and the result that it left is of an earlier run"
    assert skipped(tmp_path, cell="failed") == {"report": old, "after": "needs report, which was skipped"}
    assert skipped(tmp_path, cell="ran") == {}


def test_what_reads_a_failed_stage_is_skipped_with_its_name(tmp_path: Path) -> None:
    assert skipped(tmp_path, report="failed") == {"after": "needs report, which failed"}


def test_the_end_of_a_sweep_names_what_failed_and_counts_what_could_not_run() -> None:
    cells = {f"cell{number}": Outcome("skipped", reason="needs source, which failed") for number in range(50)}
    lines = unmade({"split": Outcome("ran"), **cells, "source": Outcome("failed", reason="no memory")})
    assert lines[0] == "source: no memory"
    assert lines[1:-1] == [f"cell{number}: needs source, which failed" for number in range(SKIPPED_NAMED)]
    assert lines[-1] == f"{50 - SKIPPED_NAMED} more were skipped"
    assert unmade({"split": Outcome("ran"), "source": Outcome("cached")}) == []
