"""A tiny workspace on generated text: every stage runs for real, in seconds."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from filelock import FileLock

from gtl_lightning.data.sample import write_sample
from gtl_lightning.methods import ROLLS, names
from gtl_lightning.stages.data import split, tokenize
from gtl_lightning.stages.evaluate import ablation, evaluate_cell
from gtl_lightning.stages.real import measure_real
from gtl_lightning.stages.register import register_best
from gtl_lightning.stages.report import make_report
from gtl_lightning.stages.train import (
    train_causal,
    train_cell,
    train_classifier,
    train_judge,
    train_planner,
    train_source,
)
from gtl_lightning.workspace import params as config
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.settings import Methods
from tests.pipeline.flow_kit import make_project

QUICK = "{steps: 6, batch: 16, lr: 0.002, warmup: 2, check_every: 3, patience: 2}"
TINY = (
    "networks.denoiser={width: 16, depth: 1, heads: 2}",
    "networks.classifier={width: 16, depth: 1, heads: 2}",
    "networks.planner={width: 16, depth: 1, heads: 2}",
    "networks.reference={width: 16, depth: 1, heads: 2}",
    *(f"train.{name}={QUICK}" for name in ("causal", "classifier", "planner", "reference")),
    *(f"methods.{name}.train={QUICK}" for name in Methods().model_dump()),
    *(
        f"methods.{name}.network={{width: 16, depth: 1, heads: 2}}"
        for name, own in Methods().model_dump().items()
        if "network" in own
    ),
    "train.source={steps: 20, batch: 16, lr: 0.002, warmup: 2, check_every: 5, patience: 4}",
    "train.val_examples=32",
    "sweep.fractions=[1.0, 0.3]",
    "sweep.ratios=[gtl, gtl-head, gtl-warm, gtl-sequence-gkl]",
    "methods.gtl-head.rank=4",
    "methods.gtl-warm.borrowed=24",
    "ablation.fraction=0.3",
    "ablation.gammas=[0.0, 1.0]",
    "ablation.n_ratios=[4]",
    "sampling.positions_per_step=4",
    "sampling.gammas=[0.5, 1.0]",
    "sampling.also_temperatures=[0.7]",
    "sampling.sample_gammas=[1.0, 2.0]",
    "evaluation.trial_samples=8",
    "sampling.n_ratio_sequence=4",
    "evaluation.samples=24",
    "evaluation.draws=1",
    "evaluation.val_examples=16",
    "evaluation.mauve_buckets=4",
    "evaluation.mauve_seeds=2",
    "data.target_test=0.2",
)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Run with `folder` as the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    # Lightning's logger exports the address of the last study; another workspace must not log into it.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def every_method() -> tuple[str, ...]:
    """Overrides that put every method of the registry into the grid."""
    assert sorted(name for listed in ROLLS.values() for name in listed) == sorted(names())
    return tuple(f"sweep.{roll}=[{', '.join(listed)}]" for roll, listed in ROLLS.items())


def tiny(*overrides: str) -> Params:
    """The tiny parameters, some of them changed."""
    return config.configure(overrides=(*TINY, *overrides))


def prepare(folder: Path) -> None:
    """Sample data, parameters, splits and tokens."""
    with inside(folder):
        write_sample(Path("data"), seed=0, source_records=400, target_records=300)
        config.write_params(tiny())
        split(tiny())
        tokenize(tiny())
    make_tracker(folder)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the run that the first of its processes makes, and the others wait for."""
    run = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    folder, made = run / name, run / f"{name}.made"
    with FileLock(run / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def make_tracker(folder: Path) -> None:
    """MLflow's database without a run: to make its tables takes seconds, once for all tests."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()


@pytest.fixture
def tracker(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty tracker in a folder of its own, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(once(tmp_path_factory, "tracker", make_tracker) / "mlflow.db", tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def tokenised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace up to its tokens. Read only."""
    return once(tmp_path_factory, "tokenised", prepare)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every stage of the main job has run. Read only."""
    return once(tmp_path_factory, "trained", train)


def train(folder: Path) -> None:
    """Every stage of the main job, on sample data."""
    prepare(folder)
    with inside(folder):
        params = tiny()
        train_causal(params)
        train_source(params)
        train_judge(params)
        train_planner(params)
        measure_real(params)
        for fraction in params.sweep.fractions:
            train_classifier(params, fraction, 0)
            for method in params.sweep.methods:
                train_cell(params, method, fraction, 0)
                evaluate_cell(params, method, fraction, 0)
        evaluate_cell(params, "source", None, 0)
        ablation(params, 0)
        make_report(params)
        register_best(params)


Gtl = Callable[..., subprocess.CompletedProcess[str]]
COMMAND_SECONDS = 240.0


@pytest.fixture(scope="session")
def forks() -> ForkServerContext:
    """Processes forked from one that has the imports, which are most of what a command takes here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [__name__, "mlflow.store.tracking.sqlalchemy_store", "pytorch_lightning.loggers.mlflow"]
    )
    return context


@pytest.fixture
def gtl(tmp_path: Path, forks: ForkServerContext) -> Gtl:
    """The command line, run as a user runs it: in a folder, as a process of its own."""

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as written:
            streams = [Path(written) / name for name in ("stdout", "stderr")]
            process = forks.Process(target=_become, args=(arguments, cwd, {**os.environ, **environment}, streams))
            process.start()
            process.join(COMMAND_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()
                raise subprocess.TimeoutExpired(arguments, COMMAND_SECONDS)
            return subprocess.CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in streams))

    return run


def _become(arguments: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Sequence[Path]) -> None:
    """Be `gtl ARGUMENTS` in a folder, in the process that was forked."""
    from gtl_lightning.cli import main

    for path, stream in zip(streams, (sys.stdout, sys.stderr), strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[:] = ["gtl", *arguments]
    main()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server for all tests of flows."""
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("DO_NOT_TRACK", "1")
        with prefect_test_harness(server_startup_timeout=240):
            yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny DVC project of shell commands, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_project(tmp_path)
    return tmp_path


@pytest.fixture
def silent() -> Iterator[None]:
    """Tasks called without a flow, whose log has nowhere to go."""
    from prefect.logging import disable_run_logger

    with disable_run_logger():
        yield
