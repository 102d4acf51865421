"""Laws that can be computed exactly: posteriors, marginals and density ratios at any noise level, the tests' oracle.

A law over {0..V-1}^L needs to supply one primitive, `log_joint`; all that guided transfer learning asks of a source and
a target follows from it. Observations enter as likelihoods e[l, y] = P(z_l | x_l = y), which covers both noises:

    absorbing   e = 1 where z_l is the mask (nothing is observed), else 1[y = z_l]
    uniform     e = alpha 1[y = z_l] + (1 - alpha) / V

so the methods take `alpha`: None for absorbing noise, whose posteriors and ratios do not depend on the time, or the
share of kept tokens for uniform noise. Everything is float64. V counts the clean tokens; the mask id is V, and tensors
over the vocabulary have V + 1 entries, as the Denoiser protocol asks.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor

from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.errors import UserError


class ExactDistribution(abc.ABC):
    """A distribution over token sequences whose conditionals are known exactly. Called as (x_t, t) it is a Denoiser.

    Attributes:
        states: V, the number of clean tokens; the mask id is V.
        normalised: as a Denoiser, it promises a law.
    """

    states: int
    normalised = True

    @abc.abstractmethod
    def log_joint(self, likelihood: Tensor) -> Tensor:
        """log p(x_l = y, observations at every position but l), for all l and y in one pass.

        Args:
            likelihood: Float64[b,l,V], e[l, y] = P(z_l | x_l = y).

        Returns:
            Float64[b,l,V]; -inf where impossible.
        """

    @abc.abstractmethod
    def sample(self, n: int, length: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` independent sequences, Long[n, length].

        Raises:
            UserError: n or length is below 1, or the law has no sequences of that length.
        """

    @abc.abstractmethod
    def entropy(self, length: int) -> float:
        """Entropy in nats per sequence: the smallest NELBO (eq. 1) that any denoiser reaches, and the exact one's."""

    @abc.abstractmethod
    def support_mismatch(self, target: ExactDistribution) -> str | None:
        """Name the first entry at which one law is zero and the other is not; None where log(target/self) is finite."""

    @property
    def mask_index(self) -> int:
        """The mask's token id, V."""
        return self.states

    def log_prob(self, x_0: Tensor) -> Tensor:
        """log p(x_0) of clean sequences: Long[b,l] -> Float64[b], nats; -inf where impossible."""
        return self.log_marginal(x_0)

    def log_marginal(self, x_t: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """log p(x_U) under absorbing noise, U the unmasked positions; log p_t(x_t) under uniform noise.

        The noising factor alpha^|U| (1 - alpha)^|M| of absorbing noise is left out: it is the same for every law.

        Args:
            x_t: Long[b,l].
            alpha: None for absorbing noise, else Float[b] or a number: the share of kept tokens.

        Returns:
            Float64[b], nats; -inf where impossible.
        """
        likelihood = self.likelihood(x_t, alpha)
        return (self.log_joint(likelihood)[:, 0] + likelihood[:, 0].log()).logsumexp(-1)

    def posterior(self, x_t: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """Exact log p(x_0^l = y | x_t): what an ideal denoiser returns.

        Args:
            x_t: Long[b,l].
            alpha: None for absorbing noise, else Float[b] or a number.

        Returns:
            Float64[b,l,V+1]; the mask's entry is -inf; under absorbing noise unmasked positions are carried over.

        Raises:
            UserError: x_t has probability zero, so there is no posterior.
        """
        likelihood = self.likelihood(x_t, alpha)
        joint = self.log_joint(likelihood) + likelihood.log()
        impossible = joint[:, 0].logsumexp(-1).isneginf()
        if bool(impossible.any()):
            row = int(impossible.nonzero()[0])
            raise UserError(
                f"x_t row {row}, {x_t[row].tolist()}, has probability zero: no posterior; use a law with full support"
            )
        return torch.nn.functional.pad(joint.log_softmax(-1), (0, 1), value=-torch.inf)

    def __call__(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """Denoiser for absorbing noise: `posterior(x_t)`; the time is not used."""
        return self.posterior(x_t)

    def denoiser(self, schedule: NoiseSchedule | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """The exact denoiser (x_t, t) -> Float64[b,l,V+1]: absorbing noise, or uniform noise on `schedule`."""
        return lambda x_t, t: self.posterior(x_t, None if schedule is None else schedule.alpha(t))

    def log_neighbours(self, x_t: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """`log_marginal` of every sequence that differs from x_t in one position at most, in one pass.

        Entry [l, v] sets position l to v; the mask's entry leaves position l unobserved. Minus `log_marginal(x_t)` it
        is the log concrete score of docs/method.md section 2.5 (absorbing: up to the noising factor).

        Args:
            x_t: Long[b,l].
            alpha: None for absorbing noise, else Float[b] or a number.

        Returns:
            Float64[b,l,V+1], nats.
        """
        joint = self.log_joint(self.likelihood(x_t, alpha))
        unobserved = joint.logsumexp(-1, keepdim=True)
        if alpha is not None:
            keep = torch.as_tensor(alpha, dtype=torch.float64, device=x_t.device).reshape(-1, 1, 1)
            joint = torch.logaddexp(keep.log() + joint, ((1 - keep) / self.states).log() + unobserved)
        return torch.cat([joint, unobserved], dim=-1)

    def likelihood(self, x_t: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """e[l, y] = P(x_t^l | x_0^l = y) (absorbing: up to a factor free of y): Long[b,l] -> Float64[b,l,V].

        Raises:
            UserError: a token outside the vocabulary, or alpha outside [0, 1].
        """
        highest = self.states if alpha is None else self.states - 1
        if x_t.dim() != 2 or 0 in x_t.shape:
            raise UserError(
                f"x_t has shape {list(x_t.shape)}; give token ids of shape [batch, length], neither of them 0"
            )
        if int(x_t.min()) < 0 or int(x_t.max()) > highest:
            raise UserError(f"x_t holds ids {int(x_t.min())}..{int(x_t.max())}; this law knows 0..{highest}")
        # The row V of the table, the mask's, is all ones: nothing was observed.
        table = torch.eye(self.states + 1, self.states, dtype=torch.float64, device=x_t.device)
        table[self.states] = 1.0
        observed = table[x_t]
        if alpha is None:
            return observed
        keep = torch.as_tensor(alpha, dtype=torch.float64, device=x_t.device).reshape(-1, 1, 1)
        if bool(((keep < 0) | (keep > 1) | keep.isnan()).any()):
            raise UserError("alpha must lie in [0, 1]: it is the probability that a token is kept")
        return keep * observed + (1 - keep) / self.states


class ExactRatio:
    """The exact log density ratio log q/p of a target law to a source law, at any noise level (eq. 3).

    `SequenceRatio(ratio.sequence)` and `TokenRatio(ratio.token)` are exact guidance. Where neither law gives any mass,
    so that nothing can be sampled there, the log-ratio is 0.

    Args:
        source: p.
        target: q.
        schedule: None for absorbing noise, whose ratio does not depend on t; else uniform noise on this schedule.

    Raises:
        UserError: the vocabularies differ, or one law is zero where the other is not (the ratio would be infinite).
    """

    def __init__(
        self, source: ExactDistribution, target: ExactDistribution, schedule: NoiseSchedule | None = None
    ) -> None:
        if source.states != target.states:
            raise UserError(
                f"source has {source.states} states and target {target.states}; a ratio needs the same vocabulary"
            )
        if mismatch := source.support_mismatch(target):
            raise UserError(f"{mismatch}: the density ratio is zero or infinite; give both laws the same support")
        self.source, self.target, self.schedule = source, target, schedule

    def sequence(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """log r_t(x_t): Long[b,l], Float[b] -> Float64[b]."""
        alpha = self._alpha(t)
        return _log_quotient(self.target.log_marginal(x_t, alpha), self.source.log_marginal(x_t, alpha))

    def token(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """log r_t(x_t with position l set to v), all l and v in one pass: Long[b,l], Float[b] -> Float64[b,l,V+1].

        The mask's entry leaves position l unobserved; at a masked position that is log r_t(x_t) itself.
        """
        alpha = self._alpha(t)
        return _log_quotient(self.target.log_neighbours(x_t, alpha), self.source.log_neighbours(x_t, alpha))

    def _alpha(self, t: Tensor | None) -> Tensor | None:
        if self.schedule is None:
            return None
        if t is None:
            raise UserError("the ratio under uniform noise depends on the time: give t, Float[b]")
        return self.schedule.alpha(t)


def _log_quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Difference of logs with (-inf) - (-inf) = 0."""
    return torch.where(numerator.isneginf() & denominator.isneginf(), 0.0, numerator - denominator)


def check_probabilities(name: str, values: Tensor) -> Tensor:
    """`values` as float64 with the last axis summing to one exactly.

    Raises:
        UserError: an entry is negative or not finite, or a sum is off by more than 1e-5 (float32 rounding passes).
    """
    values = torch.as_tensor(values, dtype=torch.float64).detach()
    if 0 in values.shape:
        raise UserError(f"{name} is empty; give at least one probability")
    bad = (~values.isfinite() | (values < 0)).nonzero()
    if len(bad):
        index = bad[0].tolist()
        raise UserError(f"{name}{index} is {float(values[tuple(index)]):g}; probabilities are finite and not negative")
    total = values.sum(-1)
    off = ((total - 1).abs() > 1e-5).nonzero()
    if len(off):
        index = off[0].tolist()
        raise UserError(f"{name}{index or ''} sums to {float(total[tuple(index)]):.6g}; probabilities must sum to 1")
    return values / total.unsqueeze(-1)


def check_counts(n: int, length: int) -> None:
    """Refuse an empty sample.

    Raises:
        UserError: n or length is below 1.
    """
    if n < 1 or length < 1:
        raise UserError(f"n = {n}, length = {length}: both must be at least 1")


def first_mismatch(name: str, source: Tensor, target: Tensor) -> str | None:
    """Say where exactly one of two probability tensors of equal shape is zero; None where neither or both are."""
    bad = ((source > 0) != (target > 0)).nonzero()
    if not len(bad):
        return None
    index = bad[0].tolist()
    p, q = float(source[tuple(index)]), float(target[tuple(index)])
    return f"{name}{index} is {q:g} in the target and {p:g} in the source"
