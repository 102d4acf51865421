"""Text written behind a prefix: causally, by revealing masks, by redrawing everything; of n drafts the best is kept.

A draft is Long[b,l] and Float[b], how unlikely its writer holds it, by which drafts are re-ranked.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gtl_lightning.core.choices import Draw
from gtl_lightning.core.protocols import Attending
from gtl_lightning.core.sampling import sample
from gtl_lightning.core.trace import Step
from gtl_lightning.errors import UserError
from gtl_lightning.networks.given import Following, continued
from gtl_lightning.networks.heads import CausalLM
from gtl_lightning.networks.source import ids_of
from gtl_lightning.papers.ar2diff import at, best, decode

Drafts = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Long[b,p] prefixes -> a draft of each."""


def best_of(write: Drafts, prefix: Tensor, samples: int) -> Tensor:
    """Long[b,l]: of `samples` drafts of each row the least unlikely.

    Raises:
        UserError: no sample.
    """
    if samples < 1:
        raise UserError(f"samples = {samples}: give at least 1")
    x, score = write(prefix.repeat(samples, 1))
    return best(x.view(samples, len(prefix), -1), score.view(samples, -1))


def by_continuing(
    model: CausalLM,
    length: int,
    *,
    temperature: float,
    end_index: int | None = None,
    generator: torch.Generator | None = None,
) -> Drafts:
    """From left to right, by a prefix-LM; unlikely by its own likelihood."""

    def write(prefix: Tensor) -> tuple[Tensor, Tensor]:
        x, log_p = continued(
            model, prefix, length, temperature=temperature, end_index=end_index, visible=True, generator=generator
        )
        return x, -log_p.sum(-1)

    return write


def by_revealing(
    network: Attending,
    length: int,
    *,
    steps: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Drafts:
    """Masks revealed in random order, in `steps` equal parts; unlikely by the law each token was revealed by."""

    def write(prefix: Tensor) -> tuple[Tensor, Tensor]:
        score = torch.zeros(len(prefix), device=prefix.device)

        def weigh(step: Step) -> None:
            score.index_add_(0, step.rows, -at(step.log_p, step.tokens).to(score.dtype))

        x = sample(
            Following(network, prefix),
            mask_index=network.mask_index,
            batch=len(prefix),
            length=length,
            positions_per_step=math.ceil(length / steps),
            draw=Draw(temperature=temperature),
            generator=generator,
            device=prefix.device,
            observe=weigh,
        )
        return x, score

    return write


def by_redrawing(
    network: Attending,
    length: int,
    *,
    steps: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Drafts:
    """From uniform noise, all tokens anew at every step (`papers.ar2diff.decode`)."""
    clean = torch.tensor([index for index in range(network.vocab_size) if index not in ids_of(network)])

    def write(prefix: Tensor) -> tuple[Tensor, Tensor]:
        where = prefix.device if generator is None else generator.device
        noise = torch.randint(len(clean), (len(prefix), length), generator=generator, device=where)
        start = clean[noise.cpu()].to(prefix.device)
        everything = torch.ones_like(start, dtype=torch.bool)
        with torch.no_grad():
            return decode(
                Following(network, prefix), start, everything, steps=steps, temperature=temperature, generator=generator
            )

    return write
