"""dvc.lock after a kill: DVC writes it in place, so a SIGKILL at that moment leaves half a file, which DVC refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

LOCKFILE = "dvc.lock"
DAMAGED = "dvc.lock.damaged"


def mend_lockfile(root: Path) -> bool:
    """Move a half-written dvc.lock aside; return whether it was one.

    Nothing is lost: DVC's run-cache still knows what every stage made, and writes the file anew without running any.
    """
    path = root / LOCKFILE
    if is_whole(path):
        return False
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        # Now that nobody writes it, look again.
        if is_whole(path):
            return False
        os.replace(path, root / DAMAGED)
    return True


def is_whole(path: Path) -> bool:
    """Whether a dvc.lock can be read, or there is none."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except FileNotFoundError:
        return True
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(content, dict) and "schema" in content and isinstance(content.get("stages", {}), dict)
