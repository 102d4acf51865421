"""Guide a denoiser of your own: train the token ratio of a toy law, sample, hold the samples against the exact law.

    python examples/guide_your_own_denoiser.py

The source p is any law over words of four letters out of three; the target q prefers words that read the same from both
ends. The denoiser is a plain function and stays as it is. What is learned is g, the log-ratio log q/p after each
possible reveal, from 300 words of the target alone: the NELBO of the guided law (docs/method.md, eq. 9'). Sampling
with `Guidance(TokenRatio(g))` then draws from q, up to what g has not learned: nearer than the 300 words themselves.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gtl_lightning import Guidance, TokenRatio, sample
from gtl_lightning.core.forward import absorbing_sample, nelbo_terms, stratified_times
from gtl_lightning.core.guidance import guided_log_prob_true
from gtl_lightning.core.schedule import LogLinear

LETTERS, LENGTH = 3, 4
MASK = LETTERS  # the mask's id; every vocabulary counts it
WORDS = torch.tensor(list(itertools.product(range(LETTERS), repeat=LENGTH)))  # Long[81,4]
EXAMPLES, DRAWN = 300, 20_000

Denoiser = Callable[[Tensor, Tensor], Tensor]


class Distances(NamedTuple):
    """Total variation, in [0, 1], from the exact law of the target.

    Attributes:
        unguided: of 20,000 words of the denoiser alone.
        examples: of the 300 words that the ratio is trained on: what is known without a source.
        guided: of 20,000 words of the denoiser, guided by the ratio.
        chance: of 20,000 words of the target: what no sampler can better.
    """

    unguided: float
    examples: float
    guided: float
    chance: float


class Ratio(nn.Module):
    """g: (x_t: Long[b,l], t: Float[b]) -> Float[b,l,v]. Any network will do; this one looks at the whole word."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        flat = LENGTH * (LETTERS + 1)
        self.layers = nn.Sequential(nn.Linear(flat, 128), nn.SiLU(), nn.Linear(128, flat))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The time is not used: under absorbing noise log r does not depend on it."""
        seen = nn.functional.one_hot(x_t, LETTERS + 1).float()
        return self.layers(seen.flatten(1)).view_as(seen)


def laws(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """p and q, Float[81] each: a random one, and the same tilted towards words that read the same from both ends."""
    p = torch.softmax(torch.randn(len(WORDS), generator=generator), 0)
    mirrored = (WORDS.flip(1) == WORDS).float().mean(1)
    return p, torch.softmax(p.log() + 3 * mirrored, 0)


def denoiser_of(law: Tensor) -> Denoiser:
    """(x_t: Long[b,l], t: Float[b]) -> Float[b,l,v]: log P(letter | letters seen), looked up in the table."""
    letters = nn.functional.one_hot(WORDS, LETTERS + 1).float()

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        fits = ((x_t[:, None] == MASK) | (x_t[:, None] == WORDS)).all(-1)
        # Logits will do: the sampler makes a law of them. The mask's are -inf, as no word holds it.
        return torch.einsum("bw,wlv->blv", fits * law, letters).log()

    return denoiser


def train_ratio(denoiser: Denoiser, words: Tensor, generator: torch.Generator, steps: int = 300) -> Ratio:
    """Minimise the NELBO of the guided law on `words` Long[n,l] of the target; the denoiser gets no gradient."""
    ratio, schedule = Ratio(generator), LogLinear()
    optimiser = torch.optim.AdamW(ratio.parameters(), lr=3e-3)
    for _ in range(steps):
        x_0 = words[torch.randint(len(words), (256,), generator=generator)]
        t = stratified_times(len(x_0), generator)
        x_t = absorbing_sample(x_0, t, schedule, MASK, generator)
        log_prob = guided_log_prob_true(denoiser(x_t, t), ratio(x_t, t), x_0)
        loss = nelbo_terms(log_prob, x_t == MASK, t, schedule).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return ratio


def draw(law: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Long[count,l] words of a law, without any network."""
    return WORDS[torch.multinomial(law, count, replacement=True, generator=generator)]


def total_variation(words: Tensor, law: Tensor) -> float:
    """Half the L1 distance between the frequencies of words Long[n,l] and a law Float[81]."""
    place = LETTERS ** torch.arange(LENGTH - 1, -1, -1)
    frequency = torch.bincount((words * place).sum(1), minlength=len(WORDS)) / len(words)
    return float((frequency - law).abs().sum() / 2)


def main(seed: int = 0) -> Distances:
    """Train, sample with and without guidance, and measure."""
    generator = torch.Generator().manual_seed(seed)
    p, q = laws(generator)
    denoiser = denoiser_of(p)
    examples = draw(q, EXAMPLES, generator)
    ratio = train_ratio(denoiser, examples, generator)

    def sampled(guidance: Guidance | None) -> Tensor:
        return sample(
            denoiser, batch=DRAWN, length=LENGTH, mask_index=MASK, guidance=guidance, planner="random",
            positions_per_step=1, generator=generator,
        )  # fmt: skip

    distances = Distances(
        unguided=total_variation(sampled(None), q),
        examples=total_variation(examples, q),
        guided=total_variation(sampled(Guidance(TokenRatio(ratio))), q),
        chance=total_variation(draw(q, DRAWN, generator), q),
    )
    for name, distance in distances._asdict().items():
        logging.info("total variation from the target, %s: %.3f", name, distance)
    return distances


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
