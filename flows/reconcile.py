"""`gtl reconcile`: after a killed worker, flow or server, bring what the server believes back to what is true.

A run whose process is gone stays RUNNING for ever: it holds a slot of its pool, and a CANCELLING one waits for a worker
that has died. Both are ended here, which releases their slots, and runs of a deployment are put in the queue again.
Stages need no such care: DVC knows which of them are done, and training goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from prefect.client.orchestration import SyncPrefectClient
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
from prefect.states import Cancelled, Crashed, Scheduled

from flows.dispatch import OWNER_TAG
from flows.liveness import Whereabouts, locate, runs_here

OPEN = [StateType.RUNNING, StateType.CANCELLING, StateType.PENDING]
PAGE = 200
RECENT = timedelta(days=1)  # how far back `crashed` looks
MESSAGE = "its process is gone (gtl reconcile)"

Action = Literal["left alone", "cancelled", "crashed", "retried"]


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
