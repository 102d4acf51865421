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


class TokenLogRatio(Protocol):
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


Known = tuple[Denoiser, Tensor | None]
"""A denoiser and its hidden states Float[b,l,d] at the x_t and t in hand; None if it is not Factored."""


def hidden_states(
    network: Denoiser | TokenLogRatio, x_t: Tensor, t: Tensor, known: Known | None = None
) -> Tensor | None:
    """Float[b,l,d] from one pass of a Factored network, None for any other.

    A ratio that reads a frozen denoiser (it has the attribute `denoiser`, and its `encode` takes `features`) gets that
    denoiser's hidden states where they are `known`, so that the denoiser runs once.
    """
    if not isinstance(network, Factored):
        return None
    if known is not None and known[1] is not None and getattr(network, "denoiser", None) is known[0]:
        return network.encode(x_t, t, features=known[1])  # type: ignore[call-arg]  # the attribute promises it
    return network.encode(x_t, t)


def at_slots(
    network: Denoiser | TokenLogRatio,
    x_t: Tensor,
    t: Tensor,
    row: Tensor,
    position: Tensor,
    known: Known | None = None,
) -> Tensor:
    """Float[m,v]: the output at m (row, position) pairs; only they meet the vocabulary if the network is Factored.

    `known` as in `hidden_states`; a network that is itself the known one is not run again.
    """
    hidden = known[1] if known is not None and network is known[0] else hidden_states(network, x_t, t, known)
    if hidden is None:
        return network(x_t, t)[row, position]
    assert isinstance(network, Factored)
    return network.decode(hidden[row, position])
