"""Files that flows read: what is no such file is refused, not awaited; a server's database is made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import remote
from flows.lockfile import RWLOCK, damaged_lockfiles, holders, mend_rwlock
from flows.login import LARGEST, read_login, write_login
from gtl_lightning.errors import UserError

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "dvc.lock": ("dvc.lock", damaged_lockfiles),
    "a study's dvc.lock": ("gtl_lightning/studies/markov/dvc.lock", damaged_lockfiles),
    "rwlock": (str(RWLOCK), mend_rwlock),
    "rwlock's holders": (str(RWLOCK), lambda root: holders(root, "models")),
    "what a sweep's checkouts share": ("dvc.yaml", remote.version),
}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_and_not_awaited(name: str, kind: str, tmp_path: Path) -> None:
    file, read = READERS[name]
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (os.mkfifo if kind == "pipe" else os.mkdir)(path)
    with pytest.raises(UserError, match=f"cannot read {path}: Is a ") as refused:
        read(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["{", "", "\x00", "schema: [", "- a\n- b"])
def test_what_is_no_lock_file_is_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(content)
    assert damaged_lockfiles(tmp_path) == [tmp_path / "dvc.lock"]


DEEP = '{"write": ' + "[" * 100_000 + "]" * 100_000 + ', "read": {}}'


@pytest.mark.parametrize("content", [DEEP, "[]", '{"write": {"a": {"pid": "x"}}, "read": {}}', "3", "NaN"])
def test_what_is_no_rwlock_is_half_a_file(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from flows import lockfile

    monkeypatch.setattr(lockfile, "_rwlock_guard", lambda root: nullcontext())
    path = tmp_path / RWLOCK
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert holders(tmp_path, "a") == []
    assert mend_rwlock(tmp_path)
    assert not path.exists() or json.loads(path.read_text())


def test_a_login_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "server.env"
    write_login(path, {"A": "b"})
    assert read_login(path) == {"A": "b"}
    path.write_text("export A=b\n" + "#" * LARGEST)
    assert read_login(path) == {}
    path.unlink()
    os.mkfifo(path)
    assert read_login(path) == {}


def test_a_servers_first_start_is_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps that start at once in a fresh clone: two servers would each make the tables, and one would fail."""
    database, at_once, calls = tmp_path / "sweep.db", threading.Semaphore(1), 0
    both = threading.Barrier(2)

    class Server:
        def start(self, timeout: int) -> None:
            nonlocal calls
            assert at_once.acquire(blocking=False)
            calls += 1
            database.touch()
            at_once.release()

    monkeypatch.setattr("prefect.server.api.server.SubprocessASGIServer", Server)

    def start() -> None:
        both.wait()
        remote.start_own_server(database)

    others = [threading.Thread(target=start) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert calls == 1


def test_the_flows_load_no_server_until_one_is_started() -> None:
    """Of seven seconds of imports four were its own, in every stage of a pool and in every `gtl status`."""
    program = "import sys, flows.flows, flows.tables; print('prefect.server.api.server' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
