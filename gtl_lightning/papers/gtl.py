"""Guided transfer learning (GTL, arXiv 2512.10877): what a density-ratio network learns from.

r(x_U) = q(x_U) / p(x_U) is the ratio of target to source over the unmasked positions U; for absorbing noise it does not
depend on time (docs/method.md section 2). Convention everywhere: log_ratio = log q/p, the target domain is positive.
How a trained ratio guides a sampler: core/guidance.py.

Every loss returns Float[b], one term an example; take the mean. Log-ratios are in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gtl_lightning.core.guidance import tilt
from gtl_lightning.errors import UserError

CAP = 20.0
"""log r above which exp(f) is continued by its tangent, unless weights are heavier."""

# From classifier logits to log-ratios (docs/method.md section 2.1)


def unsmooth(logit: Tensor, smoothing: float, floor: float = 1e-4) -> Tensor:
    """Undo label smoothing: the logit of d = (d' - e) / (1 - 2e), d' = sigmoid(logit), e = `smoothing`.

    d is clamped to [floor, 1 - floor], since a network may overshoot the cap +-log((1 - e) / e) of a smoothed logit.

    Raises:
        UserError: smoothing outside [0, 0.5).
    """
    _check_smoothing(smoothing)
    if smoothing == 0:
        return logit
    d = (torch.sigmoid(logit) - smoothing) / (1 - 2 * smoothing)
    return torch.logit(d.clamp(floor, 1 - floor))


def log_ratio_from_logit(logit_target: Tensor, share_target: float = 0.5) -> Tensor:
    """log q/p from the logit of P(target | .), corrected for the share of target examples among those trained on.

    Raises:
        UserError: the share is not strictly between 0 and 1.
    """
    return logit_target - _log_odds(share_target)


# Losses of a sequence-level ratio network f = log r(x_t), Float[b]


def log_mse_loss(f: Tensor, log_r_star: Tensor) -> Tensor:
    """(f - log r*(x_0))^2 on source data (docs/method.md eq. 7a, as published).

    Its minimiser E_p[log r* | x_t] lies below log r(x_t) by Jensen's inequality; kept for comparison.
    """
    return (f - log_r_star) ** 2


def gkl_loss(f: Tensor, log_r_star: Tensor, clip: float | None = None) -> Tensor:
    """exp(f) - r*(x_0) f on source data (docs/method.md eq. 7b); minimiser f = log E_p[r* | x_t] = log r(x_t).

    Args:
        f: Float[b] the network's log-ratio of x_t.
        log_r_star: Float[b] the clean classifier's log-ratio of x_0.
        clip: upper bound on r*, against outliers; biases the minimiser where it bites.
    """
    weights = _weights(log_r_star, clip)
    # Above the cap a heavier weight than its slope would leave the loss without a minimum.
    return capped_exp(f, (weights.amax().log() + 1).clamp(min=CAP)) - weights * f


def bce_loss(f: Tensor, is_target: Tensor, smoothing: float = 0.0, share_target: float = 0.5) -> Tensor:
    """Binary cross-entropy on noised pairs (docs/method.md eq. 7c); also trains the domain classifier on clean x_0.

    Args:
        f: Float[b] log-ratio; the classifier's logit is f + log(share_target / share_source).
        is_target: Bool[b] True for target examples.
        smoothing: e, the labels are e and 1 - e. With e > 0 the minimiser is shrunk: see `unsmooth`.
        share_target: share of target examples among those drawn.
    """
    _check_smoothing(smoothing)
    label = is_target.to(f.dtype) * (1 - 2 * smoothing) + smoothing
    return binary_cross_entropy_with_logits(f + _log_odds(share_target), label, reduction="none")


def cycle_loss(f: Tensor, log_r_t: Tensor) -> Tensor:
    """(f - log_r_t)^2 on TARGET data (docs/method.md eq. 8); log_r_t is the frozen time-dependent classifier's."""
    return (f - log_r_t.detach()) ** 2


# Losses of a token-level ratio network g[l, v] = log r(x_U + {l: v}), read at the true tokens (docs/method.md 2.2)


def token_bce_loss(
    g_true: Tensor, masked: Tensor, is_target: Tensor, smoothing: float = 0.0, share_target: float = 0.5
) -> Tensor:
    """Sum over masked positions of the cross-entropy at the true token (docs/method.md eq. 9).

    Args:
        g_true: Float[b,l] g[l, x_0^l]; read at masked positions only.
        masked: Bool[b,l].
        is_target: Bool[b].
        smoothing: as in `bce_loss`.
        share_target: as in `bce_loss`.
    """
    g_true = g_true.masked_fill(~masked, 0.0)
    labels = is_target[:, None].expand_as(g_true)
    return (bce_loss(g_true, labels, smoothing, share_target) * masked).sum(-1)


def token_gkl_loss(g_true: Tensor, masked: Tensor, log_r_star: Tensor, clip: float | None = None) -> Tensor:
    """Sum over masked positions of exp(g) - r*(x_0) g at the true token, on source (docs/method.md eq. 9, form 7b).

    Shapes as in `token_bce_loss`; log_r_star Float[b] and clip as in `gkl_loss`.
    """
    return (gkl_loss(g_true.masked_fill(~masked, 0.0), log_r_star[:, None], clip) * masked).sum(-1)


def martingale_penalty(log_p: Tensor, g: Tensor, masked: Tensor) -> Tensor:
    """Variance over the masked positions of logsumexp_v(log p(v | x_U) + g[l, v]), which eq. 6 makes one number.

    Args:
        log_p: Float[b,l,v] the frozen denoiser's log-probabilities.
        g: Float[b,l,v] the token-level log-ratio.
        masked: Bool[b,l].
    """
    log_r = torch.logsumexp(tilt(log_p, g), -1).masked_fill(~masked, 0.0)
    count = masked.sum(-1).clamp(min=1)
    mean = log_r.sum(-1, keepdim=True) / count[:, None]
    return (((log_r - mean) ** 2) * masked).sum(-1) / count


# What a ratio makes of examples of the source (docs/method.md eq. 9'')


def importance_draws(log_r: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Long[count]: indices of examples of p, drawn with replacement in proportion to r: examples of q.

    For any h, E_q h = E_p r h: what is drawn from a large sample of p stands in for a sample of q, as far as the ratio
    is right (docs/method.md eq. 9'').

    Args:
        log_r: Float[n] log-ratio of each example of p.
        count: how many to draw.
        generator: on the CPU.

    Raises:
        UserError: log_r holds NaN or +inf, or no example has any weight.
    """
    log_r = log_r.double().cpu()
    if not (log_r < math.inf).all() or not log_r.isfinite().any():
        raise UserError("a log-ratio to draw by is NaN or infinite, or all of them are -inf; look at the classifier")
    total = torch.softmax(log_r, dim=0).cumsum(0)
    # Not torch.multinomial: it takes 2^24 examples at most.
    where = torch.rand(count, generator=generator, dtype=torch.float64) * total[-1]
    return torch.searchsorted(total, where, right=True).clamp(max=len(total) - 1)


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 0.5:
        raise UserError(f"label smoothing must lie in [0, 0.5), got {smoothing}")


def _log_odds(share_target: float) -> float:
    if not 0 < share_target < 1:
        raise UserError(f"share_target must lie strictly between 0 and 1, got {share_target}")
    return math.log(share_target / (1 - share_target))


def _weights(log_r_star: Tensor, clip: float | None) -> Tensor:
    """r* = exp(log r*), at most `clip`, without gradient."""
    if clip is not None and not clip > 0:
        raise UserError(f"clip must be positive, got {clip}")
    return log_r_star.detach().clamp(max=math.inf if clip is None else math.log(clip)).exp()


def capped_exp(f: Tensor, cap: float | Tensor = CAP) -> Tensor:
    """exp(f), continued by its tangent above `cap`: still convex, no overflow, the same minimiser for r* < e^cap."""
    low = f.clamp(max=cap)
    return low.exp() * (1 + f - low)
