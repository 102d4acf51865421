"""Post-training of a denoiser by its ratio to a frozen one (TCSM, docs/method.md 3.3)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from gtl_lightning.core.protocols import Look, PaddingOnce, Source
from gtl_lightning.modules.base import Batch
from gtl_lightning.modules.conditional_ratio import TokenLoss
from gtl_lightning.modules.denoiser import DenoiserModule, noised, places
from gtl_lightning.networks import Frozen, ids_of, in_parts, log_probs
from gtl_lightning.papers.tcsm import conditional_bce_loss, implicit_log_ratio


class ImplicitRatioModule(DenoiserModule):
    """Minimises a ratio loss of log r = log p_theta / p_ref, mean over masked positions of target texts.

    Positives are true tokens, negatives what the frozen denoiser predicts: no text of its source is read. Score: the
    NELBO of p_theta, as of every denoiser.

    Args:
        reference: frozen; what the denoiser that trains started as.
        terms: the loss, as of `ConditionalRatioModule`.
    """

    def __init__(
        self, *arguments: Any, reference: Source, terms: TokenLoss = conditional_bce_loss, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.reference = Frozen(reference)
        self.terms = terms

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Nats per masked position."""
        network, reference = cast(Source, self.network), cast(Source, self.reference.network)
        x_0 = batch["x_0"]
        x_t, t, masked = noised(x_0, ids_of(network), self.schedule, generator)
        where, look = places(masked), Look(padding=PaddingOnce(x_t))
        h = network.encode(x_t, t, look, None)
        with torch.no_grad():
            h_ref = reference.encode(x_t, t, look, None)

        def at(h: Tensor, h_ref: Tensor, tokens: Tensor) -> Tensor:
            with torch.no_grad():
                log_p_ref = log_probs(reference, h_ref)
            return self.terms(implicit_log_ratio(log_probs(network, h), log_p_ref), log_p_ref, tokens)

        found = in_parts(at, network.vocab_size, h[where], h_ref[where], x_0[where])
        return found.sum() / masked.sum().clamp(min=1)
