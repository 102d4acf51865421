"""What a caller chooses of the sampler, in two groups: the order of the positions and the draw of their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from gtl_lightning.core.blocks import Blocks
from gtl_lightning.core.planners import CERTAINTY
from gtl_lightning.core.protocols import Planner
from gtl_lightning.errors import UserError, check_whole

HOT = 1e6
"""Largest temperature: far below it all tokens are alike, far above it single precision ends."""


class Unset(Enum):
    """Stands for an argument that was not given."""

    UNSET = "its default"


UNSET = Unset.UNSET


@dataclass(frozen=True)
class Order:
    """Planner mode's choice of positions (docs/method.md section 2.4).

    Attributes:
        planner: "random", "confidence", "margin", "entropy" or a callable Long[b,l] -> Float[b,l], from which positions
            are drawn by softmax(score / temperature).
        positions_per_step: positions revealed together, independently of one another.
        temperature: of a callable planner; 0 takes the highest score.
        blocks: from left to right, block by block; None takes any position at any time.

    Raises:
        UserError: a value of another kind, or out of range.
    """

    planner: str | Planner = "random"
    positions_per_step: int = 1
    temperature: float = 1.0
    blocks: Blocks | None = None

    def __post_init__(self) -> None:
        check_whole("positions_per_step", self.positions_per_step, least=1)
        check_kind("blocks", self.blocks, Blocks, "Blocks(size)")
        if isinstance(self.planner, str) and self.planner not in ("random", *CERTAINTY):
            known = ", ".join(CERTAINTY)
            raise UserError(f"planner '{self.planner}' is unknown; choose random, {known}, or pass a callable")
        check_temperature("temperature of the order", self.temperature)
        if not isinstance(self.planner, str) and not callable(self.planner):
            raise UserError(f"planner is a {type(self.planner).__name__}; give a name or a function of x_t")


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn from the guided law.

    Attributes:
        temperature: of the law; 0 takes the most likely token.
        top_p: nucleus, the least set of tokens with at least this probability.

    Raises:
        UserError: a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)
        if not (hasattr(self.top_p, "__float__") and 0 < self.top_p <= 1):
            raise UserError(f"top_p must lie in (0, 1], got {self.top_p!r}")


Group = TypeVar("Group", Order, Draw)


def grouped(kind: type[Group], group: object, flat: Mapping[str, tuple[str, object]]) -> Group:
    """A group as it was given, or made of arguments that were given one by one.

    Args:
        kind: of the group.
        group: None where there is none.
        flat: name of an argument -> its name in the group, and its value; `UNSET` or None where it was not given.

    Raises:
        UserError: both were given, or `group` is no such group.
    """
    name = kind.__name__.lower()
    check_kind(name, group, kind, f"{kind.__name__}()")
    given = {key: value for key, (_, value) in flat.items() if value is not UNSET}
    if isinstance(group, kind):
        if given:
            raise UserError(
                f"{', '.join(given)} and {name} = {kind.__name__}(...) say one thing twice; give one of the two"
            )
        return group
    return kind(**{flat[key][0]: value for key, value in given.items()})  # type: ignore[arg-type]


def check_kind(name: str, value: object, kind: type, example: str) -> None:
    """Raise UserError unless an argument is None or of a kind."""
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{name} is a {type(value).__name__}, not a {kind.__name__}; give for example {example}")


def check_temperature(name: str, value: object) -> None:
    """Raise UserError unless single precision bears to divide by a temperature."""
    if not (hasattr(value, "__float__") and 0 <= value <= HOT):  # type: ignore[operator]
        raise UserError(
            f"{name} must be finite and not negative (0 takes the most likely), at most {HOT:g}, got {value!r}"
        )
