"""Runs stages in the order of their needs, as many at once as allowed; a failure stops only what needs the stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from flows.grid import Grid, Stage
from flows.group import GRACE_SECONDS, stop_groups
from flows.outcome import BAD, GOOD, Outcome, Result, StageError
from flows.stage import run_stage

REFRESH_SECONDS = 2.0

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

    def skip_hopeless(self) -> None:
        """Mark the stages that cannot run any more, with the reason."""
        for stage in self.stages.values():
            outcome = self.outcomes[stage.address]
            if outcome.state == "waiting" and (obstacle := self._obstacle(stage)):
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


def run_stages(grid: Grid, stages: list[Stage], root: Path, limits: Limits, watch: Watch) -> dict[str, Outcome]:
    """Run the stages that are not up to date.

    Args:
        grid: says which stages are up to date; those are reported as cached, and DVC is not started for them.
        stages: in an order in which each follows what it needs.
        root: the repository.
        limits: how many at once, for how long, where.
        watch: called with all outcomes whenever one has changed, and every few seconds.

    Returns:
        Address -> outcome; every state is ran, cached, failed or skipped.
    """
    outcomes = {stage.address: Outcome("waiting" if stage.address in grid.dirty else "cached") for stage in stages}
    run = _Run({stage.address: stage for stage in stages}, root, limits, outcomes)
    try:
        while True:
            run.changed.clear()
            run.collect()
            run.skip_hopeless()
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
    deadline = time.monotonic() + GRACE_SECONDS + 2
    while time.monotonic() < deadline and not run.finished.issuperset(run.running()):
        time.sleep(0.1)
