"""Reuse across steps: block-wise decoding against hidden states that are kept outside of a window.

Positions are revealed block by block, from left to right. A whole pass at a block's start leaves keys and values of all
positions behind; until the next whole pass only a window around the block is computed anew, and attends to the kept
rest. Within the block order is free, so exact networks still give the exact law; what reuse costs a learned network is
that the text outside of the window does not hear of the block's new tokens until the next whole pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from gtl_lightning.errors import UserError
from gtl_lightning.protocols import Cache, Factored, Hidden, Windowed


@dataclass(frozen=True)
class Blocks:
    """Block-wise decoding (docs/method.md section 2.4).

    Attributes:
        size: positions in a block.
        margin: positions on either side of the block that are computed anew with it.
        refresh: steps between whole passes within a block; 1 reuses nothing, None passes whole at its start alone.

    Raises:
        UserError: a size or refresh below 1, a negative margin.
    """

    size: int
    margin: int = 0
    refresh: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.size, self.margin, 1 if self.refresh is None else self.refresh)
        if any(not hasattr(value, "__index__") for value in sizes):
            raise UserError(f"size, margin and refresh of blocks must be whole numbers, got {sizes}")
        if self.size < 1 or self.margin < 0 or (self.refresh is not None and self.refresh < 1):
            raise UserError(
                f"blocks of size = {self.size}, margin = {self.margin}, refresh = {self.refresh}; size and refresh "
                "must be at least 1, the margin at least 0"
            )


class Reuse:
    """The hidden states of the steps within one block.

    Args:
        blocks: None passes whole at every step.
        start: first position of the block.
        stop: the position after its last.
        length: of the sequences.
    """

    def __init__(self, blocks: Blocks | None, start: int, stop: int, length: int) -> None:
        margin = blocks.margin if blocks else 0
        self.window = max(0, start - margin), min(length, stop + margin)
        self.refresh = 1 if blocks is None else blocks.refresh
        self._caches: dict[int, Cache] = {}

    def hidden(self, x: Tensor, t: Tensor, step: int) -> Hidden:
        """Hidden states at Long[b,l], Float[b] in a step of the block, from 0; rows may have left at the end of x."""
        if self.refresh == 1:
            return Hidden(x, t)
        if step % (self.refresh or step + 1) == 0:
            self._caches = {}
            return _Whole(x, t, self._caches)
        return _Window(x, t, self.window, self._caches)


class _Whole(Hidden):
    """Passes over all positions that leave caches behind, whatever is asked."""

    def __init__(self, x_t: Tensor, t: Tensor, caches: dict[int, Cache]) -> None:
        super().__init__(x_t, t)
        self._caches = caches

    def only(self, places: Tensor) -> None:
        """Nothing: later steps read the caches."""

    def _encode(self, network: Factored, features: dict[str, Tensor]) -> Tensor:
        if not isinstance(network, Windowed):
            return super()._encode(network, features)
        hidden, self._caches[id(network)] = cast(Any, network).remember(self.x_t, self.t, **features)
        return cast(Tensor, hidden)


class _Window(Hidden):
    """Passes over a window; a network that cannot do that passes over everything."""

    def __init__(self, x_t: Tensor, t: Tensor, window: tuple[int, int], caches: dict[int, Cache]) -> None:
        super().__init__(x_t, t)
        self.start, self.stop = window
        self._caches = caches

    def only(self, places: Tensor) -> None:
        """Nothing: later steps read the caches."""

    def _encode(self, network: Factored, features: dict[str, Tensor]) -> Tensor:
        if not isinstance(network, Windowed):
            # It wants the features of all positions, and those at hand are the window's.
            return network.encode(self.x_t, self.t)[:, self.start : self.stop]
        cache = [kept[: len(self.x_t)] for kept in self._caches[id(network)]]
        again = cast(Any, network).recompute(self.x_t, self.t, self.start, self.stop, cache, **features)
        return cast(Tensor, again)
