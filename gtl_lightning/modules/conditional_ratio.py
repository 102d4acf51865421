"""Training of a token-level ratio against a frozen denoiser's own predictions (TCSM, docs/method.md 2.6)."""

from __future__ import annotations

import torch
from torch import Tensor

from gtl_lightning.core.protocols import Source
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.modules.base import Batch, OptimiserConfig
from gtl_lightning.modules.denoiser import noised
from gtl_lightning.modules.ratio import TokenRatioModule
from gtl_lightning.networks import TokenLevel, in_parts, log_probs
from gtl_lightning.papers.tcsm import conditional_bce_loss


class ConditionalRatioModule(TokenRatioModule):
    """Minimises the cross-entropy of true tokens against the denoiser's predictions, mean over masked positions.

    It reads target texts alone. Score: the guided target NELBO at gamma = 1, as of every token-level ratio.

    Args:
        network: what is trained.
        denoiser: frozen; gives the negatives, and is guided.
        optimiser: AdamW's settings.
        schedule: noise.
        draws: noise draws an example in validation.
    """

    def __init__(
        self,
        network: TokenLevel,
        denoiser: Source,
        *,
        optimiser: OptimiserConfig | None = None,
        schedule: NoiseSchedule | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__(network, denoiser, optimiser=optimiser, schedule=schedule, draws=draws)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Nats per masked position."""
        x_0 = batch["x_0"]
        x_t, t, masked = noised(x_0, self._ids, self.schedule, generator)
        features = self._features(x_t, t)
        h = self.network.encode(x_t, t, features=features)

        def terms(h: Tensor, features: Tensor, tokens: Tensor) -> Tensor:
            with torch.no_grad():
                log_p = log_probs(self._denoiser, features)
            return conditional_bce_loss(self.network.decode(h), log_p, tokens)

        found = in_parts(terms, self._denoiser.vocab_size, h[masked], features[masked], x_0[masked])
        return found.sum() / masked.sum().clamp(min=1)
