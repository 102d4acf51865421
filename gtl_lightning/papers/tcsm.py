"""Target concrete score matching (TCSM, arXiv 2504.16431): a ratio to a frozen denoiser's own predictions.

Post-training by a density ratio: positives are true tokens of target texts, negatives are what the frozen denoiser
predicts at the same masked positions, given the same x_U. No source text and no classifier is read
(docs/method.md 2.6). Convention everywhere: log_ratio = log q/p, the target is positive, in nats.

Every loss returns one term a position; take the mean over the masked ones.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def conditional_bce_loss(g: Tensor, log_p: Tensor, true_ids: Tensor) -> Tensor:
    """-log sigmoid(g[x_0^l]) + E_{v ~ p(. | x_U)} -log sigmoid(-g[v]) at masked positions of TARGET texts.

    The binary cross-entropy of a true token against a predicted one, both equally often; the mean over the prediction
    is summed, not drawn: the same minimiser, less noise. Over target texts, however positions are weighted, that is

        g[l, v] = log q(v | x_U) - log p(v | x_U)        wherever p(v | x_U) > 0.

    So p e^g = q needs no normalisation, and a denoiser that predicts q already has g = 0. Where p is the source's own
    conditional, g = log r(x_U + {l: v}) - log r(x_U): the token ratio, up to a number of each x_U that guidance never
    sees. Where p gives a token nothing, no g makes it possible.

    This is the explicit form, g a network of its own. In the implicit one, g = log p' - log p with a second denoiser
    p', the generalised Kullback-Leibler loss is the cross-entropy of p': fine-tuning.

    Args:
        g: Float[...,v] log-ratio of every token at the position.
        log_p: Float[...,v] the frozen denoiser's log-probabilities, may hold -inf; no gradient flows into it.
        true_ids: Long[...] the clean tokens.
    """
    positive = softplus(-g.gather(-1, true_ids[..., None]).squeeze(-1))
    return positive + (log_p.detach().exp() * softplus(g)).sum(-1)
