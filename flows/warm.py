"""A process that has imported what stages need and forks for each: of 22 s of processor time of a small training, 9.

A sweep brings it along (`standing_by`); its stages find it by a variable of their environment (entry.py). It imports at
the first request. It runs nothing that a process of its own would not run alike: whoever asks from another environment,
or after the code, a package or params.yaml was edited, is refused and runs by itself.

It is bound to the sweep by its standard input, a pipe: when that ends it takes no more, and ends with its last stage. A
stage is bound to it by the kernel and to whoever asked by the connection: when either is killed, so is the stage.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import site
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from flows.entry import MESSAGE_BYTES, WARM, leave, named_short, same_user
from gtl_lightning.files import sha256_file
from gtl_lightning.resources import keep_freed_memory, limit_threads
from gtl_lightning.workspace.closure import PACKAGE, ROOT, TRAINING, closure
from gtl_lightning.workspace.params import PARAMS, load_params
from gtl_lightning.workspace.watched import begin_with

IMPORTED = (
    "flows.cli",
    *(f"{PACKAGE}.stages.{name}" for name in ("train", "evaluate", "real", "report", "register")),
    *(
        "mlflow.store.tracking.sqlalchemy_store",
        "pytorch_lightning.loggers.mlflow",
        "mauve",
        "peft",
        "ruamel.yaml",
        "s3fs",
    ),
)
"""What stages start with, and what they import where they use it."""
OF_A_COMMAND = ("_", "OLDPWD", "PATH", "PWD", "SHLVL", WARM)
"""Variables that DVC and the shell set for each command, beside those of DVC's name: no import reads them."""
ASKING_SECONDS = 5.0
PR_SET_PDEATHSIG = 1


@contextmanager
def standing_by(root: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """A warm process for stages that are run inside; none where the system holds no process by a descriptor.

    Args:
        root: the repository.
        environment: of the stages.
    """
    folder = root / ".dvc" / "tmp"
    if not hasattr(os, "pidfd_open") or not folder.is_dir():
        yield
        return
    address = folder / f"warm-{uuid4().hex[:12]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        os.fchmod(listener.fileno(), 0o600)  # the file gets the mode of the socket
        with named_short(address) as name:
            listener.bind(name)
        listener.listen()
        process = subprocess.Popen(
            # Not by -m: the commands' usage would name this file.
            [sys.executable, "-P", "-c", f"from flows.warm import serve; serve({listener.fileno()}, {str(address)!r})"],
            cwd=root,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    os.environ[WARM] = str(address)
    try:
        yield
    finally:
        os.environ.pop(WARM, None)
        process.kill()
        process.communicate()
        address.unlink(missing_ok=True)


def serve(descriptor: int, address: str) -> None:
    """Fork for each request at a listening socket, until standard input ends and no stage runs any more."""
    _Warm(socket.socket(fileno=descriptor), Path(address)).serve()


@dataclass(frozen=True)
class _Stage:
    """A command that runs: its process, and the connection of whoever asked for it."""

    pid: int
    handle: int
    line: socket.socket


class _Warm:
    def __init__(self, listener: socket.socket, address: Path) -> None:
        self._listener, self._address = listener, address
        self._environment = _lasting(os.environ)
        self._code: dict[str, str] | None = None
        self._stages: list[_Stage] = []
        self._events = selectors.DefaultSelector()
        self._events.register(0, selectors.EVENT_READ, self._close)
        self._events.register(listener, selectors.EVENT_READ, self._take)

    def serve(self) -> None:
        while self._listener.fileno() >= 0 or self._stages:
            self._events.select()[0][0].data()  # one at a time: it may make the others void

    def _close(self) -> None:
        """The sweep was killed: the heads of its groups will interrupt what still runs."""
        self._events.unregister(0)
        self._events.unregister(self._listener)
        self._listener.close()
        self._address.unlink(missing_ok=True)

    def _take(self) -> None:
        """One request: fork for it, or refuse it by closing the connection. The first one pays for the imports."""
        line, _ = self._listener.accept()
        line.settimeout(ASKING_SECONDS)
        if self._code is None:
            self._import()
        descriptors: Sequence[int] = ()
        try:
            message, descriptors, _, _ = socket.recv_fds(line, MESSAGE_BYTES, 3)
            request = json.loads(message)
            if len(descriptors) != 3 or not same_user(line) or not self._would_run_alike(request):
                raise ConnectionRefusedError
            self._fork(request, line, descriptors)
        except (OSError, ValueError):
            line.close()
        for descriptor in descriptors:
            os.close(descriptor)

    def _would_run_alike(self, request: Mapping[str, Any]) -> bool:
        """Whether this process, forked, is what one of its own would become."""
        if request["folder"] != str(Path.cwd()) or _lasting(request["environment"]) != self._environment:
            return False
        return _written() == self._code

    def _import(self) -> None:
        before = _written()
        limit_threads(load_params().machine.threads)
        for name in IMPORTED:
            importlib.import_module(name)
        _fill_tables()
        keep_freed_memory()
        gc.collect()
        gc.freeze()  # else each stage walks over all that was imported, and gets a copy of it
        alone = threading.active_count() == 1  # a fork has no thread but its own
        self._code = before if alone and _written() == before else {}

    def _fork(self, request: Mapping[str, Any], line: socket.socket, descriptors: Sequence[int]) -> None:
        own = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                self._become(request, [*descriptors], own)
            finally:
                os._exit(1)
        stage = _Stage(pid, os.pidfd_open(pid), line)
        self._stages.append(stage)
        self._events.register(stage.handle, selectors.EVENT_READ, partial(self._ended, stage))
        self._events.register(line, selectors.EVENT_READ, partial(self._given_up, stage))
        with suppress(OSError):  # whoever asked is gone: the connection says so
            socket.send_fds(line, [b"begun"], [stage.handle])

    def _given_up(self, stage: _Stage) -> None:
        """Whoever asked for it was killed."""
        self._events.unregister(stage.line)
        signal.pidfd_send_signal(stage.handle, signal.SIGKILL)

    def _ended(self, stage: _Stage) -> None:
        self._stages.remove(stage)
        self._events.unregister(stage.handle)
        with suppress(KeyError):
            self._events.unregister(stage.line)
        _, status = os.waitpid(stage.pid, 0)
        with suppress(OSError):
            stage.line.send(str(status).encode())
        stage.line.close()
        os.close(stage.handle)

    def _become(self, request: Mapping[str, Any], descriptors: list[int], warm: int) -> None:
        """Be the command, in the process that was forked."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != warm:  # killed before the line above
            os._exit(1)
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        for stage in self._stages:
            os.close(stage.handle)
            stage.line.close()
        self._events.close()
        self._listener.close()
        os.environ.update(request["environment"])
        sys.argv[:] = ["gtl", *request["arguments"]]
        assert self._code is not None
        begin_with(self._code)
        from flows.cli import main

        code: object = 1
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        leave(code if isinstance(code, int) else int(code is not None))


def _fill_tables() -> None:
    """What is made once a process, of nothing but code, and kept: a second of work for each stage."""
    from sqlalchemy.orm import configure_mappers
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    configure_mappers()
    get_checkpoint_conversion_mapping("bert")
    closure(TRAINING)


def _lasting(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environment.items() if name not in OF_A_COMMAND and not name.startswith("DVC_")
    }


def _written() -> dict[str, str]:
    """File of the project -> its hash, and when a package was last installed: what stands on the disk now."""
    files = sorted(path for package in (PACKAGE, "flows") for path in (ROOT / package).rglob("*.py"))
    found = {path.relative_to(ROOT).as_posix(): sha256_file(path) for path in files}
    found[str(PARAMS)] = sha256_file(PARAMS)
    return found | {folder: str(Path(folder).stat().st_mtime_ns) for folder in site.getsitepackages()}
