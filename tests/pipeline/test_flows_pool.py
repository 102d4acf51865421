"""A stage as a run on a pool whose worker is played by the test: waited for, taken over, cancelled with its sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Running
from rich.console import Console

from flows.group import stop_groups
from flows.remote import OWNER_TAG, STAGE_TAG, check_pool, run_on_pool
from flows.stage import Result, StageError
from flows.tables import server_tables
from gtl_lightning.errors import UserError

SECONDS = 30.0


@flow
def played() -> None:
    """For its name."""


class Pool:
    """A deployment of its own, and a sweep that waits for one stage there.

    Args:
        client: of the server.
        threads: in which the sweeps wait.
    """

    def __init__(self, client: SyncPrefectClient, threads: ThreadPoolExecutor) -> None:
        self.client = client
        self._threads = threads
        name = f"at-{uuid4()}"
        self.deployment: UUID = client.create_deployment(client.create_flow(played), name)
        self._named = f"played/{name}"

    def ask(self, owner: str, stage: str = "source") -> Future[Result]:
        """A sweep that waits for the stage, in a thread."""
        return self._threads.submit(run_on_pool, self._named, stage=stage, label=stage, minutes=None, owner=owner)

    def runs(self) -> list[FlowRun]:
        chosen = DeploymentFilter(id=DeploymentFilterId(any_=[self.deployment]))
        return self.client.read_flow_runs(deployment_filter=chosen)

    def run(self) -> FlowRun:
        """The one run, once it is there."""
        wait_until(lambda: len(self.runs()) > 0)
        (run,) = self.runs()
        return run

    def state(self) -> str:
        state = self.run().state
        assert state is not None
        return state.name

    def put(self, state: State) -> None:
        """What a worker would report."""
        self.client.set_flow_run_state(self.run().id, state, force=True)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@pytest.fixture
def client(server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def pool(client: SyncPrefectClient) -> Iterator[Pool]:
    with ThreadPoolExecutor() as threads:
        pool = Pool(client, threads)
        try:
            yield pool
        finally:
            for run in pool.runs():  # or a thread would wait for ever
                client.set_flow_run_state(run.id, Cancelled(), force=True)


@pytest.mark.parametrize(("message", "result"), [("cached", "cached"), ("ran", "ran"), (None, "ran")])
def test_a_stage_on_a_pool_ends_as_its_run_does(pool: Pool, message: str | None, result: Result) -> None:
    asked = pool.ask("pool-ends")
    assert set(pool.run().tags) == {f"{OWNER_TAG}pool-ends", f"{STAGE_TAG}source"}
    assert pool.run().parameters["stage"] == "source"
    pool.put(Completed(message=message))
    assert asked.result(SECONDS) == result


@pytest.mark.parametrize(("state", "retriable"), [(Crashed(message="gone"), True), (Failed(message="gone"), False)])
def test_a_dead_worker_is_worth_another_attempt_and_a_failed_stage_is_not(
    pool: Pool, state: State, retriable: bool
) -> None:
    asked = pool.ask("pool-fails")
    pool.put(state)
    with pytest.raises(StageError, match="gone") as failure:
        asked.result(SECONDS)
    assert failure.value.retriable is retriable


def test_a_run_that_a_killed_sweep_left_behind_is_taken_over(pool: Pool) -> None:
    left = pool.ask("pool-killed")
    first = pool.run().id
    pool.put(Running())
    asked = pool.ask("pool-next")
    other = pool.ask("pool-next", "evaluate-source@0")
    wait_until(lambda: len(pool.runs()) == 2)
    pool.client.set_flow_run_state(first, Completed(message="ran"), force=True)
    (second,) = [run for run in pool.runs() if run.id != first]
    pool.client.set_flow_run_state(second.id, Completed(message="cached"), force=True)
    assert (left.result(SECONDS), asked.result(SECONDS), other.result(SECONDS)) == ("ran", "ran", "cached")
    assert len(pool.runs()) == 2
    again = pool.ask("pool-after")  # what has ended is not taken over
    wait_until(lambda: len(pool.runs()) == 3)
    (third,) = [run for run in pool.runs() if run.id not in (first, second.id)]
    pool.client.set_flow_run_state(third.id, Completed(message="cached"), force=True)
    assert again.result(SECONDS) == "cached"


def test_a_run_that_no_worker_has_taken_is_cancelled_with_its_sweep(pool: Pool) -> None:
    asked = pool.ask("pool-early")
    pool.run()
    stop_groups("pool-early")
    with pytest.raises(StageError) as failure:
        asked.result(SECONDS)
    assert not failure.value.retriable
    assert pool.state() == "Cancelled"


def test_a_run_that_a_worker_has_is_asked_to_stop_and_waited_for(pool: Pool) -> None:
    asked = pool.ask("pool-late")
    pool.put(Running())
    stop_groups("pool-late")
    wait_until(lambda: pool.state() == "Cancelling")
    assert not asked.done()
    pool.put(Cancelled(message="stopped by its worker"))
    with pytest.raises(StageError, match="stopped by its worker"):
        asked.result(SECONDS)


def test_what_has_ended_is_no_longer_cancelled(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep is stopped, and the run ends, after the last look at it and before the request to stop."""
    read = SyncPrefectClient.read_flow_run

    def late(client: SyncPrefectClient, run: UUID) -> FlowRun:
        seen = read(client, run)
        if seen.state is not None and seen.state.is_running():
            stop_groups("pool-race")
            client.set_flow_run_state(run, Completed(message="ran"), force=True)
        return seen

    asked = pool.ask("pool-race")
    pool.run()
    monkeypatch.setattr(SyncPrefectClient, "read_flow_run", late)
    pool.put(Running())
    assert asked.result(SECONDS) == "ran"


def shown(client: SyncPrefectClient) -> str:
    """What `gtl status` says of the server."""
    console = Console(width=300)
    with console.capture() as captured:
        console.print(server_tables(client))
    return captured.get()


def deployed(pool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the making of a pool says, which `infra/deploy.sh` begins with."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "infra"))
    import pools

    monkeypatch.setattr("sys.argv", ["infra/pools.py", pool])
    pools.main()
    return capsys.readouterr().err.strip()


def test_a_pool_without_a_worker_is_a_warning(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start of a sweep, when flows are deployed, and in `gtl status`; it says how to start one."""
    name = f"pool-{uuid4()}"
    client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    client.create_deployment(client.create_flow(played), name, work_pool_name=name)
    warning = check_pool(f"played/{name}")
    assert warning is not None and f"no worker of the pool {name} is online" in warning
    assert f"prefect worker start --pool {name}" in warning
    assert warning in shown(client) and warning in deployed(name, monkeypatch, capsys)
    client.send_worker_heartbeat(name, "a-worker")
    assert check_pool(f"played/{name}") is None
    assert warning not in shown(client) and deployed(name, monkeypatch, capsys) == ""
    with pytest.raises(UserError, match="does not exist on this server"):
        check_pool("played/none")
