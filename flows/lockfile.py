"""DVC's own files between processes: dvc.lock and rwlock after a kill, and paths that another process has locked.

DVC writes both in place, so a SIGKILL at that moment leaves half a file, which DVC refuses.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import psutil

from gtl_lightning.errors import UserError
from gtl_lightning.files import decoded, remove, write_json, writing
from gtl_lightning.inputs import named_regular, read_text

LOCKFILE = "dvc.lock"
STUDIES = "gtl_lightning/studies/*"  # each may have a dvc.yaml of its own, and DVC writes its lock beside it
DAMAGED = "dvc.lock.damaged"
RWLOCK = Path(".dvc", "tmp", "rwlock")
BUSY = re.compile(r"'(?P<path>[^']+)' is busy, it is being blocked by:")
"""What DVC says of a path that another process reads or writes."""
POLL_SECONDS = 1.0
SAY_SECONDS = 60.0
BORN_TOLERANCE_SECONDS = 2.0  # a recycled process id belongs to a process of another birth


def mend_lockfile(root: Path) -> bool:
    """Move a half-written dvc.lock, a study's too, aside; return whether there was one.

    Nothing is lost: DVC's run-cache still knows what every stage made, and writes the file anew without running any.

    Raises:
        UserError: it cannot be moved.
    """
    if not damaged_lockfiles(root):
        return False
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        # Now that nobody writes them, look again.
        damaged = damaged_lockfiles(root)
        for path in damaged:
            with writing(path):
                os.replace(path, path.with_name(DAMAGED))
    return bool(damaged)


def mend_rwlock(root: Path) -> bool:
    """Take out of DVC's rwlock what dead processes left there; return whether there was any.

    DVC does so itself where a process is gone. A killed one that its parent has not buried still looks alive to it,
    and half a file stops it.

    Raises:
        UserError: the file cannot be written.
    """
    path = root / RWLOCK
    if not path.exists() or _mended(path) is None:
        return False
    with _rwlock_guard(root):
        # Now that nobody writes it, look again.
        mended = _mended(path)
        if mended is None:
            return False
        if mended:
            write_json(path, mended)
        else:
            remove(path)
    return True


def holders(root: Path, path: str) -> list[int]:
    """Ids of the processes that hold a path, one in it, or one around it, as DVC's rwlock has it."""
    wanted = PurePath(path)
    found = []
    for held, pid in _entries(_read_rwlock(root / RWLOCK) or {}):
        if wanted == PurePath(held) or wanted.is_relative_to(held) or PurePath(held).is_relative_to(wanted):
            found.append(pid)
    return sorted({pid for pid in found if lives(pid)})


def wait_until_free(root: Path, path: str, say: Callable[[str], None], stopped: Callable[[], bool]) -> bool:
    """Wait while other processes hold a path; a dead one's claim is taken away.

    Args:
        root: the repository.
        path: as DVC names it.
        say: told whom it waits for: at once, when that changes, and every minute.
        stopped: ends the waiting.

    Returns:
        Whether the path is free; False when stopped.
    """
    said: list[int] = []
    next_word = 0.0
    while not stopped():
        mend_rwlock(root)
        found = holders(root, path)
        if not found:
            return True
        if found != said or time.monotonic() > next_word:
            said, next_word = found, time.monotonic() + SAY_SECONDS
            names = ", ".join(f"{pid} ({_command(pid)})" for pid in found)
            say(f"waiting for {path}, which process {names} has locked; if that is none of DVC's, remove {RWLOCK}")
        time.sleep(POLL_SECONDS)
    return False


@contextmanager
def _rwlock_guard(root: Path) -> Iterator[None]:
    """What DVC takes while it edits rwlock."""
    from dvc.lock import make_lock
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        hardlink = repo.config["core"].get("hardlink_lock", False)
        guard = make_lock(f"{root / RWLOCK}.lock", tmp_dir=repo.tmp_dir, hardlink_lock=hardlink, wait=True)
    with guard:
        yield


def _mended(path: Path) -> dict[str, Any] | None:
    """The content of an rwlock without dead processes: empty where it was half a file; None if nothing is amiss."""
    content = _read_rwlock(path)
    if content is None:
        return {}
    dead = {pid for _, pid in _entries(content) if not lives(pid)}
    if not dead:
        return None
    read = {held: [info for info in infos if info["pid"] not in dead] for held, infos in content["read"].items()}
    return {
        "write": {held: info for held, info in content["write"].items() if info["pid"] not in dead},
        "read": {held: infos for held, infos in read.items() if infos},
    }


def _read_rwlock(path: Path) -> dict[str, Any] | None:
    """DVC's record, empty without a file; None if it is not one.

    Raises:
        UserError: it is no regular file, or cannot be read.
    """
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    try:
        content: dict[str, Any] = SCHEMA(decoded(read_text(path, remedy="remove it")))
    except UserError:
        if path.exists():
            raise
        return {"write": {}, "read": {}}
    except (ValueError, RecursionError, Invalid):
        return None
    return content


def _entries(content: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Path and process of every claim."""
    for held, info in content.get("write", {}).items():
        yield held, info["pid"]
    for held, infos in content.get("read", {}).items():
        for info in infos:
            yield held, info["pid"]


def lives(pid: int, born: float | None = None) -> bool:
    """Whether a process is there and not merely unburied; of the birth that is given, as an id is used again."""
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
        return born is None or abs(process.create_time() - born) < BORN_TOLERANCE_SECONDS
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # of another user
        return True


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[-80:]
    except psutil.Error:
        return "of another user"


def lockfiles(root: Path) -> list[Path]:
    """The project's dvc.lock and those of its studies, as far as there are any."""
    return [path for path in (root / LOCKFILE, *sorted(root.glob(f"{STUDIES}/{LOCKFILE}"))) if path.exists()]


def damaged_lockfiles(root: Path) -> list[Path]:
    """Those that are half-written."""
    return [path for path in lockfiles(root) if not is_whole(path)]


def is_whole(path: Path) -> bool:
    """Whether a dvc.lock is as DVC writes one, or there is none.

    Half a file is often YAML still: an entry without its command, a field without its value. DVC's own reader decides.

    Raises:
        UserError: it is no regular file, or cannot be read.
    """
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import ParseError, load_yaml
    from voluptuous import Invalid

    try:
        with named_regular(path, "remove it; DVC's run-cache writes it anew") as name:
            COMPILED_LOCKFILE_SCHEMA(load_yaml(name))
    except UserError:
        if path.exists():
            raise
        return True
    except (ParseError, Invalid):
        return False
    return True
