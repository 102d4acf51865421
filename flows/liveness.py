"""Which process a flow run lives in, and whether that process is still there.

A flow notes its host and process in the labels of its run. They are the only trace that a SIGKILL leaves: the server
cannot tell a killed run from a busy one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

HOST_LABEL = "gtl.host"
PID_LABEL = "gtl.pid"
BORN_LABEL = "gtl.born"
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"  # in the environment of a process that a worker started for a run
BORN_TOLERANCE_SECONDS = 2.0  # a recycled process id belongs to a process of another birth
STARTING_SECONDS = 60.0  # a run may be without labels for so long: its process is being started

Life = Literal["alive", "dead", "starting", "elsewhere"]


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
        HOST_LABEL: socket.gethostname(),
        PID_LABEL: os.getpid(),
        BORN_LABEL: psutil.Process().create_time(),
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
        return Whereabouts("alive", socket.gethostname(), _number(run.labels, PID_LABEL))
    host = str(run.labels.get(HOST_LABEL, ""))
    pid = _number(run.labels, PID_LABEL)
    # The labels of a retried run are still those of its last attempt until its new process has begun.
    if not host or pid is None or (run.state and run.state.is_pending()):
        return Whereabouts("starting" if seconds_in_state(run) < STARTING_SECONDS else "dead", host, pid)
    if host in lost_hosts:
        return Whereabouts("dead", host, pid)
    if host != socket.gethostname():
        return Whereabouts("elsewhere", host, pid)
    return Whereabouts("alive" if _same_process(pid, run.labels.get(BORN_LABEL)) else "dead", host, pid)


def runs_here() -> frozenset[str]:
    """Ids of the flow runs that a process on this host was started for."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and (run := process.environ().get(RUN_VARIABLE)):
                found.add(run)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or of another user
    return frozenset(found)


def seconds_in_state(run: FlowRun) -> float:
    """Since the run came into its state; infinite for a run that has none."""
    return (datetime.now(UTC) - run.state.timestamp).total_seconds() if run.state else float("inf")


def _same_process(pid: int, born: Any) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and (
            not isinstance(born, int | float) or abs(process.create_time() - born) < BORN_TOLERANCE_SECONDS
        )
    except psutil.NoSuchProcess:
        return False


def _number(labels: Mapping[str, Any], key: str) -> int | None:
    value = labels.get(key)
    return int(value) if isinstance(value, int | float) else None
