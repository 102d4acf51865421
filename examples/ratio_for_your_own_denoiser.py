"""Five lines for a denoiser of your own: train the ratio, choose gamma, guide, measure, sample.

    python examples/ratio_for_your_own_denoiser.py

The denoiser here is a small network that somebody trained on sequences which mostly count upwards, 3 4 5 6; wanted are
sequences that mostly count downwards, of which there are 120. Nothing is asked of it but (x_t, t) -> Float[b,l,v].
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gtl_lightning import Guidance, nelbo, sample, select_gamma, train_ratio

DIGITS, LENGTH = 6, 8
MASK = DIGITS


class YourDenoiser(nn.Module):
    """(x_t: Long[b,l], t: Float[b]) -> logits Float[b,l,v]: a small network of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Embedding(DIGITS + 1, 16)
        self.mix = nn.Sequential(nn.Linear(16 * LENGTH, 128), nn.SiLU(), nn.Linear(128, LENGTH * (DIGITS + 1)))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The time is not used: what is masked says it."""
        return self.mix(self.read(x_t).flatten(1)).view(*x_t.shape, DIGITS + 1)


class Outcome(NamedTuple):
    """What came out.

    Attributes:
        gamma: chosen on validation texts.
        unguided: held-out NELBO of the denoiser, nats a token.
        guided: of the guided denoiser.
        down_before: share of steps that count downwards in samples of the denoiser.
        down_after: in guided samples.
    """

    gamma: float
    unguided: float
    guided: float
    down_before: float
    down_after: float


def main(seed: int = 0) -> Outcome:
    """The five lines, and what they came to."""
    generator = torch.Generator().manual_seed(seed)
    source, target = counting(600, 0.8, generator), counting(200, 0.25, generator)
    wanted, validation, held_out = target[:120], target[120:160], target[160:]
    denoiser = pretrained(source, generator)

    ratio = train_ratio(denoiser, source, wanted, mask_index=MASK, seed=seed)
    gamma = select_gamma(denoiser, ratio, validation).gamma
    guidance = Guidance(ratio, gamma=gamma)
    likelihoods = [nelbo(denoiser, held_out, each, mask_index=MASK).nats_per_token for each in (None, guidance)]
    samples = [drawn(denoiser, each, generator) for each in (None, guidance)]

    outcome = Outcome(gamma, *likelihoods, *(down(x) for x in samples))
    logging.info("gamma %g", gamma)
    logging.info("held-out NELBO, nats a token: %.3f unguided, %.3f guided", *likelihoods)
    logging.info("steps downwards: %.2f unguided, %.2f guided, %.2f wanted", *outcome[3:], down(target))
    return outcome


def drawn(denoiser: nn.Module, guidance: Guidance | None, generator: torch.Generator) -> Tensor:
    """Long[500,l]."""
    return sample(
        denoiser, batch=500, length=LENGTH, mask_index=MASK, guidance=guidance, planner="random", generator=generator
    )


def counting(count: int, up: float, generator: torch.Generator) -> Tensor:
    """Long[count,l]: each step goes up by one with probability `up`, else down, round the circle of digits."""
    first = torch.randint(DIGITS, (count, 1), generator=generator)
    steps = 2 * (torch.rand(count, LENGTH - 1, generator=generator) < up).long() - 1
    return torch.cat([first, first + steps.cumsum(1)], 1) % DIGITS


def down(x: Tensor) -> float:
    """Share of the steps of Long[n,l] that go down by one."""
    return float(((x[:, :-1] - x[:, 1:]) % DIGITS == 1).float().mean())


def pretrained(texts: Tensor, generator: torch.Generator) -> YourDenoiser:
    """Somebody's model: cross-entropy at masked places, 400 steps."""
    denoiser = YourDenoiser()
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.normal_(std=0.1, generator=generator)
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    for _ in range(400):
        x = texts[torch.randint(len(texts), (64,), generator=generator)]
        masked = torch.rand(x.shape, generator=generator) < torch.rand(len(x), 1, generator=generator)
        logits = denoiser(x.masked_fill(masked, MASK), torch.zeros(len(x)))
        loss = nn.functional.cross_entropy(logits[masked], x[masked])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return denoiser


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
