"""The density ratio of counted tokens and pairs, target over source: no network is trained (docs/method.md 2.2).

Counts of few target texts are drawn towards the source's law: q(v) and q(v | u) are means of Dirichlet posteriors whose
priors are the source's law and the one before (MacKay and Peto, 1995). Pairs are of two tokens d places apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMOOTHING = 50.0
"""Tokens' worth of the source's law of tokens in its law of what stands beside a token, which is counted of many."""


@dataclass(frozen=True)
class Pairs:
    """How often a token stands beside another.

    Attributes:
        keys: Long[n], beside * v + token, in order and each once.
        counts: Float[n].
    """

    keys: Tensor
    counts: Tensor

    @classmethod
    def of(cls, beside: Tensor, tokens: Tensor, vocab_size: int) -> Pairs:
        """Of Long[m] tokens and Long[m] what stands beside each."""
        keys, counts = torch.unique(beside * vocab_size + tokens, return_counts=True)
        return cls(keys, counts.float())

    def where(self, kept: Tensor) -> Pairs:
        """Those of Bool[n]."""
        return Pairs(self.keys[kept], self.counts[kept])

    def at(self, keys: Tensor) -> Tensor:
        """Float[m], the counts of Long[m] keys."""
        if not len(self.keys):
            return torch.zeros(len(keys))
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == keys, self.counts[place], 0.0)

    def sums(self, vocab_size: int, weights: Tensor | None = None) -> Tensor:
        """Float[v] over what stands beside each, of Float[v] `weights` of the tokens."""
        counted = self.counts if weights is None else self.counts * weights[self.keys % vocab_size]
        return torch.zeros(vocab_size).index_add_(0, self.keys // vocab_size, counted)


def token_log_ratio(target: Tensor, source: Tensor, prior: float) -> Tensor:
    """log q(v) / p(v), Float[v]: of 0 target tokens it is 0, of many their log-ratio.

    Args:
        target: Float[v] counts of the target's tokens.
        source: Float[v] of the source's.
        prior: tokens' worth of the source's law that q starts from.
    """
    p = source_law(source)
    return ((target + prior * p) / (target.sum() + prior)).log() - p.log()


def source_law(source: Tensor) -> Tensor:
    """p(v), Float[v], of Float[v] counts; half a token more of each, so that none is impossible."""
    return (source + 0.5) / (source + 0.5).sum()


def pair_log_ratio(target: Pairs, source: Pairs, p: Tensor, log_r: Tensor, prior: float) -> Tensor:
    """log q(v | u) / b(v | u) of every pair (u, v) that the target has, Float[n], up to a number a u.

    b(v | u) is p(v | u) r(v), normalised: what the ratio of tokens alone says of a token that stands beside u. With
    `prior` u's worth of it q(v | u) = (n(u, v) + prior b(v | u)) / (n(u) + prior), of which guidance sees
    log(1 + n(u, v) / (prior b(v | u))): 0 where the target has no such pair.

    Args:
        target: pairs of the target.
        source: of the source.
        p: Float[v], the source's law of tokens.
        log_r: Float[v], `token_log_ratio`.
        prior: of each u.
    """
    v, r = len(p), log_r.exp()
    beside, token = target.keys // v, target.keys % v
    count = source.sums(v)[beside]
    p_beside = (source.at(target.keys) + SMOOTHING * p[token]) / (count + SMOOTHING)
    total = (source.sums(v, r)[beside] + SMOOTHING * (p * r).sum()) / (count + SMOOTHING)
    return (target.counts * total / (prior * p_beside * r[token])).log1p()
