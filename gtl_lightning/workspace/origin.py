"""Where a tracked run comes from: command, commit and user, as MLflow's pages name them; host and process."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

HOST, PID, BORN = "gtl.host", "gtl.pid", "gtl.born"
"""Tags of the process that logs into a run: the only trace that a SIGKILL leaves."""


def origin() -> dict[str, str]:
    """Tags of the command, the commit and the user."""
    commit = commit_of(Path())
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "git_commit": commit[:12] or "unknown",
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }


def process() -> dict[str, str]:
    """Tags of this process."""
    return {HOST: socket.gethostname(), PID: str(os.getpid()), BORN: repr(psutil.Process().create_time())}


def commit_of(folder: Path) -> str:
    """The commit of the checkout that a folder lies in; empty where there is none."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return str(os.getuid())
