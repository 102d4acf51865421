"""Training of the planner: where is the denoiser's best token right? (docs/method.md 2.3)"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gtl_lightning.core.protocols import Look, PaddingOnce, Source
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.modules.denoiser import noised, places
from gtl_lightning.networks import Frozen, PositionNetwork, likeliest


class PlannerModule(TrainedModule):
    """Binary cross-entropy of rho(z_t)[l] on y_l = 1[argmax_v p_theta(v | z_t)^l = x_0^l], over masked positions.

    Score: the same on held-out data, nats per masked position. The planner is trained as it is used: with the masked
    share in the place of t.
    """

    network: PositionNetwork

    def __init__(
        self,
        network: PositionNetwork,
        denoiser: Source,
        optimiser: OptimiserConfig | None = None,
        schedule: NoiseSchedule | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__(network, optimiser, schedule, draws)
        self.denoiser = Frozen(denoiser)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean over masked positions."""
        total, count = self.held_out_loss(batch, generator)
        return total / count.clamp(min=1)

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum over masked positions, their number."""
        x_0 = batch["x_0"]
        x_t, t, masked = noised(x_0, self.network.config, self.schedule, generator)
        denoiser = cast(Source, self.denoiser.network)
        at, look = places(masked), Look(padding=PaddingOnce(x_t))
        with torch.no_grad():
            right = likeliest(denoiser, denoiser.encode(x_t, t, look, None)[at]) == x_0[at]
        rho = self.network(x_t, look=look)[at]
        return binary_cross_entropy_with_logits(rho, right.to(rho.dtype), reduction="sum"), masked.sum()
