"""Brute force over all V^L sequences: exact denoiser, marginals and log-ratios of two tabulated laws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Enumeration:
    """Two laws p, q on {0..v-1}^l as tables Float64[v^l], sequence i being `states[i]`; the mask is token v.

    Networks return Float64[b,...] with a last axis of v + 1 tokens.
    """

    p: Tensor
    q: Tensor
    vocab: int
    length: int

    @property
    def mask_index(self) -> int:
        return self.vocab

    @property
    def states(self) -> Tensor:
        """Long[v^l,l], in the order of the tables."""
        return torch.cartesian_prod(*[torch.arange(self.vocab)] * self.length).view(-1, self.length)

    def index(self, x: Tensor) -> Tensor:
        """Long[b]: where clean sequences stand in the tables."""
        return (x * self.vocab ** torch.arange(self.length - 1, -1, -1)).sum(-1)

    @cached_property
    def partial(self) -> Tensor:
        """Long[(v+1)^l,l]: every partly masked sequence; all networks are tables over them, looked up by `_look_up`."""
        return torch.cartesian_prod(*[torch.arange(self.vocab + 1)] * self.length).view(-1, self.length)

    def _look_up(self, table: Tensor, x_t: Tensor) -> Tensor:
        return table[(x_t * (self.vocab + 1) ** torch.arange(self.length - 1, -1, -1)).sum(-1)]

    def compatible(self, x_t: Tensor) -> Tensor:
        """Float64[b,v^l]: 1 where a sequence agrees with the unmasked positions."""
        known = (x_t != self.mask_index)[:, None]
        return ((x_t[:, None] == self.states) | ~known).all(-1).double()

    def log_marginal(self, table: Tensor) -> Tensor:
        """Float64[(v+1)^l]: log of the probability of the unmasked positions."""
        return (self.compatible(self.partial) @ table).log()

    def log_joint(self, table: Tensor) -> Tensor:
        """Float64[(v+1)^l,l,v+1]: log of the probability of the unmasked positions together with {l: v}."""
        tokens = torch.nn.functional.one_hot(self.states, self.vocab + 1).double()
        return torch.einsum("bs,slv->blv", self.compatible(self.partial) * table, tokens).log()

    @cached_property
    def _networks(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        joint_p, joint_q = self.log_joint(self.p), self.log_joint(self.q)
        total_p, total_q = self.log_marginal(self.p), self.log_marginal(self.q)
        conditional_p, conditional_q = joint_p - total_p[:, None, None], joint_q - total_q[:, None, None]
        return conditional_p, conditional_q, _ratio(total_q, total_p), _ratio(joint_q, joint_p)

    def denoiser(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Exact log p(x_0^l = v | x_U), carried over at unmasked positions."""
        return self._look_up(self._networks[0], x_t)

    def target_denoiser(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Exact log q(x_0^l = v | x_U)."""
        return self._look_up(self._networks[1], x_t)

    def sequence_log_ratio(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Exact log q(x_U) / p(x_U); 0 where p is 0."""
        return self._look_up(self._networks[2], x_t)

    def token_log_ratio(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Exact log r(x_U + {l: v}); 0 where p is 0."""
        return self._look_up(self._networks[3], x_t)


def _ratio(log_q: Tensor, log_p: Tensor) -> Tensor:
    return torch.where(log_p == -math.inf, 0.0, log_q - log_p)


def random_laws(vocab: int, length: int, seed: int, zeros: bool = False) -> Enumeration:
    """Two strictly positive random laws; with `zeros`, a third of q's sequences have probability 0."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.empty(vocab**length, dtype=torch.float64).exponential_(generator=generator) for _ in range(2))
    p, q = p + 0.05, q**2 + 0.01
    if zeros:
        q = q * (torch.rand(vocab**length, generator=generator) > 1 / 3)
    return Enumeration(p / p.sum(), q / q.sum(), vocab, length)


def total_variation(x: Tensor, law: Tensor, enumeration: Enumeration) -> float:
    """Total variation between the empirical law of Long[n,l] samples and a table."""
    counts = torch.bincount(enumeration.index(x), minlength=len(law)).double()
    return 0.5 * (counts / len(x) - law).abs().sum().item()


def total_variation_bound(law: Tensor, n: int, false_alarm: float = 1e-7) -> float:
    """Level that the total variation of n exact samples exceeds with probability below `false_alarm`.

    Mean at most 1/2 sum sqrt(q (1 - q) / n) by Jensen; McDiarmid adds sqrt(log(1/false_alarm) / (2 n)), as one sample
    moves the total variation by at most 1/n.
    """
    mean = 0.5 * (law * (1 - law) / n).sqrt().sum().item()
    return mean + math.sqrt(math.log(1 / false_alarm) / (2 * n))
