"""Runs stages in the order of their needs, as many at once as allowed; a failure stops only what needs the stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run

from flows.grid import Grid, Stage
from flows.group import GRACE_SECONDS, stop_groups
from flows.remote import run_on_pool, version
from flows.stage import Result, StageError, reproduce

REFRESH_SECONDS = 2.0
RETRIES = 2
RETRY_DELAY_SECONDS = 5.0

Progress = Literal["waiting", "running", "ran", "cached", "failed", "skipped"]
GOOD: tuple[Progress, ...] = ("ran", "cached")
BAD: tuple[Progress, ...] = ("failed", "skipped")
SKIPPED_NAMED = 3
"""Skipped stages that the end of a sweep names: where the first stage fails all others are."""


@dataclass
class Outcome:
    """State of one stage within a flow run.

    Attributes:
        state: where it stands.
        seconds: since it started, or that it took.
        reason: why it failed or was skipped.
    """

    state: Progress = "waiting"
    seconds: float | None = None
    reason: str = ""


def count_outcomes(outcomes: Iterable[Outcome]) -> str:
    """For example `2 ran, 50 cached, 1 failed`."""
    states = [outcome.state for outcome in outcomes]
    order: tuple[Progress, ...] = ("waiting", "running", *GOOD, *BAD)
    return ", ".join(f"{states.count(state)} {state}" for state in order if state in states)


def unmade(outcomes: Mapping[str, Outcome]) -> list[str]:
    """A line for each stage that failed and for the first skipped ones, and one that counts the rest of those."""
    lines: dict[str, list[str]] = {state: [] for state in BAD}
    for address, outcome in outcomes.items():
        if outcome.state in lines:
            lines[outcome.state].append(f"{address}: {outcome.reason}")
    more = len(lines["skipped"]) - SKIPPED_NAMED
    return [*lines["failed"], *lines["skipped"][:SKIPPED_NAMED], *([f"{more} more were skipped"] if more > 0 else [])]


Watch = Callable[[dict[str, Outcome]], None]


@dataclass(frozen=True)
class Limits:
    """How stages are run.

    Attributes:
        parallel: most stages at once.
        minutes: time limit of one stage; None: none.
        deployment: deployment that runs a stage on a worker pool; None: here.
        share: results travel through the DVC remote.
    """

    parallel: int
    minutes: float | None
    deployment: str | None
    share: bool = False


def _worth_retrying(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    failure = state.data
    return isinstance(failure, StageError) and failure.retriable


@task(
    name="stage",
    task_run_name="{label}",
    cache_policy=NO_CACHE,  # DVC is the cache; it also sees edits in helper modules
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=_worth_retrying,
)
def run_stage(
    stage: str,
    label: str,
    root: str,
    minutes: float | None = None,
    deployment: str | None = None,
    share: bool = False,
    upstream: bool = False,
) -> Result:
    """Run one DVC stage, here or as a run of `deployment` on a worker pool.

    Args:
        stage: address, `baseline@finetune-0.05-0`, or `data.dvc` for stored data.
        label: name of the task run: method, fraction, seed.
        root: the repository.
        minutes: time limit; None sets none. (Prefect's own limit cannot interrupt a task in a thread.)
        deployment: name of a deployment of the flow `stage`; None runs the stage in this process's machine.
        share: take from the DVC remote what other machines have made, and push what is made here.
        upstream: first bring about what the stage needs, in a checkout that has taken no part in the sweep so far.

    Raises:
        StageError: retried by Prefect unless another attempt is pointless.
    """
    owner = str(flow_run.get_id())
    if deployment is None:
        return reproduce(stage, Path(root), owner=owner, minutes=minutes, share=share, upstream=upstream)
    told = {"share": True, "version": version(Path(root))} if share else {}
    result = run_on_pool(deployment, stage=stage, label=label, minutes=minutes, owner=owner, told=told)
    if share:
        # It was made in another checkout: fetch it into this one, whose dvc.lock is the sweep's.
        reproduce(stage, Path(root), owner=owner, minutes=minutes, share=True)
    return result


@dataclass
class _Run:
    stages: dict[str, Stage]
    root: Path
    limits: Limits
    outcomes: dict[str, Outcome]
    futures: dict[str, PrefectFuture[Result]] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    changed: threading.Event = field(default_factory=threading.Event)

    def running(self) -> list[str]:
        return [address for address, outcome in self.outcomes.items() if outcome.state == "running"]

    def start(self, stage: Stage) -> None:
        self.outcomes[stage.address].state = "running"
        self.started[stage.address] = time.monotonic()
        future = run_stage.submit(
            stage.address,
            stage.label,
            str(self.root),
            self.limits.minutes,
            self.limits.deployment,
            self.limits.share,
            return_state=False,
            wait_for=[self.futures[near] for near in stage.needs if self._went_well(near)],
        )
        self.futures[stage.address] = future
        future.add_done_callback(lambda _: self._finish(stage.address))

    def collect(self) -> None:
        """Turn finished task runs into outcomes."""
        for address in self.running():
            outcome, future = self.outcomes[address], self.futures[address]
            outcome.seconds = time.monotonic() - self.started[address]
            if address not in self.finished:
                continue
            future.wait()
            result = future.result(raise_on_failure=False)
            if future.state.is_completed():
                outcome.state = result
            else:
                message = result.reason if isinstance(result, StageError) else future.state.message
                outcome.state, outcome.reason = "failed", message or f"its task ended {future.state.name}"

    def skip_hopeless(self, end: str = "") -> None:
        """Mark the stages that cannot run any more, with the reason; `end` says why none may, if it says anything."""
        for stage in self.stages.values():
            outcome = self.outcomes[stage.address]
            if outcome.state == "waiting" and (obstacle := end or self._obstacle(stage)):
                outcome.state, outcome.reason = "skipped", obstacle

    def ready(self) -> list[Stage]:
        """Stages that may start, those furthest down the graph first: whole cells finish early."""
        settled = {address for address, outcome in self.outcomes.items() if outcome.state not in ("waiting", "running")}
        found = [
            stage
            for stage in self.stages.values()
            if self.outcomes[stage.address].state == "waiting" and settled.issuperset(self._within(stage.needs))
        ]
        return sorted(found, key=self._depth, reverse=True)

    def _finish(self, address: str) -> None:
        self.finished.add(address)
        self.changed.set()

    def _obstacle(self, stage: Stage) -> str:
        for near in self._within(stage.needs):
            state = self.outcomes[near].state
            if state not in BAD:
                continue
            if near not in stage.gathers:
                return f"needs {near}, which {'failed' if state == 'failed' else 'was skipped'}"
            if any((self.root / out).exists() for out in self.stages[near].outs):
                return f"{near} {state}, and the result that it left is of an earlier run"
        return ""

    def _within(self, addresses: tuple[str, ...]) -> list[str]:
        return [address for address in addresses if address in self.stages]

    def _went_well(self, address: str) -> bool:
        return address in self.futures and self.outcomes[address].state in GOOD

    def _depth(self, stage: Stage) -> int:
        return 1 + max((self._depth(self.stages[near]) for near in self._within(stage.needs)), default=0)


def run_stages(
    grid: Grid, stages: list[Stage], root: Path, limits: Limits, watch: Watch, end: Callable[[], str] = str
) -> dict[str, Outcome]:
    """Run the stages that are not up to date.

    Args:
        grid: says which stages are up to date; those are reported as cached, and DVC is not started for them.
        stages: in an order in which each follows what it needs.
        root: the repository.
        limits: how many at once, for how long, where.
        watch: called with all outcomes whenever one has changed, and every few seconds.
        end: asked as often: why no further stage may start; nothing while they may.

    Returns:
        Address -> outcome; every state is ran, cached, failed or skipped.
    """
    outcomes = {stage.address: Outcome("waiting" if stage.address in grid.dirty else "cached") for stage in stages}
    run = _Run({stage.address: stage for stage in stages}, root, limits, outcomes)
    try:
        while True:
            run.changed.clear()
            run.collect()
            run.skip_hopeless(end())
            for stage in run.ready()[: max(0, limits.parallel - len(run.running()))]:
                run.start(stage)
            watch(outcomes)
            if not run.running():
                return outcomes
            run.changed.wait(REFRESH_SECONDS)
    except BaseException:
        _stop(run)
        raise


def _stop(run: _Run) -> None:
    """Ctrl-C, cancellation or an error of the flow itself: no stage outlives it."""
    stop_groups(str(flow_run.get_id()))
    wait([run.futures[address] for address in run.running()], timeout=GRACE_SECONDS + 2)
