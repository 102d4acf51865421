"""What the samplers and losses expect of a network: any callable that fits will do, no base class is needed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


class Denoiser(Protocol):
    """Predicts the clean token at every position (SUBS parameterisation, MDLM, arXiv 2406.07524)."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b,l,v] log-probabilities; -inf at the mask, unmasked tokens carried over."""


class RatioNetwork(Protocol):
    """log r = log q/p of a partly masked sequence; also a domain classifier's logit, target positive."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b]."""


class TokenRatioNetwork(Protocol):
    """log r of every sequence that is one reveal away (docs/method.md section 2.2)."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b,l,v]: entry [l, v] is log r after masked position l is set to v."""


class Planner(Protocol):
    """Scores positions; higher is revealed sooner. Scores of unmasked positions are ignored."""

    def __call__(self, x_t: Tensor, /) -> Tensor:
        """Long[b,l] -> Float[b,l]."""


@runtime_checkable
class Factored(Protocol):
    """A denoiser or token ratio in two parts, so that only the positions that are needed meet the vocabulary."""

    def encode(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b,l,d] hidden states."""

    def decode(self, h: Tensor, /) -> Tensor:
        """Float[...,d] -> Float[...,v]; log-probabilities with -inf at the mask, or log r for a token ratio."""


def at_slots(network: Denoiser | TokenRatioNetwork, x: Tensor, t: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """Float[m,v]: the network's output at m (row, position) pairs; only they meet the vocabulary if it is Factored."""
    if isinstance(network, Factored):
        return network.decode(network.encode(x, t)[row, position])
    return network(x, t)[row, position]
