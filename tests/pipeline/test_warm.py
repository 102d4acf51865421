"""A stage that is forked from a warm process ends as one of its own; nothing outlives whom it belongs to."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.entry import WARM
from flows.stage import stage_environment
from flows.warm import standing_by
from gtl_lightning.files import sha256_file
from gtl_lightning.workspace.params import write_params
from tests.pipeline.conftest import inside, tiny

ROOT = Path(__file__).parents[2]
CAUSAL = "train.causal={{steps: {0}, batch: 16, lr: 0.002, warmup: 2, check_every: 2, patience: {0}}}"
LONGER, ENDLESS = CAUSAL.format(160), CAUSAL.format(100_000)
TRAIN = ("train", "causal")
WEIGHTS = Path("models/causal/network.safetensors")
CURRENT = "PYTEST_CURRENT_TEST"
"""Variable that is another in every test; a warm process serves those of one environment."""
NOBODY = 77
ASK = f"""
import os, sys
from flows.entry import ask
code = ask(os.environ.get("{WARM}", ""), sys.argv[1:])
sys.exit({NOBODY} if code is None else code if code >= 0 else 128 - code)
"""
"""What runs a command in the warm process, or ends so that it shows that nobody has taken it."""


@pytest.fixture(scope="module")
def checkout(tokenised: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with code of its own and a training that takes seconds, as the working directory."""
    folder = Path(shutil.copytree(tokenised, tmp_path_factory.mktemp("warm") / "checkout"))
    for package in ("gtl_lightning", "flows"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    write_params(tiny("source.kind=ar2diff", LONGER), folder / "params.yaml")
    with inside(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder


@pytest.fixture(scope="module")
def warm(checkout: Path) -> Iterator[psutil.Process]:
    os.environ.pop(CURRENT, None)
    with standing_by(checkout, stage_environment()):
        process = _warm_process(psutil.Process())
        yield process
    assert not process.is_running()
    assert not list((checkout / ".dvc" / "tmp").glob("warm-*"))


@pytest.fixture(scope="module")
def alone(checkout: Path) -> str:
    """Hash of the weights that a process of its own leaves."""
    assert started("-m", "flows.entry", *TRAIN, **{WARM: ""}).wait(120) == 0
    found = sha256_file(checkout / WEIGHTS)
    _forget(checkout)
    return found


@pytest.fixture(autouse=True)
def _from_the_start(checkout: Path) -> None:
    _forget(checkout)


def started(*words: str, **extra: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in stage_environment().items() if name != CURRENT}
    return subprocess.Popen(
        [sys.executable, *words],
        env={**environment, **extra},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def asked(*arguments: str, **extra: str) -> subprocess.Popen[str]:
    # Whoever runs the tests in the background has made SIGINT one that its children do not see.
    restored = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{ASK}"
    return started("-c", restored, *arguments, **extra)


def test_it_leaves_the_same_weights_and_says_the_same(checkout: Path, warm: psutil.Process, alone: str) -> None:
    asking = asked(*TRAIN)
    said, _ = asking.communicate(timeout=180)
    assert asking.returncode == 0, said
    assert "causal-0 network: best" in said
    assert sha256_file(checkout / WEIGHTS) == alone


def test_an_error_of_the_user_is_one_line_and_its_code(checkout: Path, warm: psutil.Process) -> None:
    asking = asked("train", "gtl", "--fraction", "0.77")
    said, _ = asking.communicate(timeout=180)
    assert asking.returncode == 2
    (line,) = said.splitlines()
    assert line.startswith("error: ")
    assert "0.77" in line


def test_whoever_would_run_otherwise_is_refused(checkout: Path, warm: psutil.Process) -> None:
    def code(**extra: str) -> int:
        return asked("train", "gtl", "--fraction", "0.77", **extra).wait(120)

    assert code() == 2
    assert code(DVC_STAGE="ratio") == 2
    assert code(OMP_NUM_THREADS="3") == NOBODY
    for edited in (checkout / "gtl_lightning/modules/causal.py", checkout / "flows/cli.py", checkout / "params.yaml"):
        before = edited.read_text()
        edited.write_text(before + "\n# edited\n")
        assert code() == NOBODY, edited
        edited.write_text(before)
    added = checkout / "gtl_lightning/methods/another.py"
    added.write_text("")
    assert code() == NOBODY
    added.unlink()
    assert code() == 2
    assert asked("train", "gtl", **{WARM: str(checkout / ".dvc/tmp/nobody")}).wait(120) == NOBODY


def test_nobody_else_may_ask(checkout: Path, warm: psutil.Process) -> None:
    address = Path(os.environ[WARM])
    assert stat.S_IMODE(address.stat().st_mode) == 0o600


@pytest.fixture
def endless(checkout: Path, warm: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Process]:
    """A warm process of its own, whose training ends by itself in no time that a test waits for."""
    monkeypatch.setenv(WARM, os.environ[WARM])  # which is the module's again afterwards
    said = (checkout / "params.yaml").read_bytes()
    write_params(tiny("source.kind=ar2diff", ENDLESS), checkout / "params.yaml")
    os.environ.pop(CURRENT, None)
    with standing_by(checkout, stage_environment()):
        *_, process = _warm_processes(psutil.Process())  # the last that was started
        yield process
    (checkout / "params.yaml").write_bytes(said)


def test_ctrl_c_reaches_the_stage_which_keeps_its_checkpoint(checkout: Path, endless: psutil.Process) -> None:
    asking = asked(*TRAIN)
    _wait_until(lambda: bool(list(checkout.glob(".state/causal-*/last.ckpt"))))
    asking.send_signal(signal.SIGINT)
    said, _ = asking.communicate(timeout=180)
    assert asking.returncode == 130, said
    assert "stopped; the same command goes on from what it has kept" in said
    _wait_until(lambda: not endless.children())


def test_a_stage_whose_client_is_killed_is_killed_and_goes_on_later(
    checkout: Path, warm: psutil.Process, alone: str
) -> None:
    asking = asked(*TRAIN)
    _wait_until(lambda: bool(list(checkout.glob(".state/causal-*/last.ckpt"))))
    asking.kill()
    asking.communicate(timeout=180)  # ends with the last that holds the output
    _wait_until(lambda: not warm.children())
    assert not (checkout / WEIGHTS).exists()
    again = asked(*TRAIN)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "resuming" in said
    assert sha256_file(checkout / WEIGHTS) == alone


def test_a_stage_that_is_killed_says_so(checkout: Path, warm: psutil.Process) -> None:
    asking = started("-m", "flows.entry", *TRAIN)
    _wait_until(lambda: bool(list(checkout.glob(".state/causal-*/last.ckpt"))))
    (stage,) = warm.children()
    stage.kill()
    assert asking.wait(60) == -signal.SIGKILL


def test_a_stage_goes_on_by_itself_when_the_warm_process_is_killed(checkout: Path, alone: str) -> None:
    os.environ.pop(CURRENT, None)
    with standing_by(checkout, stage_environment()):
        *_, warm = _warm_processes(psutil.Process())  # the last that was started
        asking = started("-m", "flows.entry", *TRAIN)
        _wait_until(lambda: bool(list(checkout.glob(".state/causal-*/last.ckpt"))))
        (stage,) = warm.children()
        warm.kill()
        said, _ = asking.communicate(timeout=180)
        assert not stage.is_running()
    assert asking.returncode == 0, said
    assert "resuming" in said
    assert sha256_file(checkout / WEIGHTS) == alone


def test_it_ends_with_a_sweep_that_is_killed(checkout: Path) -> None:
    sweep = started(
        "-c",
        "import os; from pathlib import Path; from flows.warm import standing_by\n"
        "with standing_by(Path.cwd(), os.environ): \n"
        "    print('up', flush=True); import time; time.sleep(600)",
    )
    assert sweep.stdout is not None
    assert sweep.stdout.readline() == "up\n"
    warm = _warm_process(psutil.Process(sweep.pid))
    sweep.kill()
    sweep.wait()
    _wait_until(lambda: not warm.is_running())
    sweep.stdout.close()


def _warm_processes(owner: psutil.Process) -> list[psutil.Process]:
    return [child for child in owner.children() if "flows.warm" in " ".join(child.cmdline())]


def _warm_process(owner: psutil.Process) -> psutil.Process:
    """The one of an owner, which is called so once it runs its own program: it is forked a moment before."""
    _wait_until(lambda: bool(_warm_processes(owner)))
    (process,) = _warm_processes(owner)
    return process


def _forget(checkout: Path) -> None:
    for made in (".state", "models/causal", "runs/models/causal"):
        shutil.rmtree(checkout / made, ignore_errors=True)


def _wait_until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
