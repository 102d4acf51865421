"""`gtl`: a stage of a sweep is run by the sweep's warm process where there is one (warm.py); everything else, here.

The standard library alone is imported before that is decided: asking takes milliseconds.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

WARM = "GTL_WARM"
"""Variable of a stage's environment: the socket of the sweep's warm process."""
STAGES = ("train", "evaluate", "real", "ablation", "report", "register", "markov", "tcsm", "ar2diff-study")
"""Commands of stages that import torch, Lightning or MLflow."""
MESSAGE_BYTES = 1 << 20
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main() -> None:
    """Run the command line."""
    stage = sys.argv[1:2] != [] and sys.argv[1] in STAGES
    if address := os.environ.get(WARM):
        if not stage:
            knock(address)
        elif (code := ask(address, sys.argv[1:])) is not None:
            _end_as(code)
    from flows.cli import main as run

    try:
        run()
    except SystemExit as end:
        if stage and not end.code:
            leave(0)
        raise


def knock(address: str) -> None:
    """Let the warm process import what it needs, for those who come later."""
    with suppress(OSError), _connected(address):
        pass


def ask(address: str, arguments: list[str]) -> int | None:
    """Let the warm process at `address` run a command with this process's files, folder and environment.

    Signals go on to the command. It is killed if this process is.

    Returns:
        Its exit code, below zero minus the signal that killed it; None where nothing has run, or no longer does: nobody
        answers, it is refused, or the warm process was killed.
    """
    request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with ExitStack() as stack:
        try:
            line = stack.enter_context(_connected(address))
            if not same_user(line):
                return None
            socket.send_fds(line, [json.dumps(request).encode()], [0, 1, 2])
            _, descriptors, _, _ = socket.recv_fds(line, MESSAGE_BYTES, 1)
        except OSError:
            return None
        except KeyboardInterrupt:
            _end_as(-signal.SIGINT)
        if not descriptors:
            return None
        child = descriptors[0]
        with _forwarding(child), suppress(ConnectionError):
            if status := line.recv(MESSAGE_BYTES):
                return os.waitstatus_to_exitcode(int(status))
        with suppress(ProcessLookupError):  # its parent was killed and so is it, but it may not be gone yet
            signal.pidfd_send_signal(child, signal.SIGKILL)
        select.select([child], [], [])
        os.close(child)
        return None


@contextmanager
def _connected(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        with named_short(Path(address)) as name:
            line.connect(name)
        yield line


@contextmanager
def _forwarding(child: int) -> Iterator[None]:
    """Signals that would end this process end the child's, which does it in an orderly way."""

    def forward(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, number)

    before = {number: signal.getsignal(number) for number in FORWARDED}
    for number in before:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def named_short(path: Path) -> Iterator[str]:
    """Another name of a path, for sockets, whose names have 107 letters at most."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def same_user(line: socket.socket) -> bool:
    """Whether the process at the other end is this user's."""
    _, user, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.getuid())


def leave(code: int) -> NoReturn:
    """End this process without taking its modules down, which takes seconds and writes nothing.

    Threads are waited for, functions of `atexit` called, and files flushed, as at any end.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _end_as(code: int) -> NoReturn:
    """End as the command has ended, by the same signal if it was one."""
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
