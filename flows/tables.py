"""What people see: artifacts of a flow run in Prefect, kept up to date while it runs, and the tables of `gtl status`.

`gtl status` only reads, and uses a server if one is configured.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import httpx
import psutil
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flows.grid import STUDY, Grid, Stage
from flows.group import LEADER
from flows.reconcile import locate, open_runs, runs_here, seconds_in_state
from flows.remote import without_worker
from flows.runner import BAD, GOOD, Outcome, Progress, count_outcomes
from gtl_lightning.errors import UserError
from gtl_lightning.records import read_record
from gtl_lightning.workspace.pages import page, run_place
from gtl_lightning.workspace.paths import run_of
from gtl_lightning.workspace.provenance import mixtures

REFRESH_SECONDS = 15.0  # durations of running stages are brought up to date this often
FIGURE = Path("reports/figures/headline.svg")
FIGURE_BYTES = 500_000  # larger figures are left out of the artifact

Being = Literal["up to date", "running", "stale", "waits", "missing"]
ORDER: tuple[Being, ...] = ("up to date", "running", "stale", "waits", "missing")
MEANING = (
    "stale: its inputs have changed; waits: something that it needs is stale or missing; missing: never made here, "
    "though the cache may have it"
)
NAMED = 6  # addresses listed per kind of stage


class Board:
    """The tables of one flow run.

    Args:
        key: of the artifacts; their history is found under it.
        stages: of this run, in order.
        root: the repository.
        tracking_uri: where MLflow is, for links.
        pages: Markdown, a line that leads to the sweep's pages in MLflow; empty where there are none yet.
    """

    def __init__(
        self, key: str, stages: list[Stage], root: Path, tracking_uri: str, pages: Callable[[], str] = str
    ) -> None:
        self._key = key
        self._stages = stages
        self._root = root
        self._link = run_link(tracking_uri)
        self._pages = pages
        self._artifact: UUID | None = None
        self._shown: list[tuple[str, Progress]] = []
        self._shown_at = 0.0

    def show(self, outcomes: Mapping[str, Outcome]) -> None:
        """Bring the table artifact up to date if a state has changed, or durations have grown."""
        states = [(address, outcome.state) for address, outcome in outcomes.items()]
        running = any(outcome.state == "running" for outcome in outcomes.values())
        if states == self._shown and not (running and time.monotonic() - self._shown_at > REFRESH_SECONDS):
            return
        self._shown, self._shown_at = states, time.monotonic()
        rows = self.rows(outcomes)
        title = "\n\n".join(filter(None, (count_outcomes(outcomes.values()), self._pages())))
        try:
            if self._artifact is None:
                self._artifact = _create_table(rows, f"{self._key}-progress", title)
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(self._artifact, ArtifactUpdate(data=json.dumps(rows), description=title))
        except httpx.HTTPError as error:
            self._warn(error)

    def finish(self, outcomes: Mapping[str, Outcome]) -> None:
        """Publish the report artifact, with links to MLflow's pages."""
        try:
            create_markdown_artifact(self.report(outcomes), key=f"{self._key}-report")
        except httpx.HTTPError as error:
            self._warn(error)

    def rows(self, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
        """One row per stage: state, duration, and what the cell came to."""
        rows = []
        for stage in self._stages:
            outcome = outcomes[stage.address]
            result = self._result(stage) if outcome.state in GOOD else {}
            run = result.get("mlflow_run")
            rows.append(
                {
                    "stage": stage.label,
                    "state": outcome.state,
                    "duration": "" if outcome.seconds is None else f"{outcome.seconds:.0f} s",
                    "test NELBO": _number(result.get("nelbo")),
                    "MAUVE": _number(result.get("mauve")),
                    "MLflow run": self._link(run) if run else "",
                    "reason": outcome.reason,
                }
            )
        return rows

    def report(self, outcomes: Mapping[str, Outcome]) -> str:
        """Markdown: how many stages did what, the results, the holes with their reasons, the figure."""
        rows = self.rows(outcomes)
        parts = [f"# {self._key}: {count_outcomes(outcomes.values())}", *filter(None, [self._pages()])]
        if all(outcome.state == "cached" for outcome in outcomes.values()):
            parts.append("Everything was up to date; nothing was run.")
        results = [row for stage, row in zip(self._stages, rows, strict=True) if stage.row is not None]
        if results:
            parts += ["## Cells", _markdown(results, ("stage", "state", "test NELBO", "MAUVE", "MLflow run"))]
        holes = [row for row in rows if row["state"] in BAD]
        if holes:
            parts += ["## Holes", _markdown(holes, ("stage", "state", "reason"))]
        figure = self._root / FIGURE
        made_here = any(str(FIGURE).startswith(f"{out}/") for stage in self._stages for out in stage.outs)
        if made_here and not holes and figure.is_file() and figure.stat().st_size <= FIGURE_BYTES:
            image = base64.b64encode(figure.read_bytes()).decode()
            parts += ["## Transfer by fraction", f"![quality by fraction](data:image/svg+xml;base64,{image})"]
        return "\n\n".join(parts) + "\n"

    def _result(self, stage: Stage) -> dict[str, Any]:
        if stage.row is None:
            return {}
        try:
            return read_record(self._root / stage.row) | run_of(Path(stage.row), self._root)
        except UserError:
            return {}

    def _warn(self, error: Exception) -> None:
        # The sweep itself does not depend on its tables.
        get_run_logger().warning("the progress table could not be brought up to date: %s", error)


def run_link(tracking_uri: str) -> Callable[[str], str]:
    """Run id -> Markdown link to its MLflow page, without credentials; the bare id when there is no server."""

    def link(run_id: str) -> str:
        address = page(tracking_uri, run_place(run_id))
        return f"[{run_id[:8]}]({address})" if address else run_id

    return link


def _create_table(rows: list[dict[str, Any]], key: str, title: str) -> UUID:
    made = create_table_artifact(rows, key=key, description=title)
    assert isinstance(made, UUID)  # outside of an event loop
    return made


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _markdown(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]).replace("|", "\\|") for column in columns) + " |" for row in rows]
    return "\n".join(lines)


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
    found = [process.info for process in psutil.process_iter(["pid", "cmdline", "cwd", "create_time"])]
    return [
        RunningStage(info["cmdline"][-1], info["pid"], time.time() - info["create_time"])
        for info in found
        if str(LEADER) in (info["cmdline"] or ()) and info["cwd"] == str(root.resolve())
    ]


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
        table.add_row(kind.rpartition(STUDY)[2], *(str(counts[state] or "") for state in shown), named + more)
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
    workers = _table("Workers", "pool", "worker", "state", "last heard of")
    pools = client.read_work_pools()
    for pool in pools:
        known = client.read_workers_for_work_pool(pool.name)
        for worker in known:
            heard = worker.last_heartbeat_time
            workers.add_row(
                pool.name, worker.name, worker.status.value, f"{heard:%Y-%m-%d %H:%M:%S} UTC" if heard else ""
            )
        if not known:
            workers.add_row(pool.name, "none", "", "")
    idle = [Text(said, "yellow") for pool in pools if (said := without_worker(client, pool.name))]
    runs = open_runs(client)
    if not runs:
        return Group(workers, *idle, Text("No flow run is unfinished."))
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
    return Group(workers, *idle, table, Text(hint))


def duration(seconds: float) -> str:
    """For people: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left")
