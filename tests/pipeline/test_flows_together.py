"""Several processes at work in one checkout, and what killed ones leave in DVC's locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.grid import read_grid
from flows.group import stop_groups
from flows.lockfile import RWLOCK, holders, mend_rwlock, wait_until_free
from flows.stage import StageError, check_address, reproduce
from gtl_lightning.workspace.params import load_params
from tests.pipeline.flow_kit import PARAMS, runs

REPOSITORY = Path(__file__).parents[2]
ONCE = sorted(["source", "vanilla-0.05-0", "gtl-0.05-0"])


def claim(project: Path, path: Path, pid: int, kind: str = "write") -> None:
    info = {"pid": pid, "cmd": "dvc repro"}
    (project / RWLOCK).write_text(json.dumps({kind: {str(path): info if kind == "write" else [info]}}))


@contextmanager
def zombie() -> Iterator[int]:
    """A process that has ended and that nobody has buried."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        _wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        yield pid
    finally:
        os.waitpid(pid, 0)


@pytest.mark.usefixtures("server")
def test_two_sweeps_in_one_checkout_both_end_and_everything_is_made_once(project: Path) -> None:
    from prefect.settings import PREFECT_API_URL

    held = "gtl-0.05-0"
    (project / "params.yaml").write_text(PARAMS.replace("[1.0, 0.05]", "[0.05]"))
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(REPOSITORY)}
    (project / f"hold-{held}").touch()

    def sweep(name: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = project / f"{name}.log"
        with open(log, "wb") as out:
            command = [sys.executable, "-m", "flows.cli", "sweep"]
            return subprocess.Popen(command, cwd=project, env=environment, stdout=out, stderr=out), log

    attempts = project / "attempts.log"
    first, first_log = sweep("first")
    _wait_until(lambda: attempts.exists() and held in attempts.read_text().split(), 90)
    second, second_log = sweep("second")
    _wait_until(lambda: "waiting for" in second_log.read_text() or second.poll() is not None, 90)
    (project / f"hold-{held}").unlink()
    assert (first.wait(120), second.wait(120)) == (0, 0), first_log.read_text() + second_log.read_text()
    said = [line for line in second_log.read_text().splitlines() if "waiting for" in line]
    assert said and f"models/{held}" in said[0] and "which process" in said[0]
    assert runs(project) == ONCE == sorted(attempts.read_text().split())
    assert not read_grid(load_params(), project).dirty


@pytest.mark.usefixtures("silent")
def test_a_stage_that_another_process_makes_is_waited_for_and_its_result_taken(project: Path) -> None:
    (project / "hold-source").touch()
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "--quiet", "source"], cwd=project)
    _wait_until((project / "attempts.log").exists, 60)
    threading.Timer(2.0, (project / "hold-source").unlink).start()
    assert reproduce("source", project, owner="waits") == "cached"
    assert other.wait(30) == 0
    assert runs(project) == ["source"]


@pytest.mark.usefixtures("silent")
def test_a_holder_that_is_killed_leaves_the_stage_to_the_one_that_waits(project: Path) -> None:
    (project / "hold-source").touch()
    command = [sys.executable, "-m", "dvc", "repro", "--quiet", "source"]
    other = subprocess.Popen(command, cwd=project, start_new_session=True)
    _wait_until((project / "attempts.log").exists, 60)

    def kill() -> None:
        os.killpg(other.pid, signal.SIGKILL)  # and nobody buries it
        (project / "hold-source").unlink()

    threading.Timer(2.0, kill).start()
    assert reproduce("source", project, owner="inherits") == "ran"
    other.wait(30)
    assert runs(project) == ["source"]


@pytest.mark.usefixtures("silent")
def test_a_flow_that_is_stopped_does_not_go_on_waiting(project: Path) -> None:
    claim(project, project / "models" / "source", os.getpid())
    threading.Timer(4.0, stop_groups, ["stopped-waiting"]).start()
    begun = time.monotonic()
    with pytest.raises(StageError, match="stopped with its flow") as failure:
        reproduce("source", project, owner="stopped-waiting")
    assert time.monotonic() - begun < 60
    assert not failure.value.retriable
    assert not runs(project)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"write": 5}', '{"write": {"x": {"pid": "1", "cmd": ""}}}'])
def test_half_an_rwlock_costs_no_run(project: Path, content: str) -> None:
    (project / RWLOCK).write_text(content)
    with pytest.raises(StageError, match="rwlock") as failure:
        reproduce("source", project, owner="one")
    assert failure.value.retriable
    assert reproduce("source", project, owner="one") == "ran"


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("kind", ["write", "read"])
def test_a_killed_process_that_nobody_buried_holds_nothing(project: Path, kind: str) -> None:
    with zombie() as pid:
        claim(project, project / "models" / "source", pid, kind)
        assert reproduce("source", project, owner="one") == "ran"


def test_who_holds_a_path_is_whoever_holds_it_a_part_of_it_or_what_is_around_it(project: Path) -> None:
    mine = os.getpid()
    for kind in ("write", "read"):
        claim(project, project / "models", mine, kind)
        assert holders(project, str(project / "models" / "source")) == [mine]
        assert holders(project, str(project)) == [mine]
        assert holders(project, str(project / "cells")) == []
        assert holders(project, str(project / "models-of-another")) == []
    with zombie() as pid:
        claim(project, project / "models", pid)
        assert holders(project, str(project / "models")) == []


def test_claims_of_the_living_are_kept(project: Path) -> None:
    claim(project, project / "models", os.getpid())
    before = (project / RWLOCK).read_text()
    assert not mend_rwlock(project)
    assert (project / RWLOCK).read_text() == before
    with zombie() as pid:
        content = json.loads(before)
        content["read"] = {"a": [{"pid": pid, "cmd": "x"}, {"pid": os.getpid(), "cmd": "y"}], "b": content["write"]}
        content["read"]["b"] = [{"pid": pid, "cmd": "x"}]
        (project / RWLOCK).write_text(json.dumps(content))
        assert mend_rwlock(project)
    kept = json.loads((project / RWLOCK).read_text())
    assert kept == {**json.loads(before), "read": {"a": [{"pid": os.getpid(), "cmd": "y"}]}}


def test_waiting_says_whom_for_once_and_ends_when_the_path_is_free(project: Path) -> None:
    said: list[str] = []
    path = project / "models"
    assert wait_until_free(project, str(path), said.append, lambda: False)
    assert said == []
    claim(project, path, os.getpid())
    asked = iter([False, False, True])
    assert not wait_until_free(project, str(path), said.append, lambda: next(asked))
    (line,) = said
    assert str(os.getpid()) in line and str(path) in line and "\n" not in line


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    "stage",
    [
        "--force",
        "-f",
        "",
        "../x/dvc.yaml:a",
        "x/dvc.yaml:a",
        "gtl_lightning/studies/../dvc.yaml:a",
        "a b",
        "a;b",
        "a@b/c",
        "source\n",
        "a@",
        "..",
    ],
)
def test_what_is_no_address_of_a_stage_never_reaches_dvc(project: Path, stage: str) -> None:
    with pytest.raises(StageError, match="no address of a stage") as failure:
        reproduce(stage, project, owner="one")
    assert not failure.value.retriable
    assert not (project / "attempts.log").exists()


@pytest.mark.parametrize(
    "stage",
    [
        "data.dvc",
        "source",
        "baseline@finetune-0.05-0",
        "classifier@1e-05-12",
        "a_b@gtl",
        "gtl_lightning/studies/markov/dvc.yaml:markov-cells@0",
    ],
)
def test_addresses_of_stages_are_taken(stage: str) -> None:
    check_address(stage)


def _wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
