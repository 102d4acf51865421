"""`gtl status` answers while stages run: it waits for no lock and changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.grid import read_grid
from flows.stage import reproduce
from flows.tables import running_stages
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.params import load_params
from tests.unit.trees import snapshot

LOCKED = """
import sys, time
from pathlib import Path
from dvc.repo import Repo
from dvc.rwlock import rwlock
with Repo(".") as repo, repo.lock:
    held = [str(Path(name).resolve()) for name in sys.argv[1:]]
    with rwlock(repo.tmp_dir, repo.fs, "dvc repro", [], held, False):
        print("held", flush=True)
        sys.stdin.read()
"""


def dvc(folder: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def made(project: Path) -> Path:
    """The source and one cell exist, all else is missing."""
    dvc(project, "repro", "--quiet", "baseline@vanilla-0.05-0")
    return project


@pytest.fixture
def locked(made: Path) -> Iterator[Path]:
    """Another process holds the repository's lock and writes the source."""
    command = [sys.executable, "-c", LOCKED, "models/source"]
    with subprocess.Popen(command, cwd=made, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield made
        holder.communicate()


def status(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**{key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}, "COLUMNS": "200"}
    command = [sys.executable, "-m", "flows.cli", "status"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_status_needs_no_lock_and_changes_nothing(locked: Path) -> None:
    before = snapshot(locked)
    done = status(locked)
    assert done.returncode == 0, done.stderr
    assert "baseline" in done.stdout
    assert "is busy" not in done.stdout + done.stderr
    assert snapshot(locked) == before


def test_what_is_stale_is_what_dvc_says(made: Path) -> None:
    (made / "models" / "vanilla-0.05-0").write_text("edited by hand\n")
    grid = read_grid(load_params(made / "params.yaml"), made)
    import json

    command = [sys.executable, "-m", "dvc", "status", "--json"]
    told = subprocess.run(command, cwd=made, capture_output=True, text=True, check=True).stdout
    assert grid.stale == set(json.loads(told))
    assert "baseline@vanilla-0.05-0" in grid.stale
    assert "source" not in grid.stale


def test_a_file_that_vanishes_while_it_is_read_makes_its_stage_stale(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.output import Output

    def vanish(self: Output) -> dict[str, str]:
        raise FileNotFoundError(self.fs_path)

    monkeypatch.setattr(Output, "status", vanish)
    grid = read_grid(load_params(made / "params.yaml"), made)
    assert grid.stale == {address for address in grid.stages if not address.endswith(".dvc")}


def test_a_lockfile_that_stays_half_written_is_named_and_left(made: Path) -> None:
    path = made / "dvc.lock"
    path.write_text(path.read_text()[:-20] + "\n  : [")
    before = snapshot(made)
    with pytest.raises(UserError, match=r"dvc\.lock is half-written; `gtl reconcile` moves it aside"):
        read_grid(load_params(made / "params.yaml"), made)
    assert snapshot(made) == before


def test_a_lockfile_that_is_being_written_is_read_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made / "dvc.lock"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2] + "\n  : [")
    monkeypatch.setattr("flows.grid.time.sleep", lambda _: path.write_text(whole))
    assert "source" not in read_grid(load_params(made / "params.yaml"), made).stale


def test_status_says_when_cells_were_not_made_alike(made: Path) -> None:
    """Versions, devices and threads are unknown to DVC: such cells are up to date for it."""
    for name, words in {"source-0": "torch 2.13.0, cpu", "vanilla-0.05-0": "torch 2.13.0, cpu"}.items():
        (made / "cells" / name).mkdir(parents=True, exist_ok=True)
        (made / "cells" / name / "row.json").write_text(f'{{"made_with": "{words}"}}')
    assert "alike" not in status(made).stdout
    (made / "cells/source-0/row.json").write_text('{"made_with": "torch 2.13.0, NVIDIA H100"}')
    said = status(made).stdout
    assert "evaluated alike" in said
    assert "1 with torch 2.13.0, cpu" in said
    assert "1 with torch 2.13.0, NVIDIA H100" in said


@pytest.mark.usefixtures("silent")
def test_a_stage_that_a_flow_runs_is_found_and_shown(project: Path) -> None:
    (project / "hold-source").touch()
    with ThreadPoolExecutor() as threads:
        made = threads.submit(reproduce, "source", project, owner="status")
        try:
            deadline = time.monotonic() + 60
            while not (project / "attempts.log").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            (found,) = running_stages(project)
            assert (found.address, running_stages(project.parent)) == ("source", [])
            assert 0 <= found.seconds < 120
            assert f" {found.pid} " in status(project).stdout
        finally:
            (project / "hold-source").unlink()
        assert made.result(60) == "ran"
    assert running_stages(project) == []
