"""Post-training by preferences (docs/method.md 3.5): of two texts one is preferred.

    -log sigmoid(beta [ (L(x_w) - L_ref(x_w)) - (L(x_l) - L_ref(x_l)) ])

L is the evidence lower bound, minus eq. 1, in the place of the log-likelihood that a diffusion model does not have. The
sigmoid must be of the *mean* over noise: of single draws, its mean has another minimiser. So L is averaged over several
masks first, the same masks for the winner, the loser and the frozen reference, whose differences then hold less noise
(VRPO, arXiv 2505.19223). Where L is the likelihood, as for texts of one token, the minimiser is p_ref exp(R / beta) if
preferences follow R by Bradley and Terry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gtl_lightning.core.forward import level_nelbo_terms, level_sample
from gtl_lightning.errors import UserError


def noised_pairs(
    winner: Tensor,
    loser: Tensor,
    mask_index: int,
    draws: int,
    generator: torch.Generator | None = None,
    pad_index: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mask both texts of each pair at the same positions, `draws` times (as `forward.level_sample`).

    Args:
        winner: Long[b,l].
        loser: Long[b,l].
        mask_index: id of the mask.
        draws: masks a pair.
        generator: source of randomness.
        pad_index: id of the padding, where batches hold any: the same positions of both texts, and never masked.

    Returns:
        Long[s,b,l] the noised winners, Long[s,b,l] the noised losers, masked Bool[s,b,l], count Long[s,b] of masks.

    Raises:
        UserError: texts of different or no length, padding of one that is none of the other, or no draw.
    """
    if winner.shape != loser.shape or winner.dim() != 2 or winner.shape[1] == 0:
        raise UserError(
            f"preferred texts have shape {list(winner.shape)}, the others {list(loser.shape)}; cut the texts of a "
            "pair to one length of at least 1"
        )
    if draws < 1:
        raise UserError(f"masks a pair must be at least 1, got {draws}")
    every, frozen = winner.expand(draws, *winner.shape), None
    if pad_index is not None:
        padding = torch.eq(winner, pad_index)
        if padding.all(-1).any() or (padding ^ torch.eq(loser, pad_index)).any():
            raise UserError("the texts of a pair are of different or no length; cut them to one length of at least 1")
        frozen = padding.expand_as(every)
    x_w, masked, count = level_sample(every, mask_index, generator, frozen=frozen)
    return x_w, loser.masked_fill(masked, mask_index), masked, count


def pair_elbo(log_prob_true: Tensor, masked: Tensor, count: Tensor, length: Tensor | None = None) -> Tensor:
    """Float[b]: L, minus eq. 1 in nats per text, the mean over s masks.

    Args:
        log_prob_true: Float[s,b,l] log p_theta(x_0^l | x_t); read at masked positions only.
        masked: Bool[s,b,l].
        count: Long[s,b] of masks.
        length: Long[b] tokens of each text, where there is padding.
    """
    return -(masked.shape[-1] if length is None else length) * level_nelbo_terms(log_prob_true, masked, count).mean(0)


def preference_loss(winner: Tensor, winner_ref: Tensor, loser: Tensor, loser_ref: Tensor, beta: float) -> Tensor:
    """Float[b]: the loss of each pair, from `pair_elbo` of the model and of the frozen reference under the same masks.

    Args:
        winner: Float[b] L of the preferred text.
        winner_ref: Float[b] the reference's.
        loser: Float[b] L of the other text.
        loser_ref: Float[b] the reference's.
        beta: how far the model may go from the reference: the smaller, the further.

    Raises:
        UserError: beta is not positive and finite, or L was not averaged to one number a pair.
    """
    if not 0 < beta < math.inf:
        raise UserError(f"beta must be a positive number, got {beta!r}")
    if len({tuple(part.shape) for part in (winner, winner_ref, loser, loser_ref)}) > 1 or winner.dim() != 1:
        raise UserError("give one L a pair, averaged over its masks: `pair_elbo`")
    gain = (winner - winner_ref.detach()) - (loser - loser_ref.detach())
    return softplus(-beta * gain)
