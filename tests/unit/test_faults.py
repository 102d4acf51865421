"""What the machine does to a command is one line; a bug keeps its traceback."""

from __future__ import annotations

import errno
import os
import sqlite3
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import httpx
import pytest
import requests
import sqlalchemy.exc
import torch
from mlflow.exceptions import MlflowException

from flows.cli import main
from gtl_lightning.errors import UserError, environment_fault
from gtl_lightning.workspace.addresses import resolve_uri, unreachable, without_credentials

FAULTS = {
    "full disk": (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "models/x"),
        "models/x: No space left on device; make",
    ),
    "read-only folder": (
        OSError(errno.EROFS, os.strerror(errno.EROFS), "a"),
        "a: Read-only file system; choose a writ",
    ),
    "no right": (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied; ask for the right"),
    "no program": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "git"),
        "git: No such file or directory",
    ),
    "too many files": (OSError(errno.EMFILE, "Too many open files"), "Too many open files; raise the limit"),
    "no memory": (MemoryError(), "not enough memory"),
    "numpy's memory": (
        MemoryError("Unable to allocate 3 GiB\nfor an array"),
        "not enough memory (Unable to allocate 3 GiB",
    ),
    "torch's memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "not enough memory (Default"),
    "the GPU's memory": (
        torch.OutOfMemoryError("CUDA out of memory.\nTried"),
        "not enough memory (CUDA out of memory.)",
    ),
    "a killed process": (BrokenProcessPool("x"), "a process of this command was killed"),
    "text of another code": (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid byte"), "no valid UTF-8"),
    "the tracker": (MlflowException("it broke\nat length"), "the tracker or its database failed: it broke;"),
    "its database": (
        sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("disk I/O error")),
        "the tracker or its database failed: (builtins.Exception) disk I/O error",
    ),
    "another database": (sqlite3.OperationalError("database or disk is full"), "a database failed: database or disk"),
    "a server": (httpx.ConnectError("All connection attempts failed"), "a server does not answer: All connection"),
    "a download": (requests.ConnectionError("no route\nto host"), "no route; run it again"),
}
BUGS = (
    ValueError("x"), KeyError("x"), AssertionError("x"), TypeError("x"), RuntimeError("shape mismatch"), IndexError(0),
    AttributeError("x"), ZeroDivisionError(),
)  # fmt: skip


def run(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("gtl_lightning.commands.data.open_params", fail)
    monkeypatch.setattr("sys.argv", ["gtl", "split"])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_machine_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, said = FAULTS[name]
    assert run(error, monkeypatch) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_fault(error) is None
    with pytest.raises(type(error)):
        run(error, monkeypatch)


def test_what_a_person_can_mend_ends_with_2_and_ctrl_c_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(UserError("data/ is empty; import something"), monkeypatch) == 2
    assert capsys.readouterr().err == "error: data/ is empty; import something\n"
    assert run(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err.strip() == "stopped; the same command goes on from what it has kept"


def test_an_empty_address_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert resolve_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("address", ["http://host:port", "http://[::1", "http://host:99999999"])
def test_an_address_that_is_none_is_named(address: str) -> None:
    assert "it is no address" in str(unreachable(address))
    assert "secret" not in without_credentials(address.replace("//", "//me:secret@"))


def test_a_hub_address_that_is_none_is_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from gtl_lightning.data.hub import endpoint, hub_reachable

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://host:port")
    assert not hub_reachable()
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert endpoint() == "https://huggingface.co"
