"""Fine-tuning under a penalty on the distance to the weights that it started from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import Source
from gtl_lightning.modules.base import Batch, OptimiserConfig
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.networks import Frozen


class PulledModule(DenoiserModule):
    """The NELBO, and pull / 2 times the squared distance of all weights to `start` (L2-SP, arXiv 1802.01483, eq. 2).

    Score: the NELBO alone, as `DenoiserModule` has it. Weight decay pulls to zero beside it, as in fine-tuning.

    Args:
        network: a copy of `start`.
        optimiser: AdamW's settings.
        start: the network whose weights are the origin.
        pull: strength; 0 is fine-tuning, to the bit.
        scoring: schedule and draws of `TrainedModule`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: OptimiserConfig | None = None,
        *,
        start: nn.Module | Source,
        pull: float,
        **scoring: Any,
    ) -> None:
        super().__init__(network, optimiser, **scoring)
        self.start, self.pull = Frozen(start), pull

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The mean NELBO in nats per token, and the penalty."""
        pairs = zip(self.network.parameters(), self.start.network.parameters(), strict=True)
        distance = torch.stack([(weight - origin.detach()).square().sum() for weight, origin in pairs]).sum()
        return super().loss(batch, generator) + self.pull / 2 * distance
