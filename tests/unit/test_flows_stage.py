"""Reading DVC's output: ran, cached, failed, worth another attempt; and keeping secrets out of the log."""

from __future__ import annotations

import pytest

from flows.login import new_login
from flows.runner import Outcome, count_outcomes
from flows.stage import ADVICE, RUN_VARIABLE, Transcript, dvc_command, redact, secret_values, stage_environment


def read(text: str, stage: str = "a") -> Transcript:
    transcript = Transcript(stage)
    for line in text.splitlines():
        transcript.read(line)
    return transcript


@pytest.mark.parametrize(
    ("text", "ran"),
    [
        ("Running stage 'a':\n> echo hi\nhi\nUpdating lock file 'dvc.lock'", True),
        ("Stage 'a' didn't change, skipping\nData and pipelines are up to date.", False),
        ("Stage 'a' is cached - skipping run, checking out outputs", False),
    ],
)
def test_ran_or_cached(text: str, ran: bool) -> None:
    assert read(text).ran is ran


FAILED = """Running stage 'a':
> gtl train
{said}
ERROR: failed to reproduce 'a': failed to run: gtl train, exited with {code}"""


@pytest.mark.parametrize(
    ("text", "reason", "retriable"),
    [
        (FAILED.format(said="error: 1 % leaves 3 examples", code=2), "1 % leaves 3 examples", False),
        (FAILED.format(said="RuntimeError: out of memory", code=1), "RuntimeError: out of memory (exit code 1)", True),
        (FAILED.format(said="step 10", code=-9), "step 10 (exit code -9)", True),
        (FAILED.format(said="sh: gtl: not found", code=127), "sh: gtl: not found (exit code 127)", False),
        ("ERROR: Stage 'a' not found inside 'dvc.yaml' file", "Stage 'a' not found inside 'dvc.yaml' file", False),
        ("ERROR: 'x' is busy, it is being blocked by:", "'x' is busy, it is being blocked by:", True),
        ("", "DVC ended without a word", False),
    ],
)
def test_the_reason_of_a_failure_and_whether_to_retry(text: str, reason: str, retriable: bool) -> None:
    failure = read(text).failure()
    assert failure.reason == reason
    assert failure.retriable is retriable


@pytest.mark.parametrize(("exit_code", "name"), [(-9, "SIGKILL"), (137, "SIGKILL"), (139, "SIGSEGV")])
def test_a_killed_dvc_is_tried_again_whatever_it_said_last(exit_code: int, name: str) -> None:
    failure = read("Use `dvc push` to send your updates to remote storage.").failure(exit_code)
    assert failure.retriable
    assert name in failure.reason


@pytest.mark.parametrize("exit_code", [1, 251, 255])
def test_dvcs_own_exit_codes_are_no_signals(exit_code: int) -> None:
    assert not read("ERROR: Stage 'a' not found inside 'dvc.yaml' file").failure(exit_code).retriable


def test_a_stage_that_prints_like_dvc_does_not_hide_its_exit_code() -> None:
    assert read(FAILED.format(said="ERROR: my own message", code=1)).failure().retriable


def test_the_lock_flag_goes_before_the_subcommand() -> None:
    assert dvc_command("m@1-0")[1:] == ["-m", "dvc", "--wait-for-lock", "repro", "--single-item", "m@1-0"]
    assert dvc_command("data.dvc")[1:] == ["-m", "dvc", "--wait-for-lock", "pull", "data.dvc"]


def test_secrets_are_masked() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "abcdefgh", "A_TOKEN": "abcdefghij", "HOME": "/home/me", "PASSWORD": "ab"}
    secrets = secret_values(environment)
    line = redact("key abcdefghij and abcdefgh at postgresql://me:hunter2@db/x of /home/me, ab", secrets)
    assert line == "key *** and *** at postgresql://***@db/x of /home/me, ab"
    assert redact("http://me:a@b@host:1/x and http://token@host/y", []) == "http://***@host:1/x and http://***@host/y"


def test_the_password_of_the_servers_is_masked() -> None:
    """In each of the forms in which a stage is told it."""
    login = new_login()
    secrets = secret_values(login)
    password = login["MLFLOW_TRACKING_PASSWORD"]
    assert password not in redact(f"{login['PREFECT_API_AUTH_STRING']} {password}", secrets)
    assert secret_values({"PREFECT_API_AUTH_STRING": "gtl:abcdef"}) == ["gtl:abcdef"]


@pytest.mark.parametrize(
    "line", ["", "\tgit add dvc.lock", "To track the changes with git, run:", "\tdvc config core.autostage true"]
)
def test_advice_for_people_at_a_terminal_is_left_out(line: str) -> None:
    assert ADVICE.fullmatch(line)


@pytest.mark.parametrize("line", ["Running stage 'source':", "Updating lock file 'dvc.lock'", "step 1/2, 3 s left"])
def test_what_a_stage_says_is_kept(line: str) -> None:
    assert not ADVICE.fullmatch(line)


def test_counts_name_every_state_that_occurs() -> None:
    states = [Outcome("ran"), Outcome("cached"), Outcome("cached"), Outcome("failed")]
    assert count_outcomes(states) == "1 ran, 2 cached, 1 failed"


def test_a_stage_is_no_process_of_its_flow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is still being stopped must not make a killed flow look alive."""
    monkeypatch.setenv(RUN_VARIABLE, "a-run")
    monkeypatch.setenv("KEPT", "kept")
    environment = stage_environment()
    assert RUN_VARIABLE not in environment
    assert environment["KEPT"] == "kept"


def test_the_variable_of_a_run_is_the_one_that_workers_set() -> None:
    """Prefect's name for it is nowhere a constant."""
    import inspect

    from prefect.runner import _starter_engine

    assert f'"{RUN_VARIABLE}": str(flow_run.id)' in inspect.getsource(_starter_engine)
