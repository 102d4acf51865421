"""One DVC stage made true by `dvc repro`: whether that took a run or the cache, or why it failed."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prefect.logging import get_run_logger

from flows.grid import DATA_SUFFIX
from flows.group import is_stopped, run_group
from flows.lockfile import BUSY, mend_lockfile, mend_rwlock, wait_until_free
from gtl_lightning.workspace.addresses import hide_credentials

Result = Literal["ran", "cached"]

USER_ERROR = 2  # exit code of `gtl` for something only its user can mend
HOPELESS = (USER_ERROR, 126, 127)  # the last two: the shell cannot start or find the command
# DVC's names of stages and of points of a matrix; in front, the dvc.yaml of a study.
ADDRESS = re.compile(r"(gtl_lightning/studies/\w+/dvc\.yaml:)?[A-Za-z0-9_][\w.-]*(@[\w.-]+)?")
# Without the flag, which belongs in front of the subcommand, parallel stages lose the repository's lock.
DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
NO_SPACE = os.strerror(errno.ENOSPC)
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"  # in the environment of a process that a worker started for a run
SECRET = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|AUTH_STRING|API_KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
# What DVC tells a person at a terminal after every stage; a sweep has dozens.
ADVICE = re.compile(
    r"\s*(To track the changes with git, run:|git add .*|To enable auto staging, run:|dvc config core\.\S+ true"
    r"|Use `dvc push` .*)?\s*"
)


class StageError(Exception):
    """A stage that did not end well.

    Attributes:
        reason: one line for people.
        retriable: whether the same command may succeed next time.
        busy: path that another process has locked, where that is the reason.
    """

    def __init__(self, reason: str, retriable: bool = False, busy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.retriable = retriable
        self.busy = busy


@dataclass
class Transcript:
    """What DVC's output says: whether the stage ran, and why it failed."""

    stage: str
    ran: bool = False
    exit_code: int | None = None
    _user_error: str = field(default="", repr=False)
    _dvc_error: str = field(default="", repr=False)
    _last: str = field(default="", repr=False)
    _disk_is_full: bool = field(default=False, repr=False)

    def read(self, line: str) -> None:
        """Take in one line of output."""
        text = line.strip()
        self._disk_is_full |= NO_SPACE in text
        if text.startswith(f"Running stage '{self.stage}'"):
            self.ran = True
        elif text.startswith("ERROR: "):
            exited = re.search(r"exited with (-?\d+)$", text)
            self.exit_code = int(exited.group(1)) if exited else None
            self._dvc_error = text.removeprefix("ERROR: ")
        elif text.startswith("error: "):
            self._user_error = text.removeprefix("error: ")
        elif text and not text.startswith("> "):
            self._last = text

    def failure(self, exit_code: int = 1) -> StageError:
        """Why it failed, and whether another attempt makes sense.

        Args:
            exit_code: of DVC itself; below zero, or above 128, it was killed.
        """
        if killed := _signal_name(exit_code):
            # By the machine (no memory) or by hand: what DVC said last is no reason.
            return StageError(f"killed by {killed}; it goes on from its last checkpoint", retriable=True)
        if self._disk_is_full:
            return StageError("the disk is full; make room and run again: finished stages and checkpoints are kept")
        if self.exit_code is None:
            reason = self._dvc_error or self._last or "DVC ended without a word"
            if busy := BUSY.search(reason):
                return StageError(reason, retriable=True, busy=busy["path"])
            return StageError(reason, retriable="Unable to acquire lock" in reason)
        if self.exit_code == USER_ERROR and self._user_error:
            return StageError(self._user_error)
        reason = f"{self._user_error or self._last or self._dvc_error} (exit code {self.exit_code})"
        return StageError(reason, retriable=self.exit_code not in HOPELESS)


def _signal_name(exit_code: int) -> str | None:
    number = -exit_code if exit_code < 0 else exit_code - 128
    return signal.Signals(number).name if number in set(signal.Signals) else None


def reproduce(
    stage: str, root: Path, *, owner: str, minutes: float | None = None, share: bool = False, upstream: bool = False
) -> Result:
    """`dvc repro` of one stage in a process group of its own, every line of output logged.

    What another process of this checkout is making is waited for, and its result taken.

    Args:
        stage: address.
        root: the repository.
        owner: id of the flow run; `stop_groups(owner)` stops the stage.
        minutes: time limit.
        share: fetch from the DVC remote before, push to it afterwards.
        upstream: first bring about what the stage needs: a checkout that has taken no part in the sweep so far.

    Raises:
        StageError: the stage failed, was stopped, or exceeded its time.
    """
    log = get_run_logger()
    started = time.monotonic()
    limit = None if minutes is None else 60 * minutes
    check_address(stage)
    command = dvc_command(stage, pull=share, upstream=upstream)
    result: Result = "ran" if _run_when_free(command, stage, root, owner, limit).ran else "cached"
    if share and not stage.endswith(DATA_SUFFIX):
        push([stage], root, owner=owner)
    log.info("%s: %s in %.1f s", stage, result, time.monotonic() - started)
    return result


def push(stages: list[str], root: Path, *, owner: str) -> None:
    """Give finished stages, and DVC's record of how they were made, to the default remote.

    Raises:
        StageError: the remote cannot be reached, refuses, or the push was stopped.
    """
    _run_logged([*DVC, "push", "--run-cache", *stages], stages[0], root, owner)


def check_address(stage: str) -> None:
    """Refuse what is no stage of the root's dvc.yaml or of a study's: an option of DVC, another folder's file.

    Raises:
        StageError: naming it.
    """
    if not ADDRESS.fullmatch(stage):
        raise StageError(f"{stage!r} is no address of a stage; `dvc stage list` shows those there are")


def _run_when_free(command: list[str], stage: str, root: Path, owner: str, limit: float | None) -> Transcript:
    log = get_run_logger()
    while True:
        try:
            return _run_logged(command, stage, root, owner, limit)
        except StageError as failure:
            if not failure.busy:
                raise
            log.info("%s: another process is at it", stage)
            if not wait_until_free(root, failure.busy, log.info, lambda: is_stopped(owner)):
                raise StageError("stopped with its flow while it waited for another process") from failure


def _run_logged(command: list[str], stage: str, root: Path, owner: str, limit: float | None = None) -> Transcript:
    log = get_run_logger()
    secrets = secret_values(os.environ)
    transcript = Transcript(stage)

    def on_line(line: str) -> None:
        line = redact(line, secrets)
        transcript.read(line)
        if not ADVICE.fullmatch(line):
            log.info("%s", line)

    ended = run_group(command, owner=owner, cwd=root, env=stage_environment(), on_line=on_line, time_limit=limit)
    if ended.cause == "time limit":
        assert limit is not None
        raise StageError(
            f"stopped after {limit / 60:g} minutes; raise time_limit_minutes, it goes on from its last checkpoint"
        )
    if ended.cause == "stopped":
        raise StageError("stopped with its flow; the next run goes on from its last checkpoint")
    if ended.exit_code and mend_lockfile(root):
        raise StageError(
            "dvc.lock was left half-written by a killed stage; DVC's run-cache restores it", retriable=True
        )
    if ended.exit_code:
        failure = transcript.failure(ended.exit_code)
        own = transcript.exit_code is None and not failure.busy  # DVC's, not the stage's, and nobody to wait for
        if own and mend_rwlock(root):
            raise StageError("a killed process left half of DVC's rwlock; it is removed", retriable=True)
        raise failure
    return transcript


def dvc_command(stage: str, *, pull: bool = False, upstream: bool = False) -> list[str]:
    """The command that makes a stage, or stored data, exist."""
    if stage.endswith(DATA_SUFFIX):
        return [*DVC, "pull", stage]
    options = [*(["--pull"] if pull else []), *([] if upstream else ["--single-item"])]
    return [*DVC, "repro", *options, stage]


def stage_environment() -> dict[str, str]:
    """This process's environment, with the interpreter's commands (`gtl`, `dvc`) found first."""
    commands = str(Path(sys.executable).parent)
    # A stage is no process of the run: one that is still being stopped must not make a killed flow look alive.
    own = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
    return {
        **own,
        "PATH": os.pathsep.join([commands, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of variables whose name says that they are secret, the longest first."""
    values = {value for name, value in environment.items() if SECRET.search(name) and len(value) >= 6}
    return sorted(values, key=len, reverse=True)


def redact(line: str, secrets: list[str]) -> str:
    """The line without secrets, and without the credentials in addresses."""
    for secret in secrets:
        line = line.replace(secret, "***")
    return hide_credentials(line)
