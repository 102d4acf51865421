"""One machine's lab on loopback: MLflow, the Prefect server, a worker; Ctrl-C ends all of them.

    python infra/serve.py [--prefect-port 4200] [--mlflow-port 5000] [--runs 1]

On a machine with NVIDIA GPUs there is also one worker of the pool `gpu` per device. The databases are SQLite files;
MLFLOW_BACKEND_STORE_URI and PREFECT_API_DATABASE_CONNECTION_URL name others.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from services import ROOT, Lab, ServeError, until_stopped

from flows.login import LOGIN, new_login, write_login
from gtl_lightning.workspace.addresses import unreachable, without_credentials

HOST = "127.0.0.1"
STORE = "MLFLOW_BACKEND_STORE_URI"
PREFECT_DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"

log = logging.getLogger("serve")


@dataclass(frozen=True)
class Environments:
    """Variables of the services: each is told the secrets that it needs.

    Attributes:
        shared: of all: where the servers are, and how to log in there.
        tracker: besides, of MLflow: its database.
        prefect: besides, of the Prefect server: its database, and the login that it demands.
    """

    shared: dict[str, str]
    tracker: dict[str, str]
    prefect: dict[str, str]


def check_database(url: str, variable: str) -> None:
    """Raise ServeError when a database server does not listen."""
    if reason := unreachable(url):
        where = without_credentials(url)
        raise ServeError(f"the database at {where} does not answer ({reason}); start it, or unset {variable}")


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


def origins(port: int) -> list[str]:
    """Of the pages that a server on a port of this machine has."""
    return [f"http://{host}:{port}" for host in (HOST, "localhost")]


def environments(prefect_port: int, mlflow_port: int, login: dict[str, str]) -> Environments:
    """Values that are set already are kept, addresses and what keeps others out excepted."""
    given = {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PREFECT_HOME": str(ROOT / ".prefect"),
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        STORE: f"sqlite:///{ROOT / 'mlflow.db'}",
        **os.environ,
    }
    given.pop("PREFECT_SERVER_API_AUTH_STRING", None)  # of another server
    tracker = {STORE: given.pop(STORE)}
    prefect = {PREFECT_DATABASE: given.pop(PREFECT_DATABASE)} if PREFECT_DATABASE in given else {}
    api = f"http://{HOST}:{prefect_port}/api"
    commands = str(Path(sys.executable).parent)
    return Environments(
        {
            **given,
            **login,
            "PATH": os.pathsep.join([commands, os.environ.get("PATH", os.defpath)]),
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{mlflow_port}",
            "PREFECT_API_URL": api,
        },
        {
            **tracker,
            "MLFLOW_ARTIFACTS_DESTINATION": str(ROOT / "mlartifacts"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(urlsplit(origin).netloc for origin in origins(mlflow_port)),
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins(mlflow_port)),
        },
        {
            **prefect,
            "PREFECT_SERVER_API_AUTH_STRING": login["PREFECT_API_AUTH_STRING"],
            "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(origins(prefect_port)),
            "PREFECT_UI_API_URL": api,
            # `prefect deployment run --watch` shows a run's log, the reason of a refusal with it, where these are set.
            "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
            "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
        },
    )


def start_tracker(lab: Lab, port: int, variables: dict[str, str]) -> None:
    """Bring MLflow's database up to date, and start its server.

    Raises:
        ServeError: the database cannot be used.
    """
    log.info("bringing MLflow's database up to date")
    # First, and alone: processes that create one database at the same time break each other.
    lab.run(sys.executable, "infra/tracker.py", **variables)
    guarded = (sys.executable, "-m", "uvicorn", "--app-dir", "infra", "--factory", "tracker:tracker")
    lab.start("mlflow", *guarded, "--host", HOST, "--port", str(port), **variables)


def params_stamp() -> int:
    """When params.yaml was written; 0 without one."""
    path = ROOT / "params.yaml"
    return path.stat().st_mtime_ns if path.exists() else 0


def show_grid(lab: Lab, deploy: tuple[str, ...]) -> None:
    """Deploy again, so that the forms show the grid that params.yaml has now; the lab does not depend on it."""
    try:
        lab.run(*deploy)
    except ServeError as error:
        log.info("the forms show the grid that params.yaml had before: %s", error)


def serve(options: argparse.Namespace, ready: Callable[[], None]) -> None:
    """Start everything, call `ready`, and watch until a signal or a failure."""
    check_port(options.prefect_port, "--prefect-port")
    check_port(options.mlflow_port, "--mlflow-port")
    login = new_login()
    variables = environments(options.prefect_port, options.mlflow_port, login)
    check_database(variables.tracker[STORE], STORE)
    check_database(variables.prefect.get(PREFECT_DATABASE, ""), PREFECT_DATABASE)
    lab = Lab(variables.shared)
    try:
        start_tracker(lab, options.mlflow_port, variables.tracker)
        server = ("prefect", "server", "start", "--host", HOST, "--port", str(options.prefect_port))
        lab.start("prefect", *server, **variables.prefect)
        lab.wait_for("prefect", f"http://{HOST}:{options.prefect_port}/api/health")
        lab.wait_for("mlflow", f"http://{HOST}:{options.mlflow_port}/health")
        devices = gpus()
        deploy = ("sh", "infra/deploy.sh", *(() if devices else ("cpu",)))
        log.info("deploying the flows")
        seen = params_stamp()
        lab.run(*deploy)
        worker = ("prefect", "worker", "start", "--type", "process", "--install-policy", "never")
        limit = str(options.runs)
        lab.start("worker-cpu", *worker, "--pool", "cpu", "--limit", limit)
        for gpu in devices:
            name = ("--pool", "gpu", "--name", f"gpu-{gpu}", "--limit", "1")
            lab.start(f"worker-gpu-{gpu}", *worker, *name, CUDA_VISIBLE_DEVICES=gpu)
        write_login(ROOT / LOGIN, {"PREFECT_API_URL": variables.shared["PREFECT_API_URL"], **login})
        ready()
        while True:
            lab.keep_up()
            if (now := params_stamp()) != seen:
                seen = now
                show_grid(lab, deploy)
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

    def ready() -> None:
        log.info("Prefect: http://%s:%d   MLflow: http://%s:%d", HOST, options.prefect_port, HOST, options.mlflow_port)
        log.info("both ask for the password in %s: MLflow for it and the user gtl, Prefect for gtl:PASSWORD", LOGIN)
        log.info(". %s        (gives this server and its password to another terminal)", LOGIN)
        log.info("prefect deployment run scarcity-sweep/local --watch        (Ctrl-C here ends everything)")

    return until_stopped(lambda: serve(options, ready))


if __name__ == "__main__":
    sys.exit(main())
