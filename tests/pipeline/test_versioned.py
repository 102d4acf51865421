"""What DVC versions is what was written: no rest of a killed writer, nothing else that a remote gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from gtl_lightning.data.sample import write_sample
from tests.dvc_kit import dvc_repository
from tests.unit.test_data_import import PLAIN

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from gtl_lightning.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("there", flush=True)
    sys.stdin.read()
"""


def dvc(folder: Path, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A DVC repository with this project's settings and a remote where the settings say it is."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    dvc_repository(folder)
    settings = (folder / ".dvc" / "config").read_text()
    (folder / ".dvc" / "config").write_text(settings + (ROOT / ".dvc" / "config").read_text().replace("[core]", ""))
    shutil.copy(ROOT / ".dvcignore", folder)
    return folder


def killed_writer(path: Path) -> Path:
    """Kill a process while it writes `path`; what it left behind."""
    before = set(path.parent.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = set(path.parent.iterdir()) - before
    return left


def folders_of(pipeline: Path) -> Iterable[str]:
    """Outputs that are folders, a matrix's at one point of it."""
    for stage in yaml.safe_load(pipeline.read_text())["stages"].values():
        for out in stage.get("outs", []):
            name = out if isinstance(out, str) else next(iter(out))
            if not Path(name).suffix:
                yield name.replace("${item.", "").replace("}", "")


def test_what_a_killed_writer_left_is_no_part_of_any_output(workspace: Path) -> None:
    outs = sorted({*folders_of(ROOT / "dvc.yaml"), *folders_of(ROOT / "gtl_lightning/studies/markov/dvc.yaml")})
    assert {"splits", "tokens", "models/source", "real"} <= set(outs) and len(outs) > 8
    for out in outs:
        folder = workspace / out
        folder.mkdir(parents=True)
        (folder / "whole.json").write_text("{}")
    left = killed_writer(workspace / outs[0] / "whole.json")
    for out in outs[1:]:
        shutil.copy(left, workspace / out)
        (workspace / out / ".incoming").mkdir()
        (workspace / out / ".incoming" / "half").write_text("half")
    (workspace / "dvc.yaml").write_text(json.dumps({"stages": {"all": {"cmd": "true", "outs": outs}}}))
    dvc(workspace, "commit", "--force", "--quiet")
    (stage,) = yaml.safe_load((workspace / "dvc.lock").read_text())["stages"].values()
    assert {out["path"]: out["nfiles"] for out in stage["outs"]} == dict.fromkeys(outs, 1)


def nfiles(workspace: Path) -> int:
    (out,) = yaml.safe_load((workspace / "data.dvc").read_text())["outs"]
    return int(out["nfiles"])


def test_what_a_killed_import_left_is_not_versioned(workspace: Path) -> None:
    write_sample(workspace / "data", seed=0, source_records=200, target_records=200)
    fifo = workspace.parent / "fifo"
    os.mkfifo(fifo)
    gtl = [sys.executable, "-c", "from gtl_lightning.cli import main; main()", "data", "import"]
    process = subprocess.Popen([*gtl, str(fifo)], cwd=workspace, stderr=subprocess.DEVNULL)
    with fifo.open("wb", buffering=0) as file:
        for _ in range(6):  # more than the buffers hold
            file.write(PLAIN)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {path.name for path in (workspace / "data").iterdir()} > {"provenance.json", "snapshot.jsonl.gz"}
    dvc(workspace, "add", "--quiet", "data")
    assert nfiles(workspace) == 2
    (workspace / "new.jsonl").write_bytes(PLAIN)
    subprocess.run([*gtl, "new.jsonl"], cwd=workspace, check=True, capture_output=True)
    assert nfiles(workspace) == 2
    assert {path.name for path in (workspace / "data").iterdir()} == {"provenance.json", "snapshot.jsonl.gz"}


def test_an_overwritten_object_of_the_remote_is_not_taken(workspace: Path) -> None:
    write_sample(workspace / "data", seed=0, source_records=200, target_records=200)
    dvc(workspace, "add", "--quiet", "data")
    dvc(workspace, "push", "--quiet", "--remote", "sample")
    size = (workspace / "data" / "snapshot.jsonl.gz").stat().st_size
    store = workspace / "infra" / "sample-store"
    (stored,) = (path for path in store.rglob("*") if path.is_file() and path.stat().st_size == size)
    whole = stored.read_bytes()

    def pull(fails: bool) -> str:
        shutil.rmtree(workspace / ".dvc" / "cache")
        shutil.rmtree(workspace / "data", ignore_errors=True)
        return dvc(workspace, "pull", "--remote", "sample", fails=fails).stderr

    stored.chmod(0o644)
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "failed to pull data" in pull(fails=True)
    assert not (workspace / "data" / "snapshot.jsonl.gz").exists()
    stored.write_bytes(whole)
    pull(fails=False)
    assert (workspace / "data" / "snapshot.jsonl.gz").read_bytes() == whole


def test_pushing_puts_the_shipped_data_alone_into_the_shipped_store(workspace: Path) -> None:
    """Results and other records go to a remote of their owner's; without one DVC says so."""
    shutil.copy(ROOT / "data.dvc", workspace)
    named = yaml.safe_load((workspace / "data.dvc").read_text())["outs"][0]
    assert named["remote"] == "sample", "so that a fresh clone finds it"
    (workspace / "new.jsonl").write_bytes(PLAIN)
    gtl = [sys.executable, "-m", "gtl_lightning.cli", "data", "import", "new.jsonl"]
    subprocess.run(gtl, cwd=workspace, check=True, capture_output=True)
    assert "remote" not in yaml.safe_load((workspace / "data.dvc").read_text())["outs"][0]
    (workspace / "dvc.yaml").write_text("stages: {one: {cmd: echo 1 > models, outs: [models]}}")
    dvc(workspace, "repro", "--quiet")
    assert "no remote specified" in dvc(workspace, "push", fails=True).stderr
    assert not (workspace / "infra").exists()
