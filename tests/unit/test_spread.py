"""Jobs side by side: results in order, failures as they were raised, no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.spread import spread

PROGRAM = """
from pathlib import Path
from tests.unit.test_spread import hold
from gtl_lightning.workspace.spread import spread
if __name__ == "__main__":
    spread("held", hold, [({0!r},)])
"""


def later(place: int, seconds: float) -> tuple[int, int]:
    time.sleep(seconds)
    return place, os.getpid()


def after(name: str, sign: str) -> str:
    until(lambda: not sign or Path(sign).exists())
    return name


def refuse(name: str) -> None:
    raise UserError(f"{name} is refused")


def hold(lock: str) -> None:
    with FileLock(lock):
        time.sleep(120)


def test_results_come_in_the_order_of_the_arguments_from_other_processes() -> None:
    found = spread("jobs", later, [(0, 0.3), (1, 0.0), (2, 0.0)])
    assert [place for place, _ in found] == [0, 1, 2]
    assert os.getpid() not in {pid for _, pid in found}


def test_each_result_is_handed_on_while_other_jobs_go_on(tmp_path: Path) -> None:
    sign = tmp_path / "sign"

    def hand_on(name: str) -> None:
        if name == "quick":
            sign.touch()

    assert spread("jobs", after, [("quick", ""), ("patient", str(sign))], hand_on) == ["quick", "patient"]


def test_a_failure_is_raised_as_it_was() -> None:
    with pytest.raises(UserError, match="this is refused"):
        spread("jobs", refuse, [("this",)])


def test_jobs_end_with_a_killed_parent(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(str(lock)))
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, script], env=environment, start_new_session=True) as parent:
        until(lambda: held(lock))
        parent.send_signal(signal.SIGKILL)
    until(lambda: not held(lock))


def held(lock: Path) -> bool:
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def until(what: object, seconds: float = 60) -> None:
    assert callable(what)
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)
