"""`gtl reconcile`: after a killed worker, flow or server, bring what the server believes back to what is true.

A run whose process is gone stays RUNNING for ever: it holds a slot of its pool, and a CANCELLING one waits for a worker
that has died. Both are ended here, which releases their slots, and runs of a deployment are put in the queue again.
A flow notes its host and process in the labels of its run: the only trace that a SIGKILL leaves, for the server cannot
tell a killed run from a busy one.
Stages need no such care: DVC knows which of them are done, and training goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed, Scheduled

from flows.lockfile import lives
from flows.remote import OWNER_TAG
from flows.stage import RUN_VARIABLE
from gtl_lightning.workspace.origin import BORN, HOST, PID

STARTING_SECONDS = 60.0  # a run may be without labels for so long: its process is being started
OPEN = [StateType.RUNNING, StateType.CANCELLING, StateType.PENDING]
PAGE = 200
RECENT = timedelta(days=1)  # how far back `crashed` looks
MESSAGE = "its process is gone (gtl reconcile)"

Life = Literal["alive", "dead", "starting", "elsewhere"]
Action = Literal["left alone", "cancelled", "crashed", "retried"]


@dataclass(frozen=True)
class Whereabouts:
    """What is known of a run's process.

    Attributes:
        life: `elsewhere` is on another host, which this one cannot look into.
        host: where it runs or ran; empty before it said so.
        pid: its process there.
    """

    life: Life
    host: str = ""
    pid: int | None = None


def note_process() -> None:
    """Write this process into the labels of the current flow run; also when the run is retried elsewhere."""
    labels = {
        HOST: socket.gethostname(),
        PID: os.getpid(),
        BORN: psutil.Process().create_time(),
    }
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(UUID(str(flow_run.get_id())), labels)
    except httpx.HTTPError as error:
        # The run itself does not depend on it; `gtl reconcile` then goes by the environment of the processes.
        get_run_logger().warning("the process of this run could not be noted: %s", error)


def locate(run: FlowRun, started_here: Collection[str], lost_hosts: Collection[str] = ()) -> Whereabouts:
    """Find a run's process.

    Args:
        run: of the server.
        started_here: ids of the runs that have a process on this host (`runs_here`).
        lost_hosts: hosts that are known to be gone, with all that ran there.
    """
    if str(run.id) in started_here:
        return Whereabouts("alive", socket.gethostname(), _pid(run))
    host = str(run.labels.get(HOST, ""))
    pid = _pid(run)
    # The labels of a retried run are still those of its last attempt until its new process has begun.
    if not host or pid is None or (run.state and run.state.is_pending()):
        return Whereabouts("starting" if seconds_in_state(run) < STARTING_SECONDS else "dead", host, pid)
    if host in lost_hosts:
        return Whereabouts("dead", host, pid)
    if host != socket.gethostname():
        return Whereabouts("elsewhere", host, pid)
    return Whereabouts("alive" if lives(pid, _number(run.labels, BORN)) else "dead", host, pid)


def runs_here() -> frozenset[str]:
    """Ids of the flow runs that a process on this host was started for."""
    processes = [process.info for process in psutil.process_iter(["status", "environ"])]
    environments = [info["environ"] or {} for info in processes if info["status"] != psutil.STATUS_ZOMBIE]
    return frozenset(run for environment in environments if (run := environment.get(RUN_VARIABLE)))


def seconds_in_state(run: FlowRun) -> float:
    """Since the run came into its state; infinite for a run that has none."""
    return (datetime.now(UTC) - run.state.timestamp).total_seconds() if run.state else float("inf")


def _pid(run: FlowRun) -> int | None:
    noted = _number(run.labels, PID)
    return None if noted is None else int(noted)


def _number(labels: Mapping[str, Any], key: str) -> float | None:
    value = labels.get(key)
    return value if isinstance(value, int | float) else None


@dataclass(frozen=True)
class Verdict:
    """What was done about one run, and why.

    Attributes:
        run: as the server had it.
        whereabouts: of its process.
        action: `crashed` is ended without a retry.
        reason: one line for people.
    """

    run: FlowRun
    whereabouts: Whereabouts
    action: Action
    reason: str


def reconcile(
    client: SyncPrefectClient,
    *,
    lost_hosts: Collection[str] = (),
    crashed: bool = True,
    dry_run: bool = False,
) -> list[Verdict]:
    """End the runs that have no live process, with their tasks, and queue again those that a worker can take.

    Args:
        client: of the server.
        lost_hosts: hosts that will not come back; runs on other hosts than this one are left alone otherwise.
        crashed: also queue again what ended Crashed within the last day, unless its deployment was run again since:
            a worker that sees a flow die, and a flow that sees its worker die, report that much themselves.
        dry_run: change nothing, only tell.
    """
    started_here = runs_here()
    verdicts = []
    for run in open_runs(client):
        whereabouts = locate(run, started_here, lost_hosts)
        verdict = _judge(run, whereabouts)
        if not dry_run and verdict.action != "left alone":
            _end(client, run, verdict.action)
        verdicts.append(verdict)
    if crashed:
        ended_here = {verdict.run.id for verdict in verdicts}
        for run in _crashed_runs(client):
            if run.id in ended_here or _retry_obstacle(run) or _was_replaced(client, run):
                continue
            if not dry_run:
                _retry(client, run)
            verdicts.append(Verdict(run, Whereabouts("dead"), "retried", "it ended Crashed"))
    return verdicts


def open_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """Every run that the server believes to be running, cancelling or starting."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN))
    return _all_pages(client, FlowRunFilter(state=state))


def _judge(run: FlowRun, whereabouts: Whereabouts) -> Verdict:
    if whereabouts.life != "dead":
        reasons = {
            "alive": f"process {whereabouts.pid or ''} is running here".replace("  ", " "),
            "starting": "its process is being started",
            "elsewhere": f"it runs on {whereabouts.host}; ask there, or give --lost-host {whereabouts.host}",
        }
        return Verdict(run, whereabouts, "left alone", reasons[whereabouts.life])
    where = f"process {whereabouts.pid} on {whereabouts.host} is gone" if whereabouts.pid else "it has no process"
    if run.state is not None and run.state.is_cancelling():
        return Verdict(run, whereabouts, "cancelled", f"{where}, and it was to be cancelled")
    if obstacle := _retry_obstacle(run):
        return Verdict(run, whereabouts, "crashed", f"{where}; {obstacle}")
    return Verdict(run, whereabouts, "retried", where)


def _retry_obstacle(run: FlowRun) -> str | None:
    if any(tag.startswith(OWNER_TAG) for tag in run.tags):
        return "the sweep that asked for it starts it again"
    if run.deployment_id is None:
        return "it was started by hand: start it again the same way"
    return None


def _end(client: SyncPrefectClient, run: FlowRun, action: Action) -> None:
    """Tasks first: a run that is queued again must not find a task that seems to be running."""
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=OPEN))),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=MESSAGE), force=True)
    # Any end releases the slots of pool and deployment. It has to be forced: the rules protect a running process.
    ended: State = Cancelled(message=MESSAGE) if action == "cancelled" else Crashed(message=MESSAGE)
    client.set_flow_run_state(run.id, ended, force=True)
    if action == "retried":
        _retry(client, run)


def _retry(client: SyncPrefectClient, run: FlowRun) -> None:
    client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", message="queued by gtl reconcile"), force=True)


def _crashed_runs(client: SyncPrefectClient) -> list[FlowRun]:
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED]))
    since = FlowRunFilterEndTime(after_=datetime.now(UTC) - RECENT)
    return _all_pages(client, FlowRunFilter(state=state, end_time=since))


def _was_replaced(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether its deployment was run again after it: then nobody waits for it any more."""
    assert run.deployment_id is not None
    of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id]))
    (latest,) = client.read_flow_runs(
        deployment_filter=of_deployment, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1
    )
    return latest.id != run.id


def _all_pages(client: SyncPrefectClient, chosen: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(flow_run_filter=chosen, limit=PAGE, offset=len(found))
        found += page
        if len(page) < PAGE:
            return found
