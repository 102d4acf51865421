"""MLflow alone, on loopback and behind a password, until Ctrl-C: python infra/ui.py [--mlflow-port 5000]."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from serve import HOST, STORE, check_database, check_port, environments, start_tracker
from services import ROOT, Lab, until_stopped

from flows.login import new_login, write_login
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.pages import comparisons, experiment_place
from gtl_lightning.workspace.params import PARAMS, Params, load_params
from gtl_lightning.workspace.tracking import find_experiment

LOGIN = Path(".prefect/ui.env")

log = logging.getLogger("serve")


def show(port: int) -> None:
    """Start the server, say where it is, and watch it until a signal or a failure."""
    check_port(port, "--mlflow-port")
    login = new_login()
    variables = environments(0, port, login)
    check_database(variables.tracker[STORE], STORE)
    lab = Lab(variables.shared)
    try:
        start_tracker(lab, port, variables.tracker)
        lab.wait_for("mlflow", f"http://{HOST}:{port}/health")
        tracker = {name: value for name, value in login.items() if name.startswith("MLFLOW_")}
        write_login(ROOT / LOGIN, tracker)
        experiment = find(variables.tracker[STORE])
        place = experiment_place(experiment) if experiment else ""
        said = "all runs: http://%s:%d/%s   it asks for the user gtl and the password in %s"
        log.info(said, HOST, port, place, LOGIN)
        for what, where in (comparisons(experiment) if experiment else {}).items():
            log.info("%s: http://%s:%d/%s", what, HOST, port, where)
        while True:
            lab.keep_up()
            time.sleep(1)
    finally:
        lab.stop()


def find(store: str) -> str | None:
    """The id of params.yaml's experiment; None while there is none."""
    try:
        tracking = (load_params() if PARAMS.exists() else Params()).tracking
        return find_experiment(store, tracking.experiment)
    except UserError as error:
        log.warning("%s", error)
        return None


def main() -> int:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description="MLflow on loopback, until Ctrl-C.")
    parser.add_argument("--mlflow-port", type=int, default=5000, help="port of the MLflow server and its pages")
    options = parser.parse_args()
    return until_stopped(lambda: show(options.mlflow_port))


if __name__ == "__main__":
    sys.exit(main())
