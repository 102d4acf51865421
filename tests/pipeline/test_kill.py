"""SIGKILL at any moment, the same command again: it goes on, and ends with the same result as an unbroken run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gtl_lightning.files import sha256_file
from gtl_lightning.workspace.params import write_params
from tests.pipeline.conftest import Gtl, tiny

LONGER = "train.source={steps: 60, batch: 16, lr: 0.002, warmup: 2, check_every: 2, patience: 40, ema: 0.9}"


@pytest.fixture
def workspace(tokenised: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tokenised, tmp_path / "workspace"))
    write_params(
        tiny(LONGER, "networks.denoiser={width: 16, depth: 1, heads: 2, dropout: 0.1}"), folder / "params.yaml"
    )
    return folder


def killed(workspace: Path, *arguments: str, when: str) -> None:
    """Start `gtl ARGUMENTS` and kill it as soon as a file matching `when` is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gtl_lightning.cli", *arguments],
        cwd=workspace,
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(workspace.glob(when)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_training_goes_on_and_ends_the_same(gtl: Gtl, workspace: Path, tmp_path: Path) -> None:
    unbroken = Path(shutil.copytree(workspace, tmp_path / "unbroken"))
    assert gtl("train", "source", cwd=unbroken).returncode == 0
    killed(workspace, "train", "source", when=".state/source-*/last.ckpt")
    assert not (workspace / "models").exists()
    done = gtl("train", "source", cwd=workspace)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    weights = Path("models/source/network.safetensors")
    assert _tensors(workspace / weights) == _tensors(unbroken / weights)


@pytest.mark.parametrize(
    ("stage", "when", "made"), [("split", "splits/*", "splits"), ("tokenize", "tokens/*", "tokens")]
)
def test_a_killed_data_stage_ends_the_same(
    stage: str, when: str, made: str, gtl: Gtl, workspace: Path, tmp_path: Path
) -> None:
    before = {
        path.relative_to(workspace): sha256_file(path) for path in (workspace / made).rglob("*") if path.is_file()
    }
    shutil.rmtree(workspace / made)
    killed(workspace, stage, when=when)
    done = gtl(stage, cwd=workspace)
    assert done.returncode == 0, done.stderr
    after = {path.relative_to(workspace): sha256_file(path) for path in (workspace / made).rglob("*") if path.is_file()}
    assert {key: value for key, value in after.items() if not key.name.startswith(".")} == before


def _tensors(path: Path) -> dict[str, bytes]:
    from gtl_lightning.files import load_tensors

    return {name: tensor.numpy().tobytes() for name, tensor in load_tensors(path)[0].items()}
