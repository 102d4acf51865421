"""Tokens are drawn from the law that a step tells: an observer adds up what is drawn less what is expected.

Given the past, f of the token drawn less its expectation has mean 0 and the variance of f; over a run the sum of such
differences is a martingale, and over the root of its summed variance nearly standard normal. f is the indicator of each
token, and the log-probability; five standard deviations are allowed. Seeds are fixed.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import Blocks, Draw, Guidance, SequenceRatio, Step, TokenRatio, sample
from gtl_lightning.core.continuous import sample_continuous
from gtl_lightning.core.guidance import tilt
from gtl_lightning.core.noise import Absorbing
from gtl_lightning.core.planners import nucleus
from tests.oracle.enumeration import random_laws

LAWS = random_laws(vocab=3, length=4, seed=2)
N = 10_000
TOKEN, SEQUENCE = TokenRatio(LAWS.token_log_ratio), SequenceRatio(LAWS.sequence_log_ratio)


class Drawn:
    """Sums of f(token) less its expectation, and of variances, for f the indicator of each token and log-probability.

    Args:
        draw: temperature and nucleus.
        strength: multiplies the gamma that is told; another one than 1 claims a law that is not the sampler's.
    """

    def __init__(self, draw: Draw, strength: float = 1.0) -> None:
        self.draw, self.strength = draw, strength
        self.excess = self.variance = torch.zeros(LAWS.vocab + 1, dtype=torch.float64)

    def __call__(self, step: Step) -> None:
        log_w = step.log_p
        if step.log_r is not None and step.gamma is not None:
            log_w = tilt(log_w, step.log_r, self.strength * step.gamma[:, None])
        claimed = nucleus(log_w / self.draw.temperature, self.draw.top_p).softmax(-1)
        if step.ids is not None:
            claimed = claimed.new_zeros(len(claimed), LAWS.vocab + 1).scatter(-1, step.ids, claimed)
        claimed = claimed[:, : LAWS.vocab]
        indicators = torch.eye(LAWS.vocab, dtype=torch.float64).expand(len(claimed), -1, -1)
        f = torch.cat([indicators, claimed.clamp(min=1e-9).log()[:, None]], 1)
        mean, square = (torch.einsum("mfv,mv->mf", f**n, claimed) for n in (1, 2))
        drawn = f.take_along_dim(step.tokens[:, None, None], 2).squeeze(-1)
        self.excess = self.excess + (drawn - mean).sum(0)
        self.variance = self.variance + (square - mean**2).sum(0)

    @property
    def deviations(self) -> Tensor:
        """Float64[v+1]: how many standard deviations the sums are off."""
        return (self.excess / self.variance.sqrt()).abs()


MODES: dict[str, dict[str, Any]] = {
    "random": {},
    "confidence": {"planner": "confidence"},
    "two at a time": {"positions_per_step": 2},
    "blocks": {"blocks": Blocks(3)},
    "ancestral": {"steps": 5},
}
GUIDANCES = {
    "unguided": None,
    "token": Guidance(TOKEN, 1.7, chunk=50_000),
    "sequence, pruned": Guidance(SEQUENCE, lambda share: 2 - share, 2, chunk=50_000),
    "raw": Guidance(TOKEN, 1.7, stabilise=False),
}


def watched(mode: str, guidance: str, *observers: Drawn) -> None:
    sample(
        LAWS.denoiser,
        batch=N,
        length=LAWS.length,
        mask_index=LAWS.mask_index,
        guidance=GUIDANCES[guidance],
        draw=observers[0].draw,
        generator=torch.Generator().manual_seed(11),
        observe=observers,
        **MODES[mode],
    )


@pytest.mark.parametrize("draw", [Draw(), Draw(temperature=0.6), Draw(top_p=0.75)], ids=str)
@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("mode", MODES)
def test_tokens_follow_the_law_that_steps_tell(mode: str, guidance: str, draw: Draw) -> None:
    drawn = Drawn(draw)
    watched(mode, guidance, drawn)
    assert drawn.variance.min() > 100
    assert drawn.deviations.max() < 5


@pytest.mark.parametrize("mode", MODES)
def test_another_strength_than_the_one_told_is_seen(mode: str) -> None:
    right, wrong = Drawn(Draw()), Drawn(Draw(), strength=0.5)
    watched(mode, "token", right, wrong)
    assert right.deviations.max() < 5 < 10 < wrong.deviations.max()


@pytest.mark.parametrize("guidance", ["unguided", "token"])
def test_tokens_that_jump_do_so_too(guidance: str) -> None:
    """Under absorbing noise a mask's rates are shares of the tilted law."""
    right, wrong = Drawn(Draw()), Drawn(Draw(temperature=2.0))
    sample_continuous(
        LAWS.denoiser,
        Absorbing(LAWS.mask_index),
        batch=N,
        length=LAWS.length,
        steps=6,
        guidance=GUIDANCES[guidance],
        generator=torch.Generator().manual_seed(11),
        observe=[right, wrong],
    )
    assert right.deviations.max() < 5 < 10 < wrong.deviations.max()
