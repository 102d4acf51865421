"""Post-training by a density ratio (docs/method.md 3.3): the wanted law over a frozen denoiser's.

r = p / p_ref of clean text given z_t. Positives are true tokens, negatives what the frozen denoiser predicts at the
same masked positions; no text of its source and no classifier is read. Three losses have r as their minimiser:

    LSIF  1/2 E_ref r^2 - E_p r
    BCE   E_p -log sigmoid(log r) + E_ref -log sigmoid(-log r)
    GKL   E_ref r - E_p log r

With negatives of one position, the mean over them is summed, not drawn (`conditional_*_loss`): that is the form for
denoisers whose positions are independent. Their product over positions against whole texts has another minimiser, as no
such product is the ratio of the joint laws. With a network that scores whole texts, they are drawn (`*_pair_loss`).

Either r is a network of its own, *explicit*, or *implicit*, the quotient of a denoiser that trains and the frozen one,
`implicit_log_ratio`: then E_ref r = 1 at any parameters, and GKL is the cross-entropy, plain fine-tuning. A network f
of the energy of whole texts, p_theta(y | x^{-i}, z_t) proportional to p_ref(y | z_t) exp f([y, x^{-i}], z_t), is what
`core.guidance.guided_log_probs` makes of the f of all y; it is trained by eq. 12.

Convention everywhere: log_ratio = log p/p_ref, the wanted law is positive, in nats. Every loss returns one term a
position, or a pair; take the mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gtl_lightning.papers.gtl import capped_exp


def implicit_log_ratio(log_p: Tensor, log_p_ref: Tensor) -> Tensor:
    """Float[...,v]: log p_theta / p_ref of a denoiser that trains and the frozen one; 0 where the latter excludes.

    There the losses, whose negatives are the frozen one's, ask for nothing.
    """
    log_p_ref = log_p_ref.detach()
    excluded = log_p_ref == -math.inf
    # Filling before subtracting keeps gradients finite.
    return log_p.masked_fill(excluded, 0.0) - log_p_ref.masked_fill(excluded, 0.0)


def conditional_bce_loss(g: Tensor, log_p: Tensor, true_ids: Tensor) -> Tensor:
    """-log sigmoid(g[x_0^l]) + E_{v ~ p(. | x_U)} -log sigmoid(-g[v]) at masked positions of TARGET texts.

    The binary cross-entropy of a true token against a predicted one, both equally often; the mean over the prediction
    is summed, not drawn: the same minimiser, less noise. Over target texts, however positions are weighted, that is

        g[l, v] = log q(v | x_U) - log p(v | x_U)        wherever p(v | x_U) > 0.

    So p e^g = q needs no normalisation, and a denoiser that predicts q already has g = 0. Where p is the source's own
    conditional, g = log r(x_U + {l: v}) - log r(x_U): the token ratio, up to a number of each x_U that guidance never
    sees. Where p gives a token nothing, no g makes it possible.

    Args:
        g: Float[...,v] log-ratio of every token at the position.
        log_p: Float[...,v] the frozen denoiser's log-probabilities, may hold -inf; no gradient flows into it.
        true_ids: Long[...] the clean tokens.
    """
    positive = softplus(-g.gather(-1, true_ids[..., None]).squeeze(-1))
    return positive + (log_p.detach().exp() * softplus(g)).sum(-1)


def conditional_lsif_loss(g: Tensor, log_p: Tensor, true_ids: Tensor) -> Tensor:
    """1/2 sum_v p(v | x_U) e^{2 g[v]} - e^{g[x_0^l]} at masked positions: LSIF, negatives summed.

    For the implicit g the first term is 1/2 sum_v p_theta^2 / p_ref in closed form. Summed in logs, and beyond e^20
    continued by the tangent. Minimiser and arguments as of `conditional_bce_loss`.
    """
    return capped_exp(_log_mean(2 * g, log_p)) / 2 - capped_exp(_at(g, true_ids))


def conditional_gkl_loss(g: Tensor, log_p: Tensor, true_ids: Tensor) -> Tensor:
    """sum_v p(v | x_U) e^{g[v]} - g[x_0^l] at masked positions: the generalised KL, negatives summed.

    For the implicit g the first term is 1 whatever the parameters: the cross-entropy. Minimiser and arguments as of
    `conditional_bce_loss`.
    """
    return capped_exp(_log_mean(g, log_p)) - _at(g, true_ids)


def lsif_pair_loss(f_true: Tensor, f_ref: Tensor) -> Tensor:
    """1/2 r^2 of a negative less r of a positive: Float[...] log-ratios of as many of both."""
    return capped_exp(2 * f_ref) / 2 - capped_exp(f_true)


def bce_pair_loss(f_true: Tensor, f_ref: Tensor) -> Tensor:
    """The binary cross-entropy of a positive and a negative; arguments as of `lsif_pair_loss`."""
    return softplus(-f_true) + softplus(f_ref)


def gkl_pair_loss(f_true: Tensor, f_ref: Tensor) -> Tensor:
    """r of a negative less log r of a positive; arguments as of `lsif_pair_loss`."""
    return capped_exp(f_ref) - f_true


def _at(g: Tensor, ids: Tensor) -> Tensor:
    return g.gather(-1, ids[..., None]).squeeze(-1)


def _log_mean(g: Tensor, log_p: Tensor) -> Tensor:
    """log sum_v p(v) e^{g[v]}; what p excludes counts for nothing, whatever g is there."""
    log_p = log_p.detach()
    return torch.logsumexp(log_p + g.masked_fill(log_p == -math.inf, 0.0), -1)
