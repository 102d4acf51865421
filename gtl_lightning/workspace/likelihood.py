"""The held-out likelihood of a cell: gamma chosen on validation texts, test texts read once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from gtl_lightning.core.schedule import schedule
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.evaluation.likelihood import GammaChoice, nelbo, select_gamma
from gtl_lightning.evaluation.masked_likelihood import Masking
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.sampler import Sampler, at_gamma

NOISE_SEED = 0
"""Of the held-out NELBO's noise, equal for every method and every seed of the sweep."""


def likelihoods(params: Params, sampler: Sampler, val: TokenDataset) -> dict[str, Any]:
    """gamma by validation NELBO, then the test NELBO at that gamma: the one time the test data's likelihood is read."""
    gamma, curve = None, []
    if sampler.guidance is None:
        val_nelbo = nelbo(sampler.denoiser, *_selection(params, sampler, val)).nats_per_token
    else:
        choice = gamma_choice(params, sampler, val, params.sampling.gammas)
        gamma, curve = choice.gamma, choice.rows()
        val_nelbo = choice.curve[gamma].nats_per_token
    test = list(sampler.corpus.dataset("target_test"))
    held_out = nelbo(sampler.denoiser, test, masking(params, sampler), at_gamma(params, sampler.guidance, gamma))
    return {
        "gamma": gamma,
        "gamma_curve": curve,
        "nelbo": held_out.nats_per_token,
        "nelbo_se": held_out.standard_error,
        "nelbo_val": val_nelbo,
        "perplexity": held_out.perplexity,
    }


def gamma_choice(params: Params, sampler: Sampler, val: TokenDataset, gammas: tuple[float, ...]) -> GammaChoice:
    """The NELBO of validation texts for every gamma, and the gamma of the lowest; the cell has a ratio."""
    assert sampler.guidance is not None
    tokens, noise = _selection(params, sampler, val)
    return select_gamma(sampler.denoiser, tokens, noise, sampler.guidance, gammas, params.sampling.gamma_end)


def selected_gamma(params: Params, sampler: Sampler, val: TokenDataset) -> float:
    """The gamma that the validation NELBO chooses for a cell with a ratio."""
    return gamma_choice(params, sampler, val, params.sampling.gammas).gamma


def _selection(params: Params, sampler: Sampler, val: TokenDataset) -> tuple[list[Tensor], Masking]:
    """Held-out texts and their noise; few texts are drawn more often, as in training."""
    tokens = list(val.subset(min(len(val), params.evaluation.val_examples)))
    noise = masking(params, sampler)
    return tokens, replace(noise, draws=max(noise.draws, math.ceil(params.evaluation.val_examples / len(tokens))))


def masking(params: Params, sampler: Sampler) -> Masking:
    """The noise of the held-out NELBO, equal for every method."""
    return Masking(
        mask_index=sampler.corpus.mask_index,
        pad_index=sampler.corpus.pad_index,
        schedule=schedule(params.schedule),
        draws=params.evaluation.draws,
        seed=NOISE_SEED,
        batch=params.evaluation.batch,
        device=sampler.device,
    )
