"""The flows on a tiny DVC project of shell commands: one Prefect server for all tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import ParameterTypeError, SignatureMismatchError

from flows.flows import ablation, pipeline, scarcity_sweep, stage
from flows.group import stop_groups
from flows.runner import REFRESH_SECONDS
from flows.stage import StageError, reproduce
from gtl_lightning.files import write_text
from tests.pipeline.flow_kit import PARAMS, runs

REPOSITORY = Path(__file__).parents[2]


def artifact(key: str) -> Any:
    with get_client(sync_client=True) as client:
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
        from prefect.client.schemas.sorting import ArtifactSort

        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])), sort=ArtifactSort.CREATED_DESC
        )
    return found[0]


# --- one stage, no server


@pytest.mark.usefixtures("silent")
def test_a_stage_runs_once_and_is_then_cached(project: Path) -> None:
    assert reproduce("source", project, owner="one") == "ran"
    assert reproduce("source", project, owner="one") == "cached"
    assert reproduce("ratio@gtl-1.0-0", project, owner="one") == "ran"
    (project / "models/gtl-1.0-0").unlink()
    assert reproduce("ratio@gtl-1.0-0", project, owner="one") == "cached"
    assert (project / "models/gtl-1.0-0").read_text() == "gtl-1.0-0\n"
    assert runs(project) == ["gtl-1.0-0", "source"]


@pytest.mark.usefixtures("silent")
def test_stopping_reaches_the_command_below_dvc_and_leaves_no_lock(project: Path) -> None:
    (project / "slow-source").touch()

    def stop_when_it_runs() -> None:
        _wait_until((project / "pid").exists)
        stop_groups("two")

    thread = threading.Thread(target=stop_when_it_runs)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(StageError, match="stopped with its flow"):
        reproduce("source", project, owner="two")
    thread.join()
    assert time.monotonic() - begun < 10
    assert (project / "tidy").exists()
    (project / "slow-source").unlink()
    assert reproduce("source", project, owner="three") == "ran"


@pytest.mark.usefixtures("silent")
def test_a_full_disk_is_one_clear_line_and_not_tried_again(project: Path) -> None:
    (project / "full-source").touch()
    with pytest.raises(StageError, match="the disk is full") as failure:
        reproduce("source", project, owner="one")
    assert not failure.value.retriable
    (project / "full-source").unlink()
    assert reproduce("source", project, owner="one") == "ran"


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("size", [0, 25, 100])
def test_a_lock_file_that_a_kill_left_half_written_costs_no_run(project: Path, size: int) -> None:
    assert reproduce("source", project, owner="one") == "ran"
    assert reproduce("ratio@gtl-1.0-0", project, owner="one") == "ran"
    lock = project / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:size])
    with pytest.raises(StageError, match="half-written") as failure:
        reproduce("source", project, owner="one")
    assert failure.value.retriable
    assert reproduce("source", project, owner="one") == "cached"
    assert reproduce("ratio@gtl-1.0-0", project, owner="one") == "cached"
    assert runs(project) == ["gtl-1.0-0", "source"]


# --- flows


@pytest.mark.usefixtures("server")
def test_a_sweep_whose_inputs_are_edited_ends_failed_and_says_what_was_edited(project: Path) -> None:
    def swept(fraction: float, edited: str, text: str) -> str:
        hold = project / f"hold-gtl-{fraction}-0"
        hold.touch()

        def edit() -> None:
            log = project / "attempts.log"
            _wait_until(lambda: log.exists() and f"gtl-{fraction}-0" in log.read_text(), 60)
            write_text(project / edited, text)
            time.sleep(2 * REFRESH_SECONDS)
            hold.unlink()

        thread = threading.Thread(target=edit)
        thread.start()
        ended = scarcity_sweep(methods=["gtl"], fractions=[fraction], return_state=True)
        thread.join()
        assert ended.is_failed()
        assert ended.message is not None
        return ended.message

    # A parameter, whatever it is for: what was running ends, nothing more begins.
    said = swept(1.0, "params.yaml", PARAMS + "bench: {rounds: 3}\n")
    assert said.startswith("3 ran, 1 skipped. params.yaml was edited while the sweep ran (bench: unset -> ")
    assert said.endswith("; what has run is kept; start the sweep again")
    write_text(project / "params.yaml", PARAMS)

    # A file of which an earlier stage was made: what came later is of what it had left.
    said = swept(0.05, "train.sh", (project / "train.sh").read_text() + "# edited\n")
    assert "source: what it was made of was edited while the sweep ran" in said
    assert scarcity_sweep(methods=["gtl"], return_state=True).is_completed()


@pytest.mark.usefixtures("server")
def test_a_sweep_in_parts_with_a_failure_mended_and_with_nothing_to_do(project: Path) -> None:
    # a part of the grid: that part, no report, the file of parameters untouched
    part = scarcity_sweep(methods=["gtl"], fractions=[0.05], return_state=True)
    assert part.message == "4 ran"
    assert runs(project) == ["gtl-0.05-0", "source"]
    assert not (project / "reports").exists()
    assert (project / "params.yaml").read_text() == PARAMS

    # the whole grid with a bad cell: the others are made, the hole has its reason
    (project / "fail-vanilla-0.05-0").touch()
    failed = scarcity_sweep(return_state=True, parallel=3)
    assert failed.is_failed()
    assert failed.message is not None
    assert "baseline@vanilla-0.05-0: vanilla-0.05-0 has too few examples" in failed.message
    assert "evaluate-baseline@vanilla-0.05-0: needs baseline@vanilla-0.05-0, which failed" in failed.message
    assert failed.message.startswith("6 ran, 4 cached, 1 failed, 1 skipped")
    assert "vanilla-0.05-0" not in (project / "reports/report.md").read_text().split()
    report = artifact("scarcity-sweep-report").data
    assert "## Holes" in report
    assert "MLflow: " not in report  # these stages are tracked nowhere
    assert "vanilla-0.05-0 has too few examples" in report
    assert "3.2500" in report

    # mended: only the hole is filled
    (project / "fail-vanilla-0.05-0").unlink()
    done = scarcity_sweep(return_state=True, parallel=3)
    assert done.is_completed()
    assert done.message == "3 ran, 9 cached"
    assert runs(project) == sorted(["source", "vanilla-1.0-0", "vanilla-0.05-0", "gtl-1.0-0", "gtl-0.05-0"])
    assert "vanilla-0.05-0" in (project / "reports/report.md").read_text().split()

    table = {row["stage"]: row for row in json.loads(artifact("scarcity-sweep-progress").data)}
    assert table["evaluate-baseline vanilla 5 % seed 0"]["state"] == "ran"
    assert table["evaluate-baseline vanilla 5 % seed 0"]["MLflow run"] == "run-vanilla-0.05-0"
    assert table["source"]["state"] == "cached"

    # finished: nothing to do, and no time spent on it
    begun = time.monotonic()
    again = scarcity_sweep(return_state=True)
    assert again.message == "12 cached: everything was up to date, nothing was run"
    assert time.monotonic() - begun < 12
    assert runs(project) == sorted(["source", "vanilla-1.0-0", "vanilla-0.05-0", "gtl-1.0-0", "gtl-0.05-0"])
    assert ablation(return_state=True).message == "3 cached: everything was up to date, nothing was run"
    assert pipeline(return_state=True).message == "12 cached: everything was up to date, nothing was run"


@pytest.mark.usefixtures("server")
def test_a_finished_sweep_costs_less_than_a_second_a_cell(project: Path) -> None:
    """In seconds of this process: a machine that does other things beside changes nothing."""
    fractions = [1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01]
    params = PARAMS.replace("[1.0, 0.05]", str(fractions)).replace("seeds: [0]", "seeds: [0, 1]")
    (project / "params.yaml").write_text(params)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=project, check=True)
    before, begun = time.process_time(), time.monotonic()
    done = scarcity_sweep(return_state=True)
    spent, waited = time.process_time() - before, time.monotonic() - begun
    cells = 2 * 8 * 2 + 2
    assert done.message == f"{1 + 32 + cells + 2} cached: everything was up to date, nothing was run"
    assert spent < 0.2 * cells, f"{spent:.1f} s for {cells} cells"
    assert waited < 10 + cells, f"{waited:.1f} s for {cells} cells"


@pytest.mark.usefixtures("server")
def test_values_outside_of_params_yaml_are_refused_and_nothing_is_touched(project: Path) -> None:
    params = (project / "params.yaml").read_text()
    state = scarcity_sweep(fractions=[0.5], return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert "sweep.fractions: [1.0, 0.05] -> [1.0, 0.05, 0.5]" in state.message
    assert (project / "params.yaml").read_text() == params
    assert not (project / "runs.log").exists()


@pytest.mark.usefixtures("server")
def test_a_pool_that_the_server_does_not_know_is_one_clear_line(project: Path) -> None:
    state = scarcity_sweep(where="gpu", return_state=True)
    assert state.is_failed()
    assert state.message == (
        "deployment stage/gpu does not exist on this server; `sh infra/deploy.sh` makes pools and deployments"
    )
    assert runs(project) == []


@pytest.mark.parametrize("arguments", [("flows.cli", "sweep"), ("flows.cli", "reconcile"), ("flows.cli", "status")])
def test_an_unreachable_server_is_one_clear_line(project: Path, arguments: tuple[str, ...]) -> None:
    environment = {**os.environ, "PREFECT_API_URL": "http://me:hunter2hunter2@127.0.0.1:1/api"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "http://127.0.0.1:1/api does not answer" in line
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.usefixtures("server")
def test_a_crash_is_retried_and_an_error_of_the_user_is_not(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.runner

    monkeypatch.setattr(flows.runner.run_stage, "retry_delay_seconds", 0)
    (project / "fail-source").touch()
    failed = stage("source", return_state=True)
    assert failed.is_failed()
    assert failed.message == "source has too few examples"
    assert (project / "attempts.log").read_text().split() == ["source"]
    (project / "fail-source").unlink()
    (project / "crash-source").touch()
    assert stage("source", return_state=True).message == "ran"
    assert (project / "attempts.log").read_text().split() == ["source"] * 3


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_flow_stops_its_stages(project: Path, number: signal.Signals) -> None:
    (project / "slow-source").touch()
    from prefect.settings import PREFECT_API_URL

    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(REPOSITORY)}
    command = "from flows.flows import scarcity_sweep; scarcity_sweep()"
    # A suite that runs in the background of a script inherits an ignored SIGINT; a user's terminal does not.
    restored = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {command}"
    flow = subprocess.Popen([sys.executable, "-c", restored], cwd=project, env=environment, stderr=subprocess.PIPE)
    _wait_until((project / "pid").exists, 40)
    flow.send_signal(number)
    begun = time.monotonic()
    flow.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert flow.returncode != 0
    assert (project / "tidy").exists()


def test_ctrl_c_ends_a_flow_that_brought_its_own_server(project: Path, tmp_path: Path) -> None:
    """As a terminal sends it: to every process of the group, the flow's server among them."""
    (project / "slow-source").touch()
    own = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    home = tmp_path / "home"
    home.mkdir()
    restored = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from flows.cli import main; sys.argv[1:] = ['sweep']; main()"
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", restored],
        cwd=project,
        env={**own, "PREFECT_HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _wait_until((project / "pid").exists, 90)
    os.killpg(flow.pid, signal.SIGINT)
    begun = time.monotonic()
    _, said = flow.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert flow.returncode == 130
    assert "goes on from what it has kept" in said
    assert (project / "tidy").exists()
    assert (project / ".prefect" / "sweep.db").exists()  # the server that it brought keeps to the project's folder


@pytest.mark.parametrize("wrong", ["a key of params.yaml", "a file in the place of its folder"])
def test_a_sweep_that_cannot_begin_is_one_clear_line_and_makes_nothing(project: Path, wrong: str) -> None:
    if wrong == "a key of params.yaml":
        with (project / "params.yaml").open("a") as file:
            file.write("bogus: 1\n")
    else:
        (project / ".prefect").write_text("")
    before = sorted(project.iterdir())
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "flows.cli", "sweep"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert ("bogus" if wrong == "a key of params.yaml" else str(project / ".prefect")) in done.stderr
    assert sorted(project.iterdir()) == before


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"fractions": [2.0]}, ParameterTypeError),
        ({"fractions": []}, ParameterTypeError),
        ({"methods": ["magic"]}, ParameterTypeError),
        ({"parallel": 0}, ParameterTypeError),
        ({"time_limit_minutes": -1}, ParameterTypeError),
        ({"where": "moon"}, ParameterTypeError),
        ({"nosuch": 1}, SignatureMismatchError),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        scarcity_sweep.validate_parameters(parameters)


def _wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
