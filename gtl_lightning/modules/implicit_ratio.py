"""Post-training of a denoiser by its ratio to a frozen one (TCSM, docs/method.md 3.3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import EVERYWHERE, Source
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.modules.base import Batch, OptimiserConfig
from gtl_lightning.modules.conditional_ratio import TokenLoss
from gtl_lightning.modules.denoiser import DenoiserModule, noised
from gtl_lightning.networks import Frozen, ids_of, in_parts, log_probs
from gtl_lightning.papers.tcsm import conditional_bce_loss, implicit_log_ratio


class ImplicitRatioModule(DenoiserModule):
    """Minimises a ratio loss of log r = log p_theta / p_ref, mean over masked positions of target texts.

    Positives are true tokens, negatives what the frozen denoiser predicts: no text of its source is read. Score: the
    NELBO of p_theta, as of every denoiser.

    Args:
        network: the denoiser that trains.
        reference: frozen; what it started as.
        terms: the loss, as of `ConditionalRatioModule`.
        optimiser: AdamW's settings.
        schedule: noise.
        draws: noise draws an example in validation.
    """

    def __init__(
        self,
        network: nn.Module,
        reference: Source,
        *,
        terms: TokenLoss = conditional_bce_loss,
        optimiser: OptimiserConfig | None = None,
        schedule: NoiseSchedule | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__(network, optimiser, schedule, draws)
        self.reference = Frozen(cast(nn.Module, reference))
        self.terms = terms

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Nats per masked position."""
        network, reference = cast(Source, self.network), cast(Source, self.reference.network)
        x_0 = batch["x_0"]
        x_t, t, masked = noised(x_0, ids_of(network), self.schedule, generator)
        h = network.encode(x_t, t, EVERYWHERE, None)
        with torch.no_grad():
            h_ref = reference.encode(x_t, t, EVERYWHERE, None)

        def at(h: Tensor, h_ref: Tensor, tokens: Tensor) -> Tensor:
            with torch.no_grad():
                log_p_ref = log_probs(reference, h_ref)
            return self.terms(implicit_log_ratio(log_probs(network, h), log_p_ref), log_p_ref, tokens)

        found = in_parts(at, network.vocab_size, h[masked], h_ref[masked], x_0[masked])
        return found.sum() / masked.sum().clamp(min=1)
