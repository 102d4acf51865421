"""Tracked runs whose process was killed: what no process logs into any more does not stay RUNNING."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass

from gtl_lightning.workspace.addresses import check_reachable, exists, resolve_uri
from gtl_lightning.workspace.mlflow_client import found_runs, open_client
from gtl_lightning.workspace.origin import BORN, HOST, PID


@dataclass(frozen=True)
class LostRun:
    """A run that was ended.

    Attributes:
        name: of the run.
        reason: why, for people.
    """

    name: str
    reason: str


def end_lost(
    uri: str, lives: Callable[[int, float], bool], *, lost_hosts: Collection[str] = (), dry_run: bool = False
) -> list[LostRun]:
    """End the RUNNING runs of a tracker whose process is gone, as KILLED; the same work finds them again by their key.

    Args:
        uri: of the tracker; MLFLOW_TRACKING_URI wins over it.
        lives: (process, its birth) -> whether it is there, on this host.
        lost_hosts: hosts that will not come back; runs on other hosts than this one are left alone otherwise.
        dry_run: change nothing, only tell.

    Raises:
        UserError: the tracker cannot be reached or read.
    """
    uri = resolve_uri(uri)
    check_reachable(uri)
    if not exists(uri):
        return []
    client = open_client(uri)
    lost = []
    for experiment in client.search_experiments():
        for run in list(found_runs(client, experiment.experiment_id, "attributes.status = 'RUNNING'")):
            tags = run.data.tags
            if not {HOST, PID, BORN} <= tags.keys():
                continue  # none of ours, or of before processes were noted
            host, pid = tags[HOST], int(tags[PID])
            here = host == socket.gethostname()
            if host not in lost_hosts and (not here or lives(pid, float(tags[BORN]))):
                continue
            if not dry_run:
                client.set_terminated(run.info.run_id, "KILLED")
            lost.append(LostRun(run.info.run_name, f"process {pid} on {host} is gone"))
    return lost
