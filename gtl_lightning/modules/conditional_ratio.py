"""Training of a token-level ratio against a frozen denoiser's own predictions (TCSM, docs/method.md 2.6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gtl_lightning.core.protocols import Look, PaddingOnce, Source
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.modules.base import Batch, OptimiserConfig
from gtl_lightning.modules.denoiser import noised, places
from gtl_lightning.modules.ratio import TokenRatioModule
from gtl_lightning.networks import TokenLevel, in_parts, log_probs
from gtl_lightning.papers.tcsm import conditional_bce_loss

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(g Float[...,v], the denoiser's log p Float[...,v], true tokens Long[...]) -> Float[...], one term a position."""


class ConditionalRatioModule(TokenRatioModule):
    """Minimises a loss of true tokens against the denoiser's predictions, mean over masked positions.

    It reads target texts alone. Score: the guided target NELBO at gamma = 1, as of every token-level ratio.

    Args:
        network: what is trained.
        denoiser: frozen; gives the negatives, and is guided.
        terms: the loss, a function of `papers/`: another one is a function there and this argument in a recipe.
        optimiser: AdamW's settings.
        schedule: noise.
        draws: noise draws an example in validation.
    """

    def __init__(
        self,
        network: TokenLevel,
        denoiser: Source,
        *,
        terms: TokenLoss = conditional_bce_loss,
        optimiser: OptimiserConfig | None = None,
        schedule: NoiseSchedule | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__(network, denoiser, optimiser=optimiser, schedule=schedule, draws=draws)
        self.terms = terms

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Nats per masked position."""
        x_0 = batch["x_0"]
        x_t, t, masked = noised(x_0, self._ids, self.schedule, generator)
        where, look = places(masked), Look(padding=PaddingOnce(x_t))
        features = self._features(x_t, t, look)
        h = self.network.encode(x_t, t, look, features)

        def at(h: Tensor, features: Tensor, tokens: Tensor) -> Tensor:
            with torch.no_grad():
                log_p = log_probs(self._denoiser, features)
            return self.terms(self.network.decode(h), log_p, tokens)

        found = in_parts(at, self._denoiser.vocab_size, h[where], features[where], x_0[where])
        return found.sum() / masked.sum().clamp(min=1)
