"""Post-training of a denoiser by pairs of texts, of which one is preferred (TCSM, docs/method.md 3.5)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from gtl_lightning.core.protocols import Look, PaddingOnce, Source
from gtl_lightning.modules.base import Batch
from gtl_lightning.modules.denoiser import DenoiserModule, places, spread
from gtl_lightning.networks import Frozen, ids_of, log_prob_of
from gtl_lightning.papers.tcsm import noised_pairs, pair_elbo, preference_loss


class PreferenceModule(DenoiserModule):
    """Minimises the preference loss, both likelihoods averaged over the same masks inside the sigmoid.

    Training batches hold pairs, interleaved (`TokenDataset.interleaved`), the preferred text first; held-out batches
    are plain texts. Score: the NELBO, as of every denoiser.

    Args:
        reference: frozen; what the denoiser that trains started as.
        beta: how near it stays to the reference: the larger, the nearer.
        masks: of each pair.
    """

    def __init__(self, *arguments: Any, reference: Source, beta: float = 0.1, masks: int = 2, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reference = Frozen(reference)
        self.beta = beta
        self.masks = masks

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Nats per pair."""
        network, reference = cast(Source, self.network), cast(Source, self.reference.network)
        winner, loser = batch["x_0"][:, ::2], batch["x_0"][:, 1::2]
        ids = ids_of(network)
        x_w, x_l, masked, count = noised_pairs(
            winner, loser, ids.mask_index, self.masks, generator, pad_index=ids.pad_index
        )
        length = (winner != ids.pad_index).sum(-1)
        alpha = 1 - count / length
        t = self.schedule.inverse(alpha)
        true = torch.stack([winner, loser]).unsqueeze(1).expand(2, *x_w.shape)
        noised, where = torch.stack([x_w, x_l]), masked.expand(2, *masked.shape).flatten(0, 2)
        at, look = places(where), Look(padding=PaddingOnce(noised.flatten(0, 2)))

        def elbo(source: Source) -> Tensor:
            """Float[2,b]."""
            h = source.encode(noised.flatten(0, 2), t.expand(2, *t.shape).flatten(), look, None)
            log_p = spread(log_prob_of(source, h[at], true.flatten(0, 2)[at]), where).view_as(noised)
            return torch.stack([pair_elbo(part, masked, count, length) for part in log_p])

        model = elbo(network)
        with torch.no_grad():
            frozen = elbo(reference)
        return preference_loss(model[0], frozen[0], model[1], frozen[1], self.beta).mean()
