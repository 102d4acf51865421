"""One likelihood scale for every model: the NELBO (docs/method.md eq. 1), also of the guided model (eq. 9').

Levels, masks and times come from the seed alone: methods evaluated with one seed see the same noise, and their
difference (`compare`) is far surer than either value. The estimator is in `masked_likelihood`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gtl_lightning.core.choices import check_kind
from gtl_lightning.core.guidance import GAMMA_MAX, Guidance, linear_gamma
from gtl_lightning.core.protocols import Denoiser
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.masked_likelihood import Masking, nelbo_sums


@dataclass(frozen=True)
class Likelihood:
    """Upper bound (NELBO) or exact value of the negative log-likelihood.

    Attributes:
        per_sequence: Float[n] (double) nats of each sequence, averaged over its draws.
        lengths: Long[n] tokens of each sequence.
    """

    per_sequence: Tensor
    lengths: Tensor

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return int(self.lengths.sum())

    @property
    def nats_per_token(self) -> float:
        """Total nats over total tokens."""
        return float(self.per_sequence.sum()) / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats_per_token); infinite where that overflows."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def standard_error(self) -> float:
        """Of nats_per_token, over the choice of texts and of noise (ratio estimator); NaN for one sequence."""
        return _ratio_error(self.per_sequence - self.nats_per_token * self.lengths, self.tokens)


def compare(a: Likelihood, b: Likelihood) -> tuple[float, float]:
    """(a - b in nats per token, its standard error), paired by sequence; negative where a is better.

    Raises:
        UserError: the two do not cover the same sequences.
    """
    if not torch.equal(a.lengths, b.lengths):
        raise UserError("likelihoods of different sequences cannot be compared; evaluate both on the same tokens")
    difference = Likelihood(a.per_sequence - b.per_sequence, a.lengths)
    return difference.nats_per_token, difference.standard_error


def nelbo(
    denoiser: Denoiser,
    tokens: Tensor | Sequence[Tensor],
    masking: Masking,
    guidance: Guidance | None = None,
) -> Likelihood:
    """NELBO of `denoiser`, or of p * r^gamma (normalised at every masked position) when `guidance` is given.

    A token ratio scores the whole vocabulary from one pass; its n_ratio is not used here. A sequence ratio is
    evaluated at masking.positions random masked positions a draw, as a correction to the unguided sum that is scaled by
    |M| / positions (unbiased, and exactly the unguided value at gamma = 0). There the n_ratio likeliest tokens are
    scored and all others take log r(x_U), so the distribution is normalised whatever the true token is; n_ratio = None
    scores all.

    Args:
        denoiser: Denoiser, read as the sampler reads it (`guard.Guard.law`); only masked positions meet the vocabulary
            if it is an Encoder. Modules are in eval mode for the call.
        tokens: Long[n,l] padded, or n sequences.
        masking: noise, ids and batches.
        guidance: ratio and gamma (a number, or a function of the revealed share); None evaluates the denoiser itself.

    Raises:
        UserError: no tokens, an empty sequence, a mask among the tokens, masking.batch below 1; a network that gives
            another shape, NaN, infinity or no law.
    """
    check_kind("guidance", guidance, Guidance, "Guidance(TokenRatio(f))")
    strengths = [] if guidance is None else [guidance.gamma]
    values, lengths = nelbo_sums(denoiser, tokens, masking, guidance, strengths)
    return Likelihood(values[-1], lengths)


def nelbo_by_gamma(
    denoiser: Denoiser,
    tokens: Tensor | Sequence[Tensor],
    masking: Masking,
    guidance: Guidance,
    gammas: Sequence[float],
    gamma_end: float = 1.0,
) -> dict[float, Likelihood]:
    """`nelbo` for every gamma from one pass of the networks; guidance.gamma is not used. Arguments as in `nelbo`.

    Each gamma is the strength with nothing revealed, gamma * gamma_end that with all revealed
    (`core.guidance.linear_gamma`).

    Raises:
        UserError: as `nelbo`; or no gamma, or one that is negative or not finite.
    """
    if isinstance(gammas, str) or not hasattr(gammas, "__iter__"):
        raise UserError(f"gammas is a {type(gammas).__name__}; give a list of guidance strengths")
    gammas = list(gammas)
    if not gammas:
        raise UserError("gammas is empty; give at least one guidance strength")
    for gamma in gammas:
        if not (hasattr(gamma, "__float__") and 0 <= gamma <= GAMMA_MAX):
            raise UserError(
                f"gammas holds {gamma!r}; guidance strengths are finite, not negative and at most {GAMMA_MAX:g}"
            )
    strengths = [linear_gamma(gamma, gamma_end) for gamma in gammas]
    values, lengths = nelbo_sums(denoiser, tokens, masking, guidance, strengths)
    return {gamma: Likelihood(value, lengths) for gamma, value in zip(gammas, values[1:], strict=True)}


@dataclass(frozen=True)
class GammaChoice:
    """The gamma of lowest validation NELBO, and the whole curve."""

    gamma: float
    curve: dict[float, Likelihood]

    def rows(self) -> list[dict[str, float]]:
        """The curve as flat rows: gamma, nelbo (nats a token), standard_error."""
        return [
            {"gamma": gamma, "nelbo": value.nats_per_token, "standard_error": value.standard_error}
            for gamma, value in sorted(self.curve.items())
        ]


def select_gamma(
    denoiser: Denoiser,
    tokens: Tensor | Sequence[Tensor],
    masking: Masking,
    guidance: Guidance,
    gammas: Sequence[float],
    gamma_end: float = 1.0,
) -> GammaChoice:
    """The gamma with the lowest NELBO on VALIDATION tokens; on a tie the smallest. Arguments as in `nelbo_by_gamma`.

    Raises:
        UserError: as `nelbo_by_gamma`; or the NELBO is finite at no gamma.
    """
    curve = nelbo_by_gamma(denoiser, tokens, masking, guidance, gammas, gamma_end)
    finite = {gamma: value.nats_per_token for gamma, value in curve.items() if math.isfinite(value.nats_per_token)}
    if not finite:
        raise UserError("the validation NELBO is finite at no gamma; check the denoiser and ratio checkpoints")
    return GammaChoice(min(sorted(finite), key=finite.__getitem__), curve)


def _ratio_error(residual: Tensor, tokens: int) -> float:
    n = len(residual)
    if n < 2:
        return math.nan
    return math.sqrt(n / (n - 1) * float((residual**2).sum())) / tokens
