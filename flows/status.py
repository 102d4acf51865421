"""`gtl status`: what exists, what is stale, what runs where. Reads only; uses a server if one is configured."""

from __future__ import annotations

import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flows.grid import Grid, Stage
from flows.group import LEADER
from gtl_lightning.records import read_record
from gtl_lightning.workspace.provenance import mixtures

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

Being = Literal["up to date", "running", "stale", "waits", "missing"]

ORDER: tuple[Being, ...] = ("up to date", "running", "stale", "waits", "missing")
MEANING = (
    "stale: its inputs have changed; waits: something that it needs is stale or missing; missing: never made here, "
    "though the cache may have it"
)
NAMED = 6  # addresses listed per kind of stage


@dataclass(frozen=True)
class RunningStage:
    """A stage that runs on this host from this checkout.

    Attributes:
        address: of the stage.
        pid: head of its process group.
        seconds: since it was started.
    """

    address: str
    pid: int
    seconds: float


def being(grid: Grid, stage: Stage, root: Path, running: set[str]) -> Being:
    """Where one stage stands."""
    if stage.address in running:
        return "running"
    if stage.address not in grid.dirty:
        return "up to date"
    if not all((root / out).exists() for out in stage.outs):
        return "missing"
    return "stale" if stage.address in grid.stale else "waits"


def running_stages(root: Path) -> list[RunningStage]:
    """Stages of flows that run on this host from the checkout at `root`, found by their process groups."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if str(LEADER) in command and Path(process.cwd()) == root.resolve():
                seconds = time.time() - process.create_time()
                found.append(RunningStage(command[-1], process.pid, seconds))
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or of another user
    return found


def stage_table(grid: Grid, root: Path, running: list[RunningStage]) -> Group:
    """One row per kind of stage: how many of its points stand where, and which are not up to date."""
    states = {
        address: being(grid, stage, root, {item.address for item in running}) for address, stage in grid.stages.items()
    }
    kinds: dict[str, list[str]] = {}
    for address in grid.stages:
        kinds.setdefault(address.partition("@")[0], []).append(address)
    shown = [state for state in ORDER if state in states.values()]
    table = _table("What exists", "stage", *shown, "not up to date")
    for kind, addresses in kinds.items():
        counts = Counter(states[address] for address in addresses)
        open_points = [address.partition("@")[2] for address in addresses if states[address] != "up to date"]
        named = ", ".join(point for point in open_points[:NAMED] if point)
        more = f" and {len(open_points) - NAMED} more" if len(open_points) > NAMED else ""
        table.add_row(kind, *(str(counts[state] or "") for state in shown), named + more)
    return Group(table, Text(MEANING if grid.dirty else "Everything is up to date.", style="dim"))


def unlike_cells(grid: Grid, root: Path) -> list[str]:
    """A sentence for each way in which the grid's evaluated cells were not made alike; DVC knows nothing of it."""
    paths = [root / stage.row for stage in grid.stages.values() if stage.row is not None]
    return mixtures(read_record(path) for path in paths if path.exists())


def process_table(running: list[RunningStage]) -> Table | Text:
    """What runs on this host from this checkout."""
    if not running:
        return Text("No stage of a flow runs on this host from this checkout.")
    table = _table(f"Running on {socket.gethostname()}", "stage", "process", "for")
    for item in sorted(running, key=lambda item: item.address):
        table.add_row(item.address, str(item.pid), duration(item.seconds))
    return table


def server_tables(client: SyncPrefectClient) -> Group:
    """Workers and unfinished flow runs, with the processes that those runs live in."""
    from flows.liveness import locate, runs_here, seconds_in_state
    from flows.reconcile import open_runs

    workers = _table("Workers", "pool", "worker", "state", "last heard of")
    for pool in client.read_work_pools():
        known = client.read_workers_for_work_pool(pool.name)
        for worker in known:
            heard = worker.last_heartbeat_time
            workers.add_row(
                pool.name, worker.name, worker.status.value, f"{heard:%Y-%m-%d %H:%M:%S} UTC" if heard else ""
            )
        if not known:
            workers.add_row(pool.name, "none", "", "")
    runs = open_runs(client)
    if not runs:
        return Group(workers, Text("No flow run is unfinished."))
    table = _table("Unfinished flow runs", "flow run", "state", "for", "host", "process")
    started_here = runs_here()
    dead = 0
    for run in runs:
        place = locate(run, started_here)
        dead += place.life == "dead"
        process = f"{place.pid or ''} {'' if place.life == 'alive' else place.life}".strip()
        state = run.state.name if run.state else ""
        table.add_row(run.name, state, duration(seconds_in_state(run)), place.host, process)
    hint = f"{dead} without a live process: `gtl reconcile` ends and retries them" if dead else ""
    return Group(workers, table, Text(hint))


def duration(seconds: float) -> str:
    """For people: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left")
