"""The objective (docs/method.md eqs. 11 to 13): match the concrete score, or the law of one position.

    (11) score form         E_{t, z_t, x_0 ~ p(. | z_t)} sum_i D(c_p(., i), c_theta(., i))
    (12) distribution form  E_{t, z_t, x_0 ~ p(. | z_t)} sum_i D(p(x^i | x_0^{-i}, z_t), p_theta(x^i | z_t))

D is a Bregman divergence with the target first, i runs over the masked positions, or over all of them under uniform
noise. (13): given x_0^i and z_t the mean of c_p(y, i) is p(y | z_t) / p(x_0^i | z_t), so a denoiser whose positions are
independent is led to the marginals p(x^i | z_t). That needs the target first and x_0 from the posterior: with the model
first, or x_0 from elsewhere, the minimiser is another one. Data give such x_0 for nothing: noise a text and keep it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gtl_lightning.core.forward import nelbo_terms
from gtl_lightning.core.guard import wide
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.errors import UserError
from gtl_lightning.papers.gtl import capped_exp
from gtl_lightning.papers.tcsm.conditionals import Conditional

FLOOR = 1e-3
"""Least probability, in units of the uniform 1 / V, that the score form takes at its word."""


def generalised_kl(log_u: Tensor, log_w: Tensor) -> Tensor:
    """sum_y u log(u / w) - u + w, the Bregman divergence of sum u log u, of two Float[...,v] in logs -> Float[...].

    Of concrete scores it is eq. 11 as it stands, for whoever has both: any law of x_0, factorised or not, with any x_0
    that gives all tokens a chance. `score_loss` is its mean over x_0 for a denoiser, from a single x_0.
    """
    u = log_u.exp()
    return (torch.where(u > 0, u * (log_u - log_w), 0.0) - u + log_w.exp()).sum(-1)


def score_terms(log_p_true: Tensor, mean_log_p: Tensor, vocab_size: int | Tensor, floor: float = FLOOR) -> Tensor:
    """Float[...]: eq. 11 with the generalised KL over V, up to a constant, of a denoiser with independent positions.

        -log p_theta(x_0^i) + 1 / (V p_theta(x_0^i)) + (1 / V) sum_y log p_theta(y)

    In the mean over x_0^i it is KL(p, p_theta) + (1 / V) IS(p, p_theta), IS the Itakura-Saito divergence: that of eq.
    12 and one that weighs all tokens alike, the rare as much as the frequent. Both are least at p_theta = p.

    The probabilities are floored, smoothly where gradients matter. Below floor / V the second term goes on as its
    tangent in log p, so that a token the model has given up is still pushed up; and the third, which alone would push
    tokens to zero without end, stops where the geometric mean of p_theta reaches floor / V. Tokens rarer than floor / V
    are left to the cross-entropy. At V = 30,000 the second term is large early: mix the loss with the cross-entropy.

    Args:
        log_p_true: Float[...] log p_theta(x_0^i | z_t).
        mean_log_p: Float[...] the mean of log p_theta(y | z_t) over the tokens y: `mean_log_prob`.
        vocab_size: V, the number of these tokens, or Long[...]; mask and padding are none.
        floor: in units of 1 / V.

    Raises:
        UserError: the floor is not in (0, 1).
    """
    if not 0 < floor < 1:
        raise UserError(f"the floor of the score form must lie strictly between 0 and 1, got {floor}")
    log_p_true, mean_log_p = wide(log_p_true), wide(mean_log_p)
    log_v = torch.zeros((), dtype=log_p_true.dtype, device=log_p_true.device).add(vocab_size).log()
    least = math.log(floor)
    return -log_p_true + capped_exp(-log_p_true - log_v, -least) + torch.maximum(mean_log_p, least - log_v)


def mean_log_prob(log_p_true: Tensor, logit_true: Tensor, mean_logit: Tensor) -> Tensor:
    """Float[...]: (1 / V) sum_y log p_theta(y), of which no token's probability is looked at but the true one's.

    log p differs from the logits by one number, the same for all tokens, which the true token tells. The mean logit is
    the projection by the mean row of weights (`networks.Decoder.mean_logit`): beside the cross-entropy, which needs the
    logsumexp over the vocabulary anyway, the score form costs two dot products a position.

    Args:
        log_p_true: Float[...] log p_theta(x_0^i | z_t).
        logit_true: Float[...] the logit of x_0^i.
        mean_logit: Float[...] the mean of the logits over the tokens.
    """
    return log_p_true + (mean_logit - logit_true)


def score_loss(log_p: Tensor, true_ids: Tensor, floor: float = FLOOR) -> Tensor:
    """Float[...,v], Long[...] -> Float[...]: `score_terms` of whole rows of log-probabilities, -inf at specials.

    For rows that are some of all positions at a time, as `networks.in_parts` hands them out.
    """
    log_p = wide(log_p)
    token = log_p > -math.inf
    vocab_size = token.sum(-1)
    mean = log_p.masked_fill(~token, 0.0).sum(-1) / vocab_size
    return score_terms(log_p.gather(-1, true_ids[..., None]).squeeze(-1), mean, vocab_size, floor)


def distillation_loss(log_p: Tensor, target: Conditional) -> Tensor:
    """Float[m]: KL(pi_i || p_theta(. | z_t)), eq. 12 with the law pi_i that a teacher gives position i.

    What the teacher left in one bucket is compared with all that p_theta gives to the tokens in it. With pi_i a single
    token for certain it is the cross-entropy -log p_theta(x_0^i), which is the forward KL on data: `weighted`, it is
    eq. 1.

    Args:
        log_p: Float[m,v] log-probabilities at the m positions of the target.
        target: of as many positions.

    Raises:
        UserError: another number of positions, or a teacher that knows more tokens than the model.
    """
    log_p = wide(log_p)
    if len(log_p) != len(target.ids):
        raise UserError(f"{len(log_p)} positions of the model and {len(target.ids)} of the teacher; give the same ones")
    if target.vocab_size > log_p.shape[-1]:
        raise UserError(
            f"the teacher knows {target.vocab_size} tokens, the model {log_p.shape[-1]}; take a teacher of the model's "
            "tokenizer"
        )
    pi, log_model = target.log_pi.exp(), log_p.gather(-1, target.ids)
    # Where pi is 0 the model may be too: nothing is asked of it there.
    terms = torch.where(pi > 0, pi * (target.log_pi - log_model), 0.0).sum(-1)
    if target.complete:
        return terms
    share = target.log_rest.exp()
    left = log_p.scatter(-1, target.ids, -math.inf)
    # Where nothing is left the model may have nothing there either, and a sum of nothing has no gradient.
    rest = torch.where((share > 0)[:, None], left, 0.0).logsumexp(-1)
    return terms + torch.where(share > 0, share * (target.log_rest - rest), 0.0)


def weighted(terms: Tensor, positions: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Float[b]: the terms of the positions that count, with the weight that time t has in eq. 1.

    Of terms -log p_theta(x_0^i) at the masked positions it is `forward.nelbo_terms`, MDLM's loss, to the last bit.

    Args:
        terms: Float[b,l], read at `positions` only.
        positions: Bool[b,l] the masked ones; under uniform noise all that are no padding.
        t: Float[b].
        schedule: the one z_t was drawn with.
    """
    return nelbo_terms(-terms, positions, t, schedule)
