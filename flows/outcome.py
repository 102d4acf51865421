"""How a stage fared: what the task hands to the flow, and what the flow's tables show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Result = Literal["ran", "cached"]
Progress = Literal["waiting", "running", "ran", "cached", "failed", "skipped"]

GOOD: tuple[Progress, ...] = ("ran", "cached")
BAD: tuple[Progress, ...] = ("failed", "skipped")


class StageError(Exception):
    """A stage that did not end well.

    Attributes:
        reason: one line for people.
        retriable: whether the same command may succeed next time.
        busy: path that another process has locked, where that is the reason.
    """

    def __init__(self, reason: str, retriable: bool = False, busy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.retriable = retriable
        self.busy = busy


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
