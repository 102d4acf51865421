"""Training of an autoregressive reference model, the yardstick for samples."""

from __future__ import annotations

import torch
from torch import Tensor

from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.networks import CausalLM


class CausalLMModule(TrainedModule):
    """Next-token negative log-likelihood; score: the same on held-out data, nats per token."""

    network: CausalLM

    def __init__(self, network: CausalLM, optimiser: OptimiserConfig | None = None) -> None:
        super().__init__(network, optimiser, draws=1)

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum over tokens, their number (pads apart)."""
        x_0 = batch["x_0"]
        return -self.network.log_prob(x_0).sum(), (x_0 != self.network.config.pad_index).sum()
