"""What reconcile makes of runs that the server believes to be alive; no flow is run here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run
from prefect.states import Cancelling, Crashed, Pending, Running

from flows.reconcile import (
    Action,
    Whereabouts,
    locate,
    note_process,
    reconcile,
    runs_here,
)
from flows.remote import OWNER_TAG
from flows.stage import RUN_VARIABLE
from gtl_lightning.workspace.origin import BORN, HOST, PID

HERE = socket.gethostname()


@pytest.fixture
def client(server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def gone() -> int:
    """Id of a process that is over."""
    return subprocess.Popen([sys.executable, "-c", ""]).pid


@flow
def nothing() -> None:
    """For its name."""


def deployed(client: SyncPrefectClient) -> UUID:
    return client.create_deployment(client.create_flow(nothing), f"at-{uuid4()}")


def begun(client: SyncPrefectClient, state: State, deployment: UUID | None = None, **labels: object) -> FlowRun:
    """A run in a state, with labels; `begun(..., tags=[...])` gives it tags."""
    tags = labels.pop("tags", [])
    if deployment is None:
        run = client.create_flow_run(nothing, tags=tags)
    else:
        run = client.create_flow_run_from_deployment(deployment, tags=tags)
    if state.is_cancelling():
        # What has not begun is cancelled at once; only a running flow is asked.
        client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, state, force=True)
    if labels:
        client.update_flow_run_labels(run.id, labels)
    return client.read_flow_run(run.id)


def noted(pid: int, host: str = HERE, born: float | None = None) -> dict[str, object]:
    return {HOST: host, PID: pid, BORN: born if born is not None else 0.0}


def action(client: SyncPrefectClient, run: FlowRun, **options: object) -> Action:
    (verdict,) = [verdict for verdict in reconcile(client, **options) if verdict.run.id == run.id]  # type: ignore[arg-type]
    return verdict.action


def state_of(client: SyncPrefectClient, run: FlowRun) -> str:
    state = client.read_flow_run(run.id).state
    assert state is not None
    return state.name


def test_a_killed_run_of_a_deployment_is_queued_again(client: SyncPrefectClient, gone: int) -> None:
    run = begun(client, Running(), deployed(client), **noted(gone))
    assert action(client, run, dry_run=True) == "retried"
    assert state_of(client, run) == "Running", "a dry run changes nothing"
    assert action(client, run) == "retried"
    assert state_of(client, run) == "AwaitingRetry"
    assert not [verdict for verdict in reconcile(client) if verdict.run.id == run.id], "a second call finds nothing"


def test_a_killed_run_that_was_to_be_cancelled_is_cancelled(client: SyncPrefectClient, gone: int) -> None:
    run = begun(client, Cancelling(), deployed(client), **noted(gone))
    assert action(client, run) == "cancelled"
    assert state_of(client, run) == "Cancelled"


def test_what_no_worker_can_take_is_marked_alone(client: SyncPrefectClient, gone: int) -> None:
    by_hand = begun(client, Running(), **noted(gone))
    of_a_sweep = begun(client, Running(), deployed(client), tags=[f"{OWNER_TAG}x"], **noted(gone))
    actions = {verdict.run.id: verdict.action for verdict in reconcile(client)}
    for run in (by_hand, of_a_sweep):
        assert actions[run.id] == "crashed"
        assert state_of(client, run) == "Crashed"


def test_living_runs_are_left_alone(client: SyncPrefectClient) -> None:
    born = psutil.Process().create_time()
    by_label = begun(client, Running(), **noted(os.getpid(), born=born))
    assert action(client, by_label) == "left alone"
    by_environment = begun(client, Running(), **noted(1, born=1.0))
    environment = {**os.environ, RUN_VARIABLE: str(by_environment.id)}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
    try:
        assert action(client, by_environment) == "left alone"
    finally:
        process.kill()
        process.wait()
    assert action(client, by_environment) == "crashed", "its process is gone, and the noted one is another's"
    client.set_flow_run_state(by_label.id, Crashed(), force=True)


def test_a_run_that_is_being_started_has_its_time(client: SyncPrefectClient, gone: int) -> None:
    for run in (begun(client, Running()), begun(client, Pending(), **noted(gone))):
        assert action(client, run) == "left alone"
        client.set_flow_run_state(run.id, Crashed(), force=True)


def test_another_host_is_believed_until_it_is_given_up(client: SyncPrefectClient) -> None:
    run = begun(client, Running(), deployed(client), **noted(1, host="elsewhere"))
    assert action(client, run) == "left alone"
    assert action(client, run, lost_hosts=["elsewhere"]) == "retried"


def test_slots_of_the_deployment_are_released(client: SyncPrefectClient, gone: int) -> None:
    made = client.create_deployment(client.create_flow(nothing), f"at-{uuid4()}", concurrency_limit=1)
    first, second = (client.create_flow_run_from_deployment(made) for _ in range(2))
    assert client.set_flow_run_state(first.id, Pending()).status.value == "ACCEPT"
    client.set_flow_run_state(first.id, Running(), force=True)
    client.update_flow_run_labels(first.id, noted(gone))
    assert client.set_flow_run_state(second.id, Pending()).status.value != "ACCEPT", "the dead run holds the slot"
    assert action(client, client.read_flow_run(first.id)) == "retried"
    assert client.set_flow_run_state(second.id, Pending()).status.value == "ACCEPT"


def test_a_crashed_run_is_queued_unless_its_deployment_was_run_again(client: SyncPrefectClient) -> None:
    deployment = deployed(client)
    first = begun(client, Crashed(), deployment)
    assert not [verdict for verdict in reconcile(client, crashed=False) if verdict.run.id == first.id]
    assert action(client, first) == "retried"
    again = begun(client, Crashed(), deployment)
    client.set_flow_run_state(first.id, Crashed(), force=True)
    found = [verdict.run.id for verdict in reconcile(client, dry_run=True)]
    assert again.id in found
    assert first.id not in found


@pytest.mark.usefixtures("silent")
def test_a_flow_goes_on_when_the_server_does_not_take_its_note(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(**_: object) -> None:
        asked.append("client")
        raise httpx.ConnectError("the server is being started again")

    monkeypatch.setattr("flows.reconcile.get_client", away)
    note_process()
    assert asked == ["client"]


@flow
def noting() -> UUID:
    note_process()
    return UUID(str(flow_run.get_id()))


def test_a_flow_notes_where_it_lives_and_is_found_there(client: SyncPrefectClient) -> None:
    run = client.read_flow_run(noting())
    client.set_flow_run_state(run.id, Running(), force=True)
    try:
        assert locate(client.read_flow_run(run.id), runs_here()) == Whereabouts("alive", HERE, os.getpid())
    finally:
        client.set_flow_run_state(run.id, Crashed(), force=True)
