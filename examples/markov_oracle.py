"""The Markov oracle: guided by the exact ratio of two chains, the exact denoiser of one draws from the other.

    python examples/markov_oracle.py

Nothing is trained. Source and target are the chains of GTL's section 4.1 (arXiv 2512.10877): five states, the source
stays where it is with probability .1, the target with .8. Whatever a sampler of yours does, hold it against this first.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from gtl_lightning import Guidance, TokenRatio, sample
from gtl_lightning.laws.chains import MarkovChain, paper_chain
from gtl_lightning.laws.exact import ExactRatio

SEQUENCES, LENGTH = 4096, 20


class Matrices(NamedTuple):
    """Transition matrices, Float64[5,5]: as they are, and as the samples have them."""

    source: Tensor
    target: Tensor
    unguided: Tensor
    guided: Tensor


def main(seed: int = 0) -> Matrices:
    """Sample the source with and without guidance, and count the transitions."""
    generator = torch.Generator().manual_seed(seed)
    source, target = paper_chain(0.1), paper_chain(0.8)
    guidance = Guidance(TokenRatio(ExactRatio(source, target).token), gamma=1.0)

    def counted(guidance: Guidance | None) -> Tensor:
        x = sample(
            source, batch=SEQUENCES, length=LENGTH, mask_index=source.mask_index, guidance=guidance, planner="random",
            positions_per_step=1, generator=generator,
        )  # fmt: skip
        return MarkovChain.fit(x, source.states).transition

    found = Matrices(source.transition, target.transition, counted(None), counted(guidance))
    for name, matrix in found._asdict().items():
        logging.info("%s: stays with probability %.3f", name, matrix.diagonal().mean())
    logging.info("guided against target, largest difference: %.4f", (found.guided - found.target).abs().max())
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
