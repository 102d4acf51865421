"""One machine's lab on loopback: MLflow, the Prefect server, a worker; Ctrl-C ends all of them.

    python infra/serve.py [--prefect-port 4200] [--mlflow-port 5000] [--runs 1]

On a machine with NVIDIA GPUs there is also one worker of the pool `gpu` per device. The databases are SQLite files;
MLFLOW_BACKEND_STORE_URI and PREFECT_API_DATABASE_CONNECTION_URL name others.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
START_SECONDS = 90.0
FLOW_GRACE_SECONDS = 7.0  # a flow interrupts its stages, which save a checkpoint
SERVICE_GRACE_SECONDS = 1.0
RESTARTS = 5  # of one service in quick succession, before serve gives up
STABLE_SECONDS = 60.0  # a service that was up for so long starts with a clean slate
WORKER = "worker-"  # how the names of workers begin
LOGS = Path(".prefect/logs")
PREFECT_DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"

log = logging.getLogger("serve")


class ServeError(Exception):
    """Something the user can mend: one line."""


@dataclass
class Service:
    """A running child.

    Attributes:
        name: for people, and of its log file.
        command: what it runs.
        environment: the whole of it.
        process: head of its own process group.
        restarts: how often it was started again in quick succession.
        since: when it was started last, time.monotonic().
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    restarts: int = 0
    since: float = field(default_factory=time.monotonic)


class Lab:
    """The services, in the order in which they were started; they are stopped in the opposite order.

    Args:
        environment: of every service.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._services: list[Service] = []
        self._flows: set[psutil.Process] = set()  # they outlive a worker that is killed

    def run(self, *command: str) -> None:
        """Run a command to its end.

        Raises:
            ServeError: it failed.
        """
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise ServeError(without_passwords(f"{' '.join(command)} failed: {last}"))

    def start(self, name: str, *command: str, **extra: str) -> None:
        """Start a service; its output goes to .prefect/logs/NAME.log."""
        own = {**self.environment, **extra}
        self._services.append(Service(name, command, own, _spawn(name, command, own)))

    def wait_for(self, name: str, url: str) -> None:
        """Wait until a service answers.

        Raises:
            ServeError: it died, or did not answer in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            self.check()
            if time.monotonic() > deadline:
                raise ServeError(f"{name} did not answer within {START_SECONDS:.0f} s; see {LOGS / name}.log")
            time.sleep(0.2)

    def check(self) -> None:
        """Raise ServeError when a service has died."""
        for service in self._services:
            if (code := service.process.poll()) is not None:
                raise ServeError(f"{service.name} ended with exit code {code}; see {LOGS / service.name}.log")

    def keep_up(self) -> None:
        """Start a service that has died again, a few times; remember the flow runs of the workers.

        Raises:
            ServeError: it dies again and again.
        """
        for service in self._services:
            if service.name.startswith(WORKER) and service.process.poll() is None:
                with suppress(psutil.NoSuchProcess):
                    self._flows.update(psutil.Process(service.process.pid).children())
        self._flows = {flow for flow in self._flows if flow.is_running()}
        for service in self._services:
            if (code := service.process.poll()) is not None:
                if time.monotonic() - service.since > STABLE_SECONDS:
                    service.restarts = 0
                if service.restarts >= RESTARTS:
                    self.check()
                hint = "; `gtl reconcile` retries its flow run" if service.name.startswith(WORKER) else ""
                log.info("%s ended with exit code %s and is started again%s", service.name, code, hint)
                service.process = _spawn(service.name, service.command, service.environment)
                service.restarts += 1
                service.since = time.monotonic()

    def stop(self) -> None:
        """Stop everything, workers before the server that they report to."""
        workers = [service for service in self._services if service.name.startswith(WORKER)]
        _stop_flows(self._flows)
        _stop(workers)
        _stop([service for service in reversed(self._services) if service not in workers])
        self._services.clear()


def _spawn(name: str, command: tuple[str, ...], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    folder = ROOT / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.log", "ab") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop_flows(flows: set[psutil.Process]) -> None:
    """Ask the flow runs themselves, which then stop their stages and report to the server; a worker would kill them."""
    for flow in flows:
        with suppress(psutil.NoSuchProcess):
            flow.terminate()
    psutil.wait_procs(list(flows), timeout=FLOW_GRACE_SECONDS)


def _stop(services: list[Service]) -> None:
    _signal(services, signal.SIGTERM)
    deadline = time.monotonic() + SERVICE_GRACE_SECONDS
    for service in services:
        with suppress(subprocess.TimeoutExpired):
            service.process.wait(max(0, deadline - time.monotonic()))
    _signal(services, signal.SIGKILL)  # also what a service left behind
    for service in services:
        service.process.wait()


def _signal(services: list[Service], number: signal.Signals) -> None:
    for service in services:
        with suppress(ProcessLookupError):
            os.killpg(service.process.pid, number)


def answers(url: str) -> bool:
    """Whether an HTTP request to `url` succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def without_passwords(text: str) -> str:
    """The text with the credentials in its addresses masked."""
    return re.sub(r"(?<=://)[^/\s@]+(?=@)", "***", text)


def check_database(url: str, variable: str) -> None:
    """Raise ServeError when a database server does not listen."""
    address = urlsplit(url)
    if not address.hostname:
        return
    port = address.port or 5432
    try:
        socket.create_connection((address.hostname, port), timeout=3).close()
    except OSError as error:
        where = f"{address.hostname}:{port}"
        raise ServeError(f"the database at {where} does not answer ({error}); start it, or unset {variable}") from error


def check_port(port: int, option: str) -> None:
    """Raise ServeError when something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServeError(f"port {port} is taken; stop what uses it, or choose another with {option}") from error


def gpus() -> list[str]:
    """Indices of this machine's NVIDIA GPUs."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def environment(prefect_port: int, mlflow_port: int) -> dict[str, str]:
    """What the services share. Values that are set already are kept, the addresses excepted."""
    commands = str(Path(sys.executable).parent)
    return {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PREFECT_HOME": str(ROOT / ".prefect"),
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{ROOT / 'mlflow.db'}",
        **os.environ,
        "PATH": os.pathsep.join([commands, os.environ.get("PATH", os.defpath)]),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{mlflow_port}",
        "PREFECT_API_URL": f"http://{HOST}:{prefect_port}/api",
        "PREFECT_UI_API_URL": f"http://{HOST}:{prefect_port}/api",
    }


def serve(options: argparse.Namespace, ready: Callable[[], None]) -> None:
    """Start everything, call `ready`, and watch until a signal or a failure."""
    check_port(options.prefect_port, "--prefect-port")
    check_port(options.mlflow_port, "--mlflow-port")
    lab = Lab(environment(options.prefect_port, options.mlflow_port))
    database = lab.environment["MLFLOW_BACKEND_STORE_URI"]
    check_database(database, "MLFLOW_BACKEND_STORE_URI")
    check_database(lab.environment.get(PREFECT_DATABASE, ""), PREFECT_DATABASE)
    try:
        # First, and alone: processes that create one database at the same time break each other.
        lab.run("mlflow", "db", "upgrade", database)
        lab.start(
            *("mlflow", "mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(options.mlflow_port)),
            *("--artifacts-destination", str(ROOT / "mlartifacts")),
        )
        lab.start("prefect", "prefect", "server", "start", "--host", HOST, "--port", str(options.prefect_port))
        lab.wait_for("prefect", f"http://{HOST}:{options.prefect_port}/api/health")
        lab.wait_for("mlflow", f"http://{HOST}:{options.mlflow_port}/health")
        lab.run("sh", "infra/deploy.sh")
        worker = ("prefect", "worker", "start", "--type", "process", "--install-policy", "never")
        limit = str(options.runs)
        lab.start("worker-cpu", *worker, "--pool", "cpu", "--limit", limit)
        for gpu in gpus():
            name = ("--pool", "gpu", "--name", f"gpu-{gpu}", "--limit", "1")
            lab.start(f"worker-gpu-{gpu}", *worker, *name, CUDA_VISIBLE_DEVICES=gpu)
        ready()
        while True:
            lab.keep_up()
            time.sleep(1)
    finally:
        lab.stop()


def main() -> int:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description="Prefect, MLflow and a worker on loopback, until Ctrl-C.")
    parser.add_argument("--prefect-port", type=int, default=4200, help="port of the Prefect server and its pages")
    parser.add_argument("--mlflow-port", type=int, default=5000, help="port of the MLflow server and its pages")
    parser.add_argument("--runs", type=int, default=1, help="flow runs at once on the pool cpu")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def ready() -> None:
        log.info("Prefect: http://%s:%d   MLflow: http://%s:%d", HOST, options.prefect_port, HOST, options.mlflow_port)
        log.info("export PREFECT_API_URL=http://%s:%d/api", HOST, options.prefect_port)
        log.info("prefect deployment run scarcity-sweep/local --watch        (Ctrl-C here ends everything)")

    try:
        serve(options, ready)
    except KeyboardInterrupt:
        log.info("stopped")
    except ServeError as error:
        log.info("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
