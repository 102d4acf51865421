"""SIGKILL of worker, flow, stage, server or of everything in mid sweep: the sweep ends as if nothing had happened.

A stage and everything once each, by `make test-slow` the other parts; `--kills 10 -m ""` ten times, at other moments.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.pipeline.lab import CELLS, STEPS, Lab, kill, wait_until

PARTS = ("worker", "flow", "server")  # of what "everything" kills
KEPT_UP = ("stage", "server")  # the flow survives these; after the others its run has to be brought back
LATEST_SECONDS = 4.0  # after the first cell is trained
PATIENCE_SECONDS = 250.0  # a machine that does other things beside is slow; nothing here waits for its own sake


@dataclass(frozen=True)
class Expected:
    """What an undisturbed sweep comes to."""

    results: dict[str, Any]
    tracked: dict[str, Any]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="module")
def undisturbed(lab: Lab) -> Expected:
    lab.begin("undisturbed")
    run = lab.wait_for_end(lab.run_sweep(), PATIENCE_SECONDS)
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert lab.events("train") == dict.fromkeys(("source", *CELLS), 1)
    assert lab.events("step") == dict.fromkeys(("source", *CELLS), STEPS)
    return Expected(lab.results(), lab.tracked("undisturbed"))


@pytest.mark.parametrize(
    "what", [*(pytest.param(name, marks=pytest.mark.slow) for name in PARTS), "stage", "everything"]
)
def test_killed_in_mid_sweep(lab: Lab, undisturbed: Expected, what: str, kill_round: int) -> None:
    experiment = f"{what}-{kill_round}"
    lab.begin(experiment)
    run = lab.run_sweep()
    wait_until(lambda: any(stage.startswith("ratio") for stage in lab.finished()), PATIENCE_SECONDS)
    time.sleep(random.Random(experiment).uniform(0, LATEST_SECONDS))
    done = {stage.partition("@")[2] or stage for stage in lab.finished() if not stage.startswith("evaluate")}
    assert "report" not in done, "the sweep was over before it was killed"

    if what == "worker":
        kill(lab.service("worker"))
    elif what == "flow":
        kill(lab.process_of(run))
    elif what == "stage":
        kill(*lab.groups())
    elif what == "server":
        kill(lab.service("server"))
        wait_until(lab.is_up, PATIENCE_SECONDS)
    else:
        lab.kill_all()
        lab.start()

    if what in KEPT_UP:
        # A run that is alive is none of its business.
        assert "0 brought back" in lab.command("-m", "flows.cli", "reconcile")
    else:
        wait_until(lambda: not lab.is_alive(run), 60)
        assert "1 brought back" in lab.command("-m", "flows.cli", "reconcile")

    ended = lab.wait_for_end(run, PATIENCE_SECONDS)
    assert ended.state is not None
    assert ended.state.is_completed(), ended.state.message
    assert ended.run_count == (1 if what in KEPT_UP else 2)
    # What was finished is not trained again; what was interrupted goes on, its last step repeated at most.
    for name, steps in lab.events("step").items():
        assert STEPS <= steps <= (STEPS if name in done else STEPS + 1), name
    assert lab.results() == undisturbed.results
    assert lab.tracked(experiment) == undisturbed.tracked
    for name in ("source", *CELLS):
        assert lab.history(experiment, f"train-{name}") == list(range(STEPS)), name
