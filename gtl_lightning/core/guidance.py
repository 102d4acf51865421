"""Guidance: the denoiser's law tilted by a density ratio, p * r^gamma (docs/method.md eqs. 5 and 6, section 2.4).

r(x_U) = q(x_U) / p(x_U) is the ratio of target to source over the unmasked positions U; for absorbing noise it does not
depend on time (docs/method.md section 2). Convention everywhere: log_ratio = log q/p, the target domain is positive, in
nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gtl_lightning.core.callables import taking
from gtl_lightning.core.guard import tensor_of, wide
from gtl_lightning.core.protocols import EVERYWHERE, Encoder, Hidden, Look, RatioNetwork, TokenLogRatio, call
from gtl_lightning.errors import UserError, check_whole

GAMMA_MAX = 1e6
"""Largest strength: far below it the ratio alone decides, far above it gamma log r leaves single precision."""


# The tilted proposal p * r^gamma (docs/method.md eqs. 5, 6)


def tilt(log_p: Tensor, log_r: Tensor, gamma: float | Tensor = 1.0) -> Tensor:
    """log p + gamma log r in fp32 at least, not normalised; what p excludes stays excluded.

    Where r is zero for everything that p allows, guidance says nothing and the row falls back to log p.

    Args:
        log_p: Float[...,v], may hold -inf.
        log_r: Float[...,v], may hold -inf.
        gamma: strength, a number or broadcastable to log_r.
    """
    log_p, log_r = wide(log_p), wide(log_r)
    excluded = log_p == -math.inf
    # 0 * -inf is not a number: gamma = 0 must switch a zero ratio off as well. Filling before adding keeps gradients.
    off = excluded | (gamma == 0 if isinstance(gamma, Tensor) else bool(gamma == 0))
    log_w = log_p + gamma * log_r.masked_fill(off, 0.0)
    dead = log_w.detach().amax(-1, keepdim=True) == -math.inf
    return torch.where(dead, log_p, log_w)


def top_candidates(log_p: Tensor, n_ratio: int | None) -> tuple[Tensor, Tensor | None]:
    """The n_ratio most likely tokens: (Float[...,n] log-probabilities, Long[...,n] ids); ids None if all v are kept.

    Raises:
        UserError: n_ratio exceeds the vocabulary.
    """
    v = log_p.shape[-1]
    if n_ratio is not None and n_ratio > v:
        raise UserError(f"n_ratio = {n_ratio} exceeds the vocabulary of {v}; use at most {v}, or None for all tokens")
    if n_ratio is None or n_ratio == v:
        return log_p, None
    values, ids = log_p.topk(n_ratio, -1)
    return values, ids


def guided_log_probs(log_p: Tensor, log_r: Tensor, gamma: float | Tensor = 1.0, n_ratio: int | None = None) -> Tensor:
    """Float[...,v] normalised log of p * r^gamma, restricted to the n_ratio most likely tokens of p (eq. 5, 6).

    Raises:
        UserError: n_ratio exceeds the vocabulary.
    """
    _, ids = top_candidates(log_p, n_ratio)
    if ids is not None:
        kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, ids, True)
        log_p = log_p.masked_fill(~kept, -math.inf)
    return torch.log_softmax(tilt(log_p, log_r, gamma), -1)


def guided_log_prob_true(
    log_p: Tensor,
    log_r: Tensor,
    true_ids: Tensor,
    gamma: float | Tensor = 1.0,
    candidates: Tensor | None = None,
    fill: Tensor | None = None,
) -> Tensor:
    """Float[...]: log softmax_v(log p + gamma log r) at the true token: the guided NELBO (docs/method.md eq. 1, 9').

    Feed it to `forward.nelbo_terms` on target data: minimised over a token ratio it is eq. 9'; with a trained ratio it
    is the guided model's likelihood. It is always normalised over all v tokens, so it is a proper, finite bound also
    when a sequence ratio has scored only some candidates: the others take the log-ratio `fill`, as if revealing them
    left the ratio unchanged.

    Args:
        log_p: Float[...,v] denoiser log-probabilities at the masked positions, may hold -inf.
        log_r: Float[...,v], or Float[...,n] when `candidates` is given.
        true_ids: Long[...] the clean tokens.
        gamma: guidance strength.
        candidates: Long[...,n] the ids that log_r belongs to.
        fill: Float[...] log r(x_U) of each row's own x_t; required with `candidates`.

    Raises:
        UserError: only one of `candidates` and `fill` is given.
    """
    if (candidates is None) != (fill is None):
        raise UserError("candidates and fill belong together: give both, or neither and a log_r of every token")
    log_p, log_r = wide(log_p), wide(log_r)
    if candidates is not None and fill is not None:
        log_r = wide(fill)[..., None].expand_as(log_p).scatter(-1, candidates, log_r)
    return torch.log_softmax(tilt(log_p, log_r, gamma), -1).gather(-1, true_ids[..., None]).squeeze(-1)


# Which ratio, how strong, how many candidates


@dataclass(frozen=True)
class SequenceRatio:
    """Marks f(x_t: Long[b,l], t: Float[b]) -> Float[b], log r of the sequence itself."""

    f: RatioNetwork

    def of(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE) -> Tensor:
        """Float[b] in fp32 at least: log r of the sequences themselves, padded as `look` says.

        Raises:
            UserError: f gives no tensor, or one of another shape.
        """
        return wide(tensor_of(call(self.f, look, x_t, t), (len(x_t),), self.f, "ratio"))

    def log_ratio(
        self,
        x: Tensor,
        t: Tensor,
        t_next: Tensor,
        row: Tensor,
        position: Tensor,
        candidates: Tensor,
        chunk: int = 1024,
        hidden: Hidden | None = None,
    ) -> Tensor:
        """Float[m,n] in fp32 at least: log r(x_U + {l: v}), one sequence a candidate, `chunk` in a forward pass.

        Slot i is masked position `position[i]` of sequence `row[i]`, Long[m]; `candidates` Long[m,n] are the tokens to
        try there. x Long[b,l]; `t` Float[b] are its times, `t_next` those once one more position is revealed. What
        networks gave at (x, t), `hidden`, serves token-level ratios; here it says how the rows are padded.
        """
        m, n = candidates.shape
        tokens, scores = candidates.reshape(-1), []
        look = hidden.look if hidden else EVERYWHERE
        for index in torch.arange(m * n, device=x.device).split(chunk):
            slot = index // n
            tried = x[row[slot]].scatter(1, position[slot, None], tokens[index, None])
            # A copy: a callable may hand out the same memory every time.
            scores.append(self.of(tried, t_next[row[slot]], look).clone())
        return torch.cat(scores).view(m, n)


@dataclass(frozen=True)
class TokenRatio:
    """Marks f(x_t: Long[b,l], t: Float[b]) -> Float[b,l,v], log r after setting masked position l to v."""

    f: TokenLogRatio

    def log_ratio(
        self,
        x: Tensor,
        t: Tensor,
        t_next: Tensor,
        row: Tensor,
        position: Tensor,
        candidates: Tensor | None,
        chunk: int = 1024,
        hidden: Hidden | None = None,
    ) -> Tensor:
        """Float[m,n]: log r(x_U + {l: v}) of all candidates in one pass; arguments as in `SequenceRatio.log_ratio`.

        `candidates` None are all v tokens, in their order. Few of a large vocabulary are scored alone, where f has
        `decode_at` (`protocols.Encoder`).
        """
        hidden = hidden or Hidden(x, t)
        if candidates is None:
            return wide(hidden.at(self.f, row, position, "ratio"))
        return wide(hidden.at_tokens(self.f, row, position, candidates, "ratio"))


@dataclass(frozen=True)
class Guidance:
    """How a sampler is guided: p * r^gamma over the n_ratio most likely tokens (docs/method.md eq. 5, section 2.4).

    Attributes:
        ratio: the log-ratio; the wrapper says its kind.
        gamma: strength, or a function of the revealed share in [0, 1] (before the reveal) that returns it.
        n_ratio: tokens scored at a position; None scores all.
        stabilise: ancestral sampling keeps p(x_s = mask | x_t) and tilts the other tokens only; False takes eq. 5 as
            it stands.
        chunk: candidate sequences per forward pass of a sequence ratio; bounds memory, changes no result.

    Raises:
        UserError: gamma is negative, not finite or above GAMMA_MAX, n_ratio or chunk is below 1, ratio is not wrapped.
    """

    ratio: SequenceRatio | TokenRatio
    gamma: float | Callable[[float], float] = 1.0
    n_ratio: int | None = None
    stabilise: bool = True
    chunk: int = 1024

    def __post_init__(self) -> None:
        if not isinstance(self.ratio, SequenceRatio | TokenRatio):
            raise UserError("guidance ratio must be wrapped: SequenceRatio(f) or TokenRatio(f)")
        if not callable(self.ratio.f) and not isinstance(self.ratio.f, Encoder):
            raise UserError(f"the ratio is a {type(self.ratio.f).__name__}; give a function of (x_t, t)")
        if self.n_ratio is not None:
            check_whole("n_ratio", self.n_ratio, least=1)
        check_whole("guidance chunk", self.chunk, least=1)
        if not callable(self.gamma):
            strength_at(self.gamma, 0.0)

    def strengths(self, length: int) -> list[float]:
        """gamma after 0, 1, ..., length revealed positions.

        Raises:
            UserError: the function returned what is no gamma.
        """
        return [strength_at(self.gamma, revealed / length) for revealed in range(length + 1)]


@dataclass(frozen=True)
class LinearGamma:
    """A strength that goes linearly from `start` with nothing revealed to `start * end` with all revealed.

    Early reveals decide the domain, late ones the wording: `end` below 1 guides the first and spares the second.
    """

    start: float
    end: float

    def __call__(self, share: float) -> float:
        """gamma at a revealed share in [0, 1]."""
        return self.start * (1 + (self.end - 1) * share)


def linear_gamma(start: float, end: float) -> float | LinearGamma:
    """`LinearGamma`, or the plain number where it is constant."""
    return start if end == 1 else LinearGamma(start, end)


def strength_at(gamma: float | Callable[[float], float], share: float) -> float:
    """A strength, or its function at a revealed share, checked.

    Raises:
        UserError: it is no number, negative, not finite or above `GAMMA_MAX`.
    """
    with taking(gamma, share):
        value = gamma(share) if callable(gamma) else gamma
    try:
        strength = value.__float__()  # not float(), which reads text
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"gamma must be a number, or a function of the revealed share that returns one; got {type(value).__name__}"
        ) from error
    if not 0 <= strength <= GAMMA_MAX:
        raise UserError(f"gamma must be finite and not negative, at most {GAMMA_MAX:g}; got {strength}")
    return strength
