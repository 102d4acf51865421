"""Training of the masked denoiser: source model, vanilla, full fine-tuning and LoRA alike."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from gtl_lightning.core.forward import absorbing_sample, nelbo_terms, shuffled_times, uniform_sample
from gtl_lightning.core.protocols import EVERYWHERE, Source
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.modules.base import Batch, TrainedModule
from gtl_lightning.networks import BackboneConfig, Ids, ids_of, log_prob_of
from gtl_lightning.networks.source import Predicts


def noised(
    x_0: Tensor,
    ids: Ids | BackboneConfig,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    frozen: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw low-variance t and x_t ~ q(x_t | x_0); what is `frozen` Bool[b,l] is never noised, by default the pads.

    Returns:
        x_t Long[b,l], t Float[b], masked Bool[b,l].
    """
    t = shuffled_times(len(x_0), generator, device=x_0.device)
    frozen = x_0 == ids.pad_index if frozen is None else frozen
    x_t = absorbing_sample(x_0, t, schedule, ids.mask_index, generator, frozen)
    return x_t, t, (x_t == ids.mask_index) & (x_0 != ids.mask_index)


def clean_ids(network: Predicts, device: torch.device | str) -> Tensor:
    """Long[v]: the ids that are tokens of a text, in order."""
    ids = torch.arange(network.vocab_size, device=device)
    return ids[(ids != network.mask_index) & (ids != ids_of(network).pad_index)]


def noised_uniformly(
    network: Predicts,
    x_0: Tensor,
    t: Tensor,
    target: Tensor,
    schedule: NoiseSchedule,
    generator: torch.Generator | None,
) -> Tensor:
    """Long[b,l]: targets become uniform tokens with probability 1 - alpha_t; the mask and the padding are no tokens."""
    clean = clean_ids(network, x_0.device)
    # Uniform noise knows the tokens 0..V-1: each clean id by its place among them.
    place = torch.searchsorted(clean, x_0).clamp(max=len(clean) - 1)
    noise = uniform_sample(place, t, schedule, len(clean), generator, ~target)
    return torch.where(target, clean[noise], x_0)


def places(masked: Tensor) -> tuple[Tensor, Tensor]:
    """Long[n], Long[n]: rows and positions of what is marked in Bool[b,l], in order.

    An index by the marks themselves asks the device for n, and its gradient again: a step asks once, before its
    networks are under way.
    """
    row, position = masked.nonzero(as_tuple=True)
    return row, position


def spread(values: Tensor, masked: Tensor) -> Tensor:
    """Float[n] values of the n masked positions -> Float[b,l], zero elsewhere."""
    full = torch.zeros(masked.shape, dtype=values.dtype, device=values.device)
    return full.masked_scatter(masked, values)


class DenoiserModule(TrainedModule):
    """Minimises the NELBO of a source or of a copy of one (MDLM; docs/method.md eq. 1); score: NELBO in nats per token.

    Only the masked positions are projected to the vocabulary, some at a time.
    """

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum over the batch of the NELBO in nats, and the number of tokens (pads apart)."""
        network = cast(Source, self.network)
        x_0, ids = batch["x_0"], ids_of(network)
        x_t, t, masked = noised(x_0, ids, self.schedule, generator)
        at = places(masked)
        log_p_true = log_prob_of(network, network.encode(x_t, t, EVERYWHERE, None)[at], x_0[at])
        nelbo = nelbo_terms(spread(log_p_true, masked), masked, t, self.schedule)
        return nelbo.sum(), (x_0 != ids.pad_index).sum()
