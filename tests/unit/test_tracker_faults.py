"""A tracker that is there and of no use: it answers 500, resets, says nothing, or a byte now and then. One line."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from gtl_lightning.errors import UserError
from gtl_lightning.workspace import mlflow_client
from gtl_lightning.workspace.mlflow_client import (
    DEFAULTS,
    PATIENCE_SECONDS,
    RETRIES,
    TIMEOUT,
    one_line,
    patience,
    within,
)
from gtl_lightning.workspace.params import Params, write_params
from tests.unit.test_commands import run

HEAD = b"HTTP/1.1 %s x\r\nContent-Length: %d\r\n%sConnection: close\r\n\r\n%s"
DENIED = b'{"error_code": "PERMISSION_DENIED", "message": "you may read alone"}'
ANSWERS = {
    "500": HEAD % (b"500", 2, b"", b"{}"),
    "403": HEAD % (b"403", len(DENIED), b"Content-Type: application/json\r\n", DENIED),
    "429": HEAD % (b"429", 2, b"Retry-After: 3600\r\n", b"{}"),
    "html": HEAD % (b"200", 8, b"", b"<html>\n\n"),
    "list": HEAD % (b"200", 2, b"", b"[]"),
    "half": HEAD % (b"200", 1000, b"", b"{"),
    "noise": b"\0\xff" * 50 + b"\r\n\r\n",
}


def answer(how: str, connection: socket.socket, over: threading.Event) -> None:
    with connection, suppress(OSError):
        connection.recv(1 << 16)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "silent":
            over.wait()
        elif how == "drip":
            connection.sendall(HEAD % (b"200", 10**6, b"", b"{"))
            while not over.wait(0.05):
                connection.sendall(b" ")
        else:
            connection.sendall(ANSWERS[how])


@contextmanager
def tracker(how: str) -> Iterator[str]:
    """The address of a server that answers every request like that."""
    over = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection = listening.accept()[0]
                    threading.Thread(target=answer, args=(how, connection, over), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        over.set()
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bounded by seconds is bounded by one here, and repetitions follow at once."""
    monkeypatch.setattr(mlflow_client, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("command", [("sample", "--model", "any@best"), ("report",)], ids=["reads", "writes"])
@pytest.mark.parametrize("how", [*ANSWERS, "reset", "silent", "drip"])
def test_a_tracker_that_fails_is_one_line(
    how: str,
    command: tuple[str, ...],
    hurried: None,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("workspace"))
    write_params(Params())
    monkeypatch.setattr("gtl_lightning.stages.report.make_report", opened_study)
    with tracker(how) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert run(command, monkeypatch) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"tracking at {uri} failed: " in line
    assert how != "403" or "you may read alone" in line
    assert how not in ("silent", "drip", "429") or "no answer within 1 s" in line


def opened_study(params: Params) -> None:
    from gtl_lightning.workspace.tracking import Study

    Study(params.tracking.uri, params.tracking.experiment, {})


def test_who_sets_the_limits_of_mlflow_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TIMEOUT, RETRIES):
        monkeypatch.delenv(name, raising=False)
    assert patience() == PATIENCE_SECONDS
    monkeypatch.setenv(TIMEOUT, "100")
    assert patience() == PATIENCE_SECONDS + 100 * (DEFAULTS[RETRIES] + 1)
    monkeypatch.setenv(RETRIES, "0")
    assert patience() == PATIENCE_SECONDS + 100


@pytest.mark.parametrize("name", [TIMEOUT, RETRIES])
@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "9" * 5000])
def test_a_limit_that_is_no_count_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"the environment variable {name} is "):
        patience()


def test_what_a_call_gives_or_raises_comes_through() -> None:
    assert within(60, lambda: 5) == 5
    with pytest.raises(KeyError, match="absent"):
        within(60, lambda: {}["absent"])
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        within(0.01, threading.Event().wait)


@pytest.mark.parametrize("code", ["RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"])
def test_what_a_tracker_does_not_know_is_no_fault_of_its_disk(code: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    with pytest.raises(UserError) as refused, one_line("sqlite:///a.db"):
        raise MlflowException("Model alias 9 not found.", ErrorCode.Value(code))
    assert str(refused.value) == "tracking at sqlite:///a.db says: Model alias 9 not found; name what is there"
    with pytest.raises(UserError, match="see that it runs and its disk has room"), one_line("sqlite:///a.db"):
        raise MlflowException("database is locked")
