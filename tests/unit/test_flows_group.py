"""Process groups: output, exit codes, and that nothing of a group outlives its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.group import Ended, run_group, stop_groups
from flows.lockfile import lives


def run(command: list[str], owner: str, lines: list[str] | None = None, **options: float) -> Ended:
    into = [] if lines is None else lines
    return run_group(command, owner=owner, cwd=Path.cwd(), env=dict(os.environ), on_line=into.append, **options)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before the file was opened, or while it was read
        return False


def wait_for(path: Path, seconds: float = 10.0) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.02)
    return not alive(pid)


def test_both_streams_arrive_in_order_and_the_exit_code_too() -> None:
    lines: list[str] = []
    ended = run(["sh", "-c", "echo one; echo two >&2; echo three; exit 7"], "a", lines)
    assert lines == ["one", "two", "three"]
    assert ended == Ended(7, "ended")


def test_death_by_a_signal_is_128_and_its_number() -> None:
    assert run(["sh", "-c", "kill -9 $$"], "b").exit_code == 128 + signal.SIGKILL


def test_a_survivor_that_holds_the_output_does_not_hold_the_flow(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid"], "c").exit_code == 0
    assert time.monotonic() - begun < 10
    assert gone(int((tmp_path / "pid").read_text()))


def test_the_time_limit_interrupts_and_then_kills_grandchildren(tmp_path: Path) -> None:
    stubborn = f"sh -c \"trap '' INT TERM; echo \\$\\$ > {tmp_path}/pid; while :; do sleep 0.1; done\" & wait; wait"
    ended = run(["sh", "-c", stubborn], "d", time_limit=0.5, grace=0.5)
    assert ended.cause == "time limit"
    assert gone(int((tmp_path / "pid").read_text()))


def test_stopping_lets_the_stage_clean_up_and_starts_no_more(tmp_path: Path) -> None:
    script = f"trap 'echo tidy > {tmp_path}/tidy; exit 3' INT; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    results: list[Ended] = []
    thread = threading.Thread(target=lambda: results.append(run(["sh", "-c", script], "e")))
    thread.start()
    pid = wait_for(tmp_path / "pid")
    stop_groups("e")
    thread.join(10)
    assert results[0].cause == "stopped"
    assert (tmp_path / "tidy").exists()
    assert gone(pid)
    lines: list[str] = []
    assert run(["echo", "late"], "e", lines).cause == "stopped"
    assert lines == []
    assert run(["echo", "other owner"], "f", lines).cause == "ended"


def test_a_killed_flow_takes_its_stages_with_it(tmp_path: Path) -> None:
    stage = f"trap 'exit 3' INT; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    flow = (
        "import os; from pathlib import Path; from flows.group import run_group;"
        f"run_group(['sh', '-c', {stage!r}], owner='x', cwd=Path('.'), env=dict(os.environ), on_line=print)"
    )
    process = subprocess.Popen([sys.executable, "-c", flow], cwd=Path(__file__).parents[2])
    pid = wait_for(tmp_path / "pid", 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(pid)


def test_a_process_of_another_birth_is_another() -> None:
    """An id is used again; an unburied process is none."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = psutil.Process(process.pid).create_time()
    assert lives(process.pid) and lives(process.pid, born) and lives(process.pid, born + 0.5)
    assert not lives(process.pid, born + 60) and not lives(process.pid, born - 60)
    process.kill()
    assert gone(process.pid)
    assert not lives(process.pid) and not lives(process.pid, born)
    process.communicate()
    assert not lives(process.pid)


def test_an_error_while_reading_stops_the_group(tmp_path: Path) -> None:
    def fail(_line: str) -> None:
        raise RuntimeError("disk full")

    command = ["sh", "-c", f"echo $$ > {tmp_path}/pid; echo line; sleep 60"]
    with pytest.raises(RuntimeError, match="disk full"):
        run_group(command, owner="g", cwd=tmp_path, env=dict(os.environ), on_line=fail)
    assert gone(int((tmp_path / "pid").read_text()))
