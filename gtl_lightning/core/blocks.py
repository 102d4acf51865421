"""Reuse across steps: block-wise decoding against hidden states that are kept outside of a window.

Positions are revealed block by block, from left to right. A whole pass at a block's start leaves keys and values of all
positions behind; until the next whole pass only a window around the block is computed anew, and attends to the kept
rest. Within the block order is free, so exact networks still give the exact law; what reuse costs a learned network is
that the text outside of the window does not hear of the block's new tokens until the next whole pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from gtl_lightning.core.protocols import EVERYWHERE, Cache, Look
from gtl_lightning.errors import check_whole


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
        check_whole("size of blocks", self.size, least=1)
        check_whole("margin of blocks", self.margin, least=0)
        if self.refresh is not None:
            check_whole("refresh of blocks", self.refresh, least=1)


class Reuse:
    """Which positions the steps within one block compute anew.

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
        self._cache: Cache = {}

    def look(self, step: int) -> Look:
        """What networks are asked for in a step of the block, from 0."""
        if self.refresh == 1:
            return EVERYWHERE
        if step % (self.refresh or step + 1) == 0:
            self._cache = {}
            return Look(cache=self._cache)
        return Look(window=self.window, cache=self._cache)
