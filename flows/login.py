"""The password of the servers that `make serve` starts: new at every start, in a file that its owner alone may read.

Neither a command line nor a log holds it: processes take it from their environment, people from the file.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from gtl_lightning.errors import UserError
from gtl_lightning.files import atomic_path
from gtl_lightning.inputs import read_text

LOGIN = Path(".prefect/server.env")
USER = "gtl"
LARGEST = 1 << 16
"""Bytes of a file of variables."""
LINE = re.compile(r"^export (\w+)=(\S*)$", re.MULTILINE)


def new_login() -> dict[str, str]:
    """Variables with a password of 192 random bits, by which the clients of Prefect and of MLflow log in."""
    password = secrets.token_hex(24)
    return {
        "PREFECT_API_AUTH_STRING": f"{USER}:{password}",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
    }


def write_login(path: Path, variables: Mapping[str, str]) -> None:
    """Write variables for a shell to read (`. FILE`), readable for the owner alone from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w") as file:
            file.writelines(f"export {name}={value}\n" for name, value in variables.items())


def read_login(path: Path) -> dict[str, str]:
    """Variables that `write_login` wrote; none when the file is not there or cannot be read."""
    try:
        return dict(LINE.findall(read_text(path, LARGEST)))
    except (UserError, UnicodeDecodeError):
        return {}
