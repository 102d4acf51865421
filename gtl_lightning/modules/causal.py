"""Training of an autoregressive model: the yardstick for samples, and what a denoiser may start from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.networks import CausalLM
from gtl_lightning.papers.ar2diff import causal_mask, prefix_mask, targets


class CausalLMModule(TrainedModule):
    """Next-token negative log-likelihood; score: the same on held-out data, nats per token.

    A batch may hold `prefix` Long[b], tokens at the front of each row that are given: they are read from both sides,
    and the loss is on the rest (prefix-LM). Rows are then padded on the right.

    Args:
        network: the model.
        optimiser: AdamW's settings.
        prefix: (lengths Long[b], generator) -> Long[b], where the batch holds none: `papers.ar2diff.random_prefix`.
    """

    network: CausalLM

    def __init__(
        self,
        network: CausalLM,
        optimiser: OptimiserConfig | None = None,
        prefix: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        super().__init__(network, optimiser, draws=1)
        self.prefix = prefix

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum over tokens, their number (pads apart)."""
        x_0, prefix, pad = batch["x_0"], batch.get("prefix"), self.network.config.pad_index
        if prefix is None and self.prefix is not None:
            prefix = self.prefix((x_0 != pad).sum(-1), generator)
        if prefix is None:
            return -self.network.log_prob(x_0).sum(), (x_0 != pad).sum()
        target = targets(x_0, pad, prefix)
        # The start is given too.
        attention = prefix_mask(causal_mask(self.network.reads(x_0.shape[1]), x_0.device), prefix + 1)
        return -self.network.log_prob(x_0, attention=attention)[target].sum(), target.sum()
