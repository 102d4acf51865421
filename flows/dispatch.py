"""A stage as a flow run of its own, on whichever worker of a pool takes it: one GPU worker runs one stage at a time."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.group import is_stopped
from flows.outcome import Result, StageError
from gtl_lightning.errors import UserError

POLL_SECONDS = 1.0
OWNER_TAG = "sweep:"  # of a stage's run: begins the tag that names the flow run which asked for it
STAGE_TAG = "stage:"
UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


def run_on_pool(
    deployment: str, *, stage: str, label: str, minutes: float | None, owner: str, told: dict[str, Any] | None = None
) -> Result:
    """Start a run of the flow `stage` and wait for it; cancel it when the owner is stopped.

    A run of the same stage that another owner left behind (a sweep that was killed) is taken over instead.

    Args:
        deployment: `stage/gpu`, for example; its workers share this repository's folder, or share its DVC remote.
        stage: address of the DVC stage.
        label: name of the run.
        minutes: time limit of the stage, which its worker enforces.
        owner: id of the flow run that asks.
        told: further parameters of the flow `stage`.

    Raises:
        StageError: no such deployment, or the run ended otherwise than Completed.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise StageError(_no_deployment(deployment)) from error
        run = _left_behind(client, found.id, stage) or client.create_flow_run_from_deployment(
            found.id,
            parameters={"stage": stage, "time_limit_minutes": minutes, **(told or {})},
            name=label,
            tags=[f"{OWNER_TAG}{owner}", f"{STAGE_TAG}{stage}"],
        )
        return _result(_final_state(client, run.id, owner), label)


def check_pool(deployment: str) -> str | None:
    """A warning when no worker of the deployment's pool is online; None when one is, or the pool needs none.

    Raises:
        UserError: no such deployment.
    """
    with get_client(sync_client=True) as client:
        try:
            found: DeploymentResponse = client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise UserError(_no_deployment(deployment)) from error
        pool = found.work_pool_name
        if pool is None:
            return None
        workers = client.read_workers_for_work_pool(pool)
    if any(worker.status == WorkerStatus.ONLINE for worker in workers):
        return None
    return f"no worker of the pool {pool} is online: stages wait until one is (`prefect worker start --pool {pool}`)"


def _no_deployment(name: str) -> str:
    return f"deployment {name} does not exist on this server; `sh infra/deploy.sh` makes pools and deployments"


def _left_behind(client: SyncPrefectClient, deployment: UUID, stage: str) -> FlowRun | None:
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[f"{STAGE_TAG}{stage}"]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
        ),
        limit=1,
    )
    return runs[0] if runs else None


def _final_state(client: SyncPrefectClient, run_id: UUID, owner: str) -> State:
    cancelled = False
    while True:
        state = client.read_flow_run(run_id).state
        if state is not None and state.is_final():
            return state
        if is_stopped(owner) and not cancelled:
            client.set_flow_run_state(run_id, Cancelling(), force=True)
            cancelled = True
        time.sleep(POLL_SECONDS)


def _result(state: State, label: str) -> Result:
    if state.is_completed():
        return "cached" if state.message == "cached" else "ran"
    # A crash is the machine's doing; a failure has been retried where that made sense.
    raise StageError(state.message or f"the run {label!r} ended {state.name}", retriable=state.is_crashed())
