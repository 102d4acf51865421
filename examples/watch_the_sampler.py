"""Watch the sampler: which token it set when, how likely the denoiser held it, and how far it is.

    python examples/watch_the_sampler.py

`observe` is handed a `Step` after every step: the sequences, which tokens are new, the law that they were drawn from.
Steps may be kept, so that `list.append` is an observer. Watching changes nothing: unwatched, the same seed draws the
same sequences.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gtl_lightning import Order, Step, sample
from gtl_lightning.laws.chains import paper_chain

CHAIN = paper_chain(0.8)  # its exact denoiser; any other will do
MASK, LENGTH, SEQUENCES = CHAIN.mask_index, 12, 3


class Watched(NamedTuple):
    """What was seen of one call of the sampler.

    Attributes:
        frames: Long[12,3,12], the sequences after each step.
        log_p: Float[12], of the token set in the first sequence, given those that were there.
        progress: (revealed, total) tokens after each step.
        x: Long[3,12], the outcome.
        unwatched: Long[3,12], the outcome from the same seed when nobody looks.
    """

    frames: Tensor
    log_p: Tensor
    progress: list[tuple[int, int]]
    x: Tensor
    unwatched: Tensor


def log_p_of_first(step: Step) -> Tensor:
    """Float[]: log p of the token that the step set in the caller's first sequence."""
    (slot,) = (step.rows == 0).nonzero()
    return step.log_p[slot, step.tokens[slot]].squeeze()


def main(seed: int = 0) -> Watched:
    """Sample twice from one seed, once watched, and show how the first sequence came about."""
    steps: list[Step] = []

    def sampled(observe: Callable[[Step], None] | None) -> Tensor:
        return sample(
            CHAIN, batch=SEQUENCES, length=LENGTH, mask_index=MASK, order=Order("confidence"), observe=observe,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    x, unwatched = sampled(steps.append), sampled(None)
    for step in steps:
        shown = " ".join("_" if token == MASK else str(token) for token in step.x[0].tolist())
        logging.info("%s   p = %.2f, %d of %d tokens", shown, log_p_of_first(step).exp(), step.done, step.wanted)
    return Watched(
        frames=torch.stack([step.x for step in steps]),
        log_p=torch.stack([log_p_of_first(step) for step in steps]),
        progress=[(step.done, step.wanted) for step in steps],
        x=x,
        unwatched=unwatched,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
