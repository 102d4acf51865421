"""What a model of a Markov chain got right, against the exact chain (docs/markov.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gtl_lightning.core.forward import uniform_noise
from gtl_lightning.errors import UserError
from gtl_lightning.laws.chains import MarkovChain, relative_entropy

SEEN_ALL = 0.5
"""Count added to each bigram of a sample: a transition that was never drawn gives a large KL, not an infinite one."""
NOTHING = 1e-6
"""Mean square, in nats, below which an exact log-ratio says nothing that a slope could be read from."""

Scores = Callable[[Tensor, Tensor], Tensor]


def row_kl(chain: MarkovChain, transition: Tensor) -> float:
    """Mean over rows of KL(true row || row of `transition` Float[V,V]), nats; inf where it misses mass."""
    return float(relative_entropy(chain.transition, transition.double()).mean())


@dataclass(frozen=True)
class SampleMetrics:
    """Long[n,l] samples beside the chain that they should follow.

    Attributes:
        transition: their bigram matrix, Float64[V,V].
        row_kl: of it, nats.
        diagonal: mean of its diagonal.
        nll: exact negative log-likelihood under the chain, nats per token; the chain's own is its entropy rate.
    """

    transition: Tensor
    row_kl: float
    diagonal: float
    nll: float


def measure_samples(x_0: Tensor, chain: MarkovChain) -> SampleMetrics:
    """Bigram matrix of the samples and its distance to the chain's."""
    transition = MarkovChain.fit(x_0, chain.states, SEEN_ALL).transition
    nll = -float(chain.log_prob(x_0).mean()) / x_0.shape[1]
    return SampleMetrics(transition, row_kl(chain, transition), float(transition.diagonal().mean()), nll)


@dataclass(frozen=True)
class TiltError:
    """How a learned log-ratio compares with the exact one at one noise level.

    Both are read as guidance reads them: over the tokens v of a masked position, log r(x_U + {l: v}) up to a number
    that is the same for all v, taken off by making the mean of r over p(v | x_U) one (eq. 6).

    Attributes:
        masked: masked positions.
        slope: of the learned on the exact log-ratio, through the origin; 1 is calibrated, below 1 too weak; NaN where
            the exact one is the same for all tokens.
        rmse: root mean squared difference, nats.
    """

    masked: int
    slope: float
    rmse: float


def tilt_errors(
    source: MarkovChain,
    target: MarkovChain,
    token_scores: Scores,
    *,
    length: int,
    levels: Sequence[int],
    rows: int,
    generator: torch.Generator,
) -> list[TiltError]:
    """Calibration of a ratio against the exact one, by noise level, on fresh target sequences.

    Args:
        source: p, exact; centres both ratios.
        target: q, exact.
        token_scores: (x_t Long[b,l], position Long[b]) -> Float[b,V], log r after setting the position to each token.
        length: tokens of a sequence.
        levels: numbers of masked positions, 1..length.
        rows: sequences at each level; each is read at one masked position, tokens weighted by q(v | x_U).
        generator: of sequences, masks and positions.

    Raises:
        UserError: a level outside 1..length.
    """
    found = []
    for level in levels:
        if not 1 <= level <= length:
            raise UserError(f"calibration level {level}: the number of masked positions lies in 1..{length}")
        x_0 = target.sample(rows, length, generator)
        rank = uniform_noise((rows, length), generator, "cpu").argsort(1).argsort(1)
        x_t, position = x_0.masked_fill(rank < level, target.mask_index), (rank == 0).long().argmax(1)
        at = torch.arange(rows)
        log_p, log_q = (law.posterior(x_t)[at, position, : target.states] for law in (source, target))
        exact = log_q - log_p
        learned = token_scores(x_t, position).double()
        learned = learned - torch.logsumexp(log_p + learned, -1, keepdim=True)
        weight = log_q.exp()
        spread = float((weight * exact**2).sum() / rows)
        slope = float((weight * exact * learned).sum() / rows) / spread if spread > NOTHING else math.nan
        found.append(TiltError(level, slope, float(((weight * (learned - exact) ** 2).sum() / rows).sqrt())))
    return found
