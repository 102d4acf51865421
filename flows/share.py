"""Several machines, each with a checkout of its own: results travel through a DVC remote that all of them reach.

Every finished stage is pushed with DVC's run-cache, the record of what a command made of which inputs. Whoever needs
the stage next, on whatever machine, takes it from there and writes its own dvc.lock: nothing is computed twice.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.lockfile import STUDIES
from gtl_lightning.errors import UserError
from gtl_lightning.files import digest
from gtl_lightning.workspace.params import PARAMS


def check_remote(root: Path) -> str:
    """Name of the default DVC remote, if others can reach it.

    Raises:
        UserError: there is none, or it lies in this checkout.
    """
    from dvc.repo import Repo

    add = "`dvc remote add --local --default store s3://BUCKET` (or a shared folder) makes one"
    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        if not name:
            raise UserError(f"share needs a default DVC remote; {add}")
        url = str(repo.config["remote"][name]["url"])
    if "://" not in url and Path(url).resolve().is_relative_to(root.resolve()):
        raise UserError(f"share needs a DVC remote that other machines reach, and {name} lies in this checkout; {add}")
    return str(name)


def version(root: Path) -> str:
    """What has to be equal in every checkout of a sweep: commit, stages, parameters."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError("share compares the commits of checkouts, and there is no git here; install it") from error
    return digest([head.stdout.strip(), *(path.read_text() for path in _told(root))])


def _told(root: Path) -> list[Path]:
    """The files that say what exists: the project's, and those of its studies."""
    return [
        root / "dvc.yaml",
        root / PARAMS,
        *sorted(root.glob(f"{STUDIES}/dvc.yaml")),
        *sorted(root.glob(f"{STUDIES}/{PARAMS}")),
    ]


def push_command(stages: Sequence[str]) -> list[str]:
    """The command that gives stages to the others."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "push", "--run-cache", *stages]
