"""A tiny lab for the kill tests: the real servers, worker and flows on stages that cost next to nothing.

A stage trains in numbered steps, notes each one outside of what DVC manages, goes on behind the last one, and logs into
MLflow through the project's own tracking: what the real stages do, without their networks.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.group import LEADER
from flows.login import LOGIN, read_login
from flows.reconcile import runs_here
from gtl_lightning.workspace.origin import PID
from tests.dvc_kit import dvc_repository

REPOSITORY = Path(__file__).parents[2]
STEPS = 12
CELLS = ("gtl-1.0-0", "gtl-0.05-0")
SLOW = "gtl-0.05-0"  # takes longer than the other, so that there is a middle of the sweep

PIPELINE = """
stages:
  source:
    cmd: python stage.py train source
    deps: [stage.py]
    outs: [models/source]
  ratio:
    matrix: {method: "${sweep.ratios}", fraction: "${sweep.fractions}", seed: "${sweep.seeds}"}
    cmd: python stage.py train ${item.method}-${item.fraction}-${item.seed}
    deps: [models/source]
    outs: ["models/${item.method}-${item.fraction}-${item.seed}"]
  evaluate-ratio:
    matrix: {method: "${sweep.ratios}", fraction: "${sweep.fractions}", seed: "${sweep.seeds}"}
    cmd: python stage.py evaluate ${item.method}-${item.fraction}-${item.seed}
    deps: ["models/${item.method}-${item.fraction}-${item.seed}"]
    outs:
      - "cells/${item.method}-${item.fraction}-${item.seed}"
      - "runs/cells/${item.method}-${item.fraction}-${item.seed}"
  report:
    cmd: python stage.py report
    deps: [cells]
    outs: [reports/report.md]
"""

STAGE = """
import hashlib, json, sys, time
from pathlib import Path

from gtl_lightning.workspace.params import load_params
from gtl_lightning.files import write_json, write_text
from gtl_lightning.workspace.tracking import Study

STEPS, SECONDS = {steps}, {seconds}
kind, name = sys.argv[1], (sys.argv[2:] or ["report"])[0]
tracking = load_params().tracking


def note(what):
    with open("events.log", "a") as file:
        file.write(f"{{what}} {{name}}\\n")


if kind == "report":
    write_text("reports/report.md", "".join(sorted(p.read_text() for p in Path("cells").glob("*/row.json"))))
    sys.exit()
study = Study(tracking.uri, tracking.experiment, {{"profile": "lab"}})
with study.child("cell" if kind == "evaluate" else "train", f"{{kind}} {{name}}", f"{{kind}}-{{name}}", {{}}) as run:
    if kind == "evaluate":
        value = int(hashlib.sha256(Path("models", name).read_bytes()).hexdigest()[:6], 16) / 16**6
        run.log_metrics({{"nelbo": value}})
        write_json(f"cells/{{name}}/row.json", {{"nelbo": value, "mauve": 0.5}})
        write_json(f"runs/cells/{{name}}/row.json", {{"mlflow_run": run.run_id}})
    else:
        state = Path(".state", name)
        done = json.loads(state.read_text()) if state.exists() else {{"step": 0, "weights": name}}
        for step in range(done["step"], STEPS):
            time.sleep(SECONDS * (4 if name == "{slow}" else 1))
            weights = hashlib.sha256(f"{{done['weights']}} {{step}}".encode()).hexdigest()
            done = {{"step": step + 1, "weights": weights}}
            run.log_metrics({{"loss": 1 / (step + 1)}}, step)
            note("step")
            write_json(state, done)
        write_text(f"models/{{name}}", done["weights"])
note(kind)
"""


class Lab:
    """Prefect, MLflow and a worker as `make serve` starts them, on a tiny project of their own."""

    def __init__(self, folder: Path, seconds: float = 0.15, **environment: str) -> None:
        self.folder = folder
        self._ports = free_ports(2)
        self.url = f"http://127.0.0.1:{self._ports[0]}/api"
        self.tracking = f"http://127.0.0.1:{self._ports[1]}"
        self._serve: subprocess.Popen[bytes] | None = None
        self.said = ""  # by `make serve` until it served
        for name in ("infra", "flows", "prefect.yaml"):
            source = REPOSITORY / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("sample-store", "__pycache__")
                shutil.copytree(source, folder / name, ignore=ignore)
            else:
                shutil.copy(source, folder / name)
        (folder / "dvc.yaml").write_text(PIPELINE)
        (folder / "stage.py").write_text(STAGE.format(steps=STEPS, seconds=seconds, slow=SLOW))
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(REPOSITORY),
            "PREFECT_HOME": str(folder / ".prefect"),
            "PREFECT_API_URL": self.url,
            "MLFLOW_TRACKING_URI": self.tracking,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            **environment,
        }

    def begin(self, experiment: str) -> None:
        """A project in which nothing exists yet, logging into an experiment of its own."""
        for name in (".dvc", ".state", "models", "cells", "runs", "reports"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("dvc.lock", "events.log"):
            (self.folder / name).unlink(missing_ok=True)
        params = {
            "sweep": {"fractions": [1.0, 0.05], "seeds": [0], "baselines": [], "ratios": ["gtl"]},
            "ablation": {"fraction": 0.05, "method": "gtl"},
            "tracking": {"experiment": experiment},
        }
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))
        dvc_repository(self.folder)

    def start(self) -> None:
        """`make serve`; returns when it serves."""
        ports = [f"--prefect-port={self._ports[0]}", f"--mlflow-port={self._ports[1]}"]
        self._serve = subprocess.Popen(
            [sys.executable, "infra/serve.py", *ports],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.PIPE,
        )
        assert self._serve.stderr is not None
        self.said = ""
        for line in self._serve.stderr:
            self.said += line.decode()
            if b"prefect deployment run" in line:
                return
        raise AssertionError("serve did not start: " + line.decode())

    def stop(self) -> None:
        """End `make serve`, which takes SIGTERM as Ctrl-C; a suite that runs in the background has SIGINT ignored."""
        if self._serve is not None and self._serve.poll() is None:
            self._serve.send_signal(signal.SIGTERM)
            try:
                self._serve.wait(60)
            except subprocess.TimeoutExpired:
                self.kill_all()
                raise

    def kill_all(self) -> None:
        """SIGKILL to `make serve` and all that it started: what a reset of the machine does."""
        assert self._serve is not None
        family = [psutil.Process(self._serve.pid), *psutil.Process(self._serve.pid).children(recursive=True)]
        kill(*family, *self.groups())
        self._serve.wait()

    def process(self) -> psutil.Process:
        """`make serve` itself."""
        assert self._serve is not None
        return psutil.Process(self._serve.pid)

    def command(self, *arguments: str, **extra: str) -> str:
        """Run a Python command in the project, with further variables; return what it says."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**self.environment, **extra},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """A client of the lab's server, logged in."""
        settings = {PREFECT_API_URL: self.url, PREFECT_API_AUTH_STRING: self.login["PREFECT_API_AUTH_STRING"]}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client

    @property
    def login(self) -> dict[str, str]:
        """Variables of whoever reads the file that `make serve` wrote."""
        return read_login(self.folder / LOGIN)

    @contextmanager
    def tracker(self) -> Iterator[MlflowClient]:
        """A client of the lab's MLflow, logged in."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.login.items():
                if name.startswith("MLFLOW_"):
                    patch.setenv(name, value)
            yield MlflowClient(self.tracking)

    def run_sweep(self) -> FlowRun:
        """`prefect deployment run scarcity-sweep/local`."""
        with self.client() as client:
            deployment = client.read_deployment_by_name("scarcity-sweep/local")
            return client.create_flow_run_from_deployment(deployment.id)

    def read(self, run: FlowRun) -> FlowRun:
        """The run as the server has it now."""
        with self.client() as client:
            return client.read_flow_run(run.id)

    def wait_for_end(self, run: FlowRun, seconds: float = 120) -> FlowRun:
        """Wait for a final state; the server may be away meanwhile."""

        def ended() -> bool:
            with suppress(Exception):
                state = self.read(run).state
                return state is not None and state.is_final()
            return False

        wait_until(ended, seconds)
        return self.read(run)

    def events(self, kind: str) -> Counter[str]:
        """How often each component came to a step (`step`), or to its end (`train`, `evaluate`)."""
        path = self.folder / "events.log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return Counter(name for what, name in lines if what == kind)

    def finished(self) -> set[str]:
        """Stages that DVC has recorded; none while it writes the file."""
        path = self.folder / "dvc.lock"
        with suppress(OSError, yaml.YAMLError, TypeError, KeyError):
            return set(yaml.safe_load(path.read_text())["stages"])
        return set()

    def results(self) -> dict[str, Any]:
        """Every model and every cell, without the ids of tracked runs, and the report's size."""
        found: dict[str, Any] = {path.name: path.read_text() for path in (self.folder / "models").iterdir()}
        for row in (self.folder / "cells").glob("*/row.json"):
            values = json.loads(row.read_text())
            found[f"cell {row.parent.name}"] = {key: values[key] for key in ("nelbo", "mauve")}
        return found

    def tracked(self, experiment: str) -> dict[str, Any]:
        """Tracked runs of an experiment: key -> status and metrics; a key that occurs twice fails."""
        with self.tracker() as client:
            found = client.get_experiment_by_name(experiment)
            assert found is not None
            runs = client.search_runs([found.experiment_id], max_results=1000)
        keys = [run.data.tags.get("key", run.data.tags["kind"]) for run in runs]
        assert len(set(keys)) == len(keys), f"doubled: {sorted(keys)}"
        return {
            key: (run.info.status if key != "study" else None, dict(run.data.metrics))
            for key, run in zip(keys, runs, strict=True)
        }

    def history(self, experiment: str, key: str) -> list[int]:
        """Steps of the learning curve of a tracked run."""
        with self.tracker() as client:
            found = client.get_experiment_by_name(experiment)
            assert found is not None
            (run,) = client.search_runs([found.experiment_id], f"tags.key = '{key}'")
            return sorted({metric.step for metric in client.get_metric_history(run.info.run_id, "loss")})

    def process_of(self, run: FlowRun) -> psutil.Process:
        """The process that the flow noted in its run."""
        return psutil.Process(int(str(self.read(run).labels[PID])))

    def groups(self) -> list[psutil.Process]:
        """Every process of the stages that run now."""
        heads = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if str(LEADER.name) in " ".join(process.cmdline()) and Path(process.cwd()) == self.folder:
                    heads += [process, *process.children(recursive=True)]
        return heads

    def service(self, name: str) -> psutil.Process:
        """A child of `make serve`: `worker`, or `server` for Prefect's."""
        assert self._serve is not None
        words = {"worker": "worker start", "server": "server start"}[name]
        for process in psutil.Process(self._serve.pid).children():
            if words in " ".join(process.cmdline()):
                return process
        raise AssertionError(f"no {name} runs")

    def is_alive(self, run: FlowRun) -> bool:
        """Whether the process of a run, or of one of its stages, is still there."""
        started = runs_here()
        noted = self.read(run).labels.get(PID)
        return str(run.id) in started or bool(self.groups()) or psutil.pid_exists(int(str(noted)))

    def is_up(self) -> bool:
        """Whether the Prefect server answers."""
        with suppress(Exception), self.client() as client:
            return client.api_healthcheck() is None
        return False


def kill(*processes: psutil.Process) -> None:
    """SIGKILL, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)
