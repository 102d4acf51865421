"""A stage as a flow run of its own, on whichever worker of a pool takes it: one GPU worker runs one stage at a time."""

from __future__ import annotations

import time
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.group import is_stopped
from flows.outcome import Result, StageError

POLL_SECONDS = 1.0


def run_on_pool(deployment: str, *, stage: str, label: str, minutes: float | None, owner: str) -> Result:
    """Start a run of the flow `stage` and wait for it; cancel it when the owner is stopped.

    Args:
        deployment: `stage/gpu`, for example; its workers share this repository's folder.
        stage: address of the DVC stage.
        label: name of the run.
        minutes: time limit of the stage, which its worker enforces.
        owner: id of the flow run that asks.

    Raises:
        StageError: no such deployment, or the run ended otherwise than Completed.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise StageError(f"deployment {deployment} does not exist; `prefect deploy --all` makes it") from error
        run = client.create_flow_run_from_deployment(
            found.id,
            parameters={"stage": stage, "time_limit_minutes": minutes},
            name=label,
            tags=[f"sweep:{owner}"],
        )
        return _result(_final_state(client, run.id, owner), label)


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
