"""A command in a process group of its own: its output line by line, a time limit, and an end to all of it on demand.

The head of the group is this file as well, run as a script. Its standard input is a pipe that the flow's process holds:
it ends when the flow asks for a stop, and also when the flow's process is killed. No training run outlives its flow.
The standard library alone is imported here: the head starts without site-packages, in milliseconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LEADER = Path(__file__)
"""Run as a script, this file is the head of a group: a command line names it."""
GRACE_SECONDS = 6.0  # from the request to stop until the group is killed

Cause = Literal["ended", "time limit", "stopped"]


@dataclass(frozen=True)
class Ended:
    """How a group came to its end.

    Attributes:
        exit_code: of the command; meaningless unless the cause is `ended`.
        cause: by itself, by the time limit, or because `stop_groups` asked for it.
    """

    exit_code: int
    cause: Cause


class _Group:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.cause: Cause = "ended"

    def stop(self, cause: Cause) -> None:
        """Ask for an end: the leader sees its input end, interrupts the group and kills it after the grace."""
        if self.cause == "ended" and self._process.poll() is None:
            self.cause = cause
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def reap(self, time_limit: float | None) -> None:
        """Wait for the leader, then kill whatever of its group is left: the output ends with the last of them."""
        try:
            self._process.wait(time_limit)
        except subprocess.TimeoutExpired:
            self.stop("time limit")
            self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


_lock = threading.Condition()  # notified when a group has ended
_open: dict[_Group, str] = {}
_stopped: set[str] = set()


def run_group(
    command: Sequence[str],
    *,
    owner: str,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    time_limit: float | None = None,
    grace: float = GRACE_SECONDS,
) -> Ended:
    """Run a command to its end and return how it ended.

    Args:
        command: program and arguments.
        owner: whose command it is; `stop_groups(owner)` stops it, and those that the owner would start later.
        cwd: working directory.
        env: the whole environment.
        on_line: called with every line of standard output and standard error.
        time_limit: seconds after which the group is stopped.
        grace: seconds between the request to stop and SIGKILL.
    """
    with _lock:
        if owner in _stopped:
            return Ended(-1, "stopped")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(LEADER), str(grace), *command],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with _registered(process, owner) as group:
        reaper = threading.Thread(target=group.reap, args=(time_limit,), daemon=True)
        reaper.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                on_line(line.rstrip())
        except BaseException:
            group.stop("stopped")
            raise
        finally:
            reaper.join()
    return Ended(process.returncode, group.cause)


def stop_groups(owner: str) -> None:
    """Stop the owner's commands and start no more. Returns at once; each `run_group` returns when its group is gone."""
    with _lock:
        _stopped.add(owner)
        groups = [group for group, its_owner in _open.items() if its_owner == owner]
    for group in groups:
        group.stop("stopped")


def stop_all(seconds: float) -> None:
    """Stop the commands of every owner, and wait for their end, at most so many seconds."""
    with _lock:
        groups = list(_open)
        _stopped.update(_open.values())
    for group in groups:
        group.stop("stopped")
    with _lock:
        _lock.wait_for(lambda: not _open, seconds)


def is_stopped(owner: str) -> bool:
    """Whether `stop_groups` was called for this owner."""
    with _lock:
        return owner in _stopped


@contextmanager
def _registered(process: subprocess.Popen[str], owner: str) -> Iterator[_Group]:
    group = _Group(process)
    with _lock:
        _open[group] = owner
        late = owner in _stopped
    if late:
        group.stop("stopped")
    try:
        yield group
    finally:
        with _lock:
            del _open[group]
            _lock.notify_all()
        group.stop("stopped")


def lead(arguments: list[str]) -> int:
    """Head of a group: run `GRACE_SECONDS COMMAND...`; return the exit code, 128 + its number for a signal."""
    grace, command = float(arguments[0]), arguments[1:]
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler, not SIG_IGN: that would be inherited by the command.
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_stop_at_end_of_input, args=(child, grace), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _stop_at_end_of_input(child: subprocess.Popen[bytes], grace: float) -> None:
    while os.read(0, 1):
        pass
    # SIGINT is what DVC and the training loop answer in an orderly way: checkpoint, MLflow status, locks.
    os.killpg(0, signal.SIGINT)
    try:
        child.wait(grace)
    finally:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(lead(sys.argv[1:]))
