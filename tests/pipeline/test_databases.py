"""Eight cells at once against SQLite and against PostgreSQL; the lab's servers on PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.pipeline.conftest import Gtl
from tests.pipeline.lab import CELLS, Lab
from tests.pipeline.postgres import create_database, postgres

AT_ONCE = 8
STEPS = 10
BATCHES = 3  # of metrics at every step, as callbacks log them

# Each waits for the starting file, so that all of them create the experiment and their runs at the same moment.
CELL = f"""
import sys, time
from pathlib import Path
from gtl_lightning.workspace.tracking import Study
import mlflow
uri, name = sys.argv[1:]
Path(f"ready-{{name}}").touch()
while not Path("go").exists():
    time.sleep(0.1)
with Study(uri, "crowd", {{"profile": "p"}}).child("cell", f"cell {{name}}", name, {{"method": name}}) as run:
    run.log_params({{"a": 1, "b": {{"c": name}}}})
    for step in range({STEPS}):
        for batch in range({BATCHES}):
            run.log_metrics({{f"m{{batch}}": step + batch, "seconds": 0.5}}, step)
    run.set_tags({{"done": True}})
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as address:
        yield address


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/mlflow.db"
    return create_database(request.getfixturevalue("server"), "crowd")


def test_eight_cells_at_once_lose_no_metric(database: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CELL, database, f"cell-{index}"],
            cwd=tmp_path,
            env={**environment, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(AT_ONCE)
    ]
    try:
        while len(list(tmp_path.glob("ready-*"))) < AT_ONCE:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.2)
        (tmp_path / "go").touch()
        for process in processes:
            _, errors = process.communicate(timeout=500)
            assert process.returncode == 0, errors
            assert "Traceback" not in errors
            assert "locked" not in errors
    finally:
        for process in processes:
            process.kill()

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("crowd")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    kinds = [run.data.tags["kind"] for run in runs]
    assert sorted(kinds) == ["cell"] * AT_ONCE + ["study"]
    for run in runs:
        if run.data.tags["kind"] == "study":
            continue
        assert run.info.status == "FINISHED"
        assert run.data.params["b.c"] == run.data.tags["key"]
        assert run.data.tags["done"] == "True"
        for batch in range(BATCHES):
            history = client.get_metric_history(run.info.run_id, f"m{batch}")
            assert sorted((point.step, point.value) for point in history) == [(n, n + batch) for n in range(STEPS)]


@contextmanager
def command_lines() -> Iterator[set[str]]:
    """Collect what every user of the machine sees of this process's descendants, all the while."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                with suppress(OSError):
                    seen.add(Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace").replace("\0", " "))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


@pytest.mark.postgres
def test_a_sweep_with_both_servers_on_postgres(server: str, tmp_path: Path) -> None:
    prefect = create_database(server, "prefect").replace("postgresql://", "postgresql+asyncpg://")
    tracker = create_database(server, "mlflow")
    lab = Lab(tmp_path, PREFECT_API_DATABASE_CONNECTION_URL=prefect, MLFLOW_BACKEND_STORE_URI=tracker)
    lab.begin("lab")
    password = server.partition("postgres:")[2].partition("@")[0]
    try:
        with command_lines() as lines:
            lab.start()
        assert any("tracker" in line for line in lines)
        assert not [line for line in lines if password in line]
        ended = lab.wait_for_end(lab.run_sweep(), 240)
        assert ended.state is not None
        assert ended.state.is_completed(), ended.state.message
        tracked = lab.tracked("lab")
        assert set(tracked) == {
            "study",
            "train-source",
            *(f"{kind}-{cell}" for kind in ("train", "evaluate") for cell in CELLS),
        }
        assert all(status in ("FINISHED", None) for status, _ in tracked.values())
    finally:
        lab.stop()
    assert not list(tmp_path.glob("*.db"))
    for log in (tmp_path / ".prefect" / "logs").iterdir():
        assert password not in log.read_text(), log.name


@pytest.mark.parametrize("address", ["postgresql://someone:hunter2hunter2@127.0.0.1:1/mlflow", "http://127.0.0.1:1"])
def test_an_unreachable_tracker_is_one_clear_line_without_its_password(address: str, gtl: Gtl, tokenised: Path) -> None:
    done = gtl("train", "source", cwd=tokenised, MLFLOW_TRACKING_URI=address)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "127.0.0.1:1" in line
    assert "does not answer" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("variable", ["MLFLOW_BACKEND_STORE_URI", "PREFECT_API_DATABASE_CONNECTION_URL"])
def test_serve_without_its_database_is_one_clear_line(variable: str, tmp_path: Path) -> None:
    lab = Lab(tmp_path, **{variable: "postgresql+asyncpg://someone:hunter2hunter2@127.0.0.1:1/x"})
    with pytest.raises(AssertionError, match=r"127\.0\.0\.1:1/x does not answer") as refused:
        lab.start()
    assert "hunter2" not in str(refused.value)
