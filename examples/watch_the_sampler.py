"""Watch the sampler: how far it is, and which token it revealed when.

    python examples/watch_the_sampler.py

`progress` is told how many tokens are there; a planner that is a function sees every partly masked sequence before it
says which position is next, so it can keep what it saw. Watching changes nothing: the same planner that keeps nothing
draws the same sequences.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gtl_lightning import sample
from gtl_lightning.laws.chains import paper_chain

CHAIN = paper_chain(0.8)  # its exact denoiser; any other will do
MASK, LENGTH, SEQUENCES = CHAIN.mask_index, 12, 3


class Watched(NamedTuple):
    """What was seen of one call of the sampler.

    Attributes:
        frames: Long[12,3,12], x_t before each reveal.
        progress: (revealed, total) tokens after each.
        x: Long[3,12], the outcome.
        unwatched: Long[3,12], the outcome from the same seed when nobody looks.
    """

    frames: Tensor
    progress: list[tuple[int, int]]
    x: Tensor
    unwatched: Tensor


def surest_first(x_t: Tensor) -> Tensor:
    """Float[b,l]: the probability of the likeliest token at each position."""
    return CHAIN(x_t).amax(-1).exp()


def main(seed: int = 0) -> Watched:
    """Sample twice from one seed, once watched, and show how the first sequence came about."""
    frames: list[Tensor] = []
    progress: list[tuple[int, int]] = []

    def watching(x_t: Tensor) -> Tensor:
        frames.append(x_t.clone())  # the sampler goes on writing into its own
        return surest_first(x_t)

    def tell(revealed: int, total: int) -> None:
        progress.append((revealed, total))

    def sampled(planner: Callable[[Tensor], Tensor], progress: Callable[[int, int], None] | None) -> Tensor:
        return sample(
            CHAIN, batch=SEQUENCES, length=LENGTH, mask_index=MASK, planner=planner, planner_temperature=0.0,
            progress=progress, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    x, unwatched = sampled(watching, tell), sampled(surest_first, None)
    for frame, (revealed, total) in zip([*frames[1:], x], progress, strict=True):
        shown = " ".join("_" if token == MASK else str(token) for token in frame[0].tolist())
        logging.info("%s   %d of %d tokens", shown, revealed, total)
    return Watched(torch.stack(frames), progress, x, unwatched)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
