"""Training of a token ratio whose value on clean text is known: a reward's R / beta (docs/method.md 3.4, eq. 9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gtl_lightning.modules.base import Batch, TrainedModule
from gtl_lightning.modules.denoiser import noised, places, spread
from gtl_lightning.networks import TokenRatioNetwork
from gtl_lightning.papers.gtl import token_gkl_loss


class KnownRatioModule(TrainedModule):
    """Minimises eq. 9 in the form of 7b on texts of the frozen denoiser; score: the same on held-out ones of them.

    Its minimiser is log E[r* | x_U, x_0^l = v], which at gamma = 1 guides that denoiser to p r*, normalised.

    Args:
        log_ratio: Long[b,l] -> Float[b], log r* of clean text up to a constant; best with a mean of r* near one.
    """

    network: TokenRatioNetwork

    def __init__(self, *arguments: Any, log_ratio: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.log_ratio = log_ratio

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum of the terms of all masked positions, and their number."""
        x_0 = batch["x_0"]
        x_t, t, masked = noised(x_0, self.network.config, self.schedule, generator)
        at = places(masked)
        g_true = spread(self.network.decode_at(self.network.encode(x_t, t)[at], x_0[at]), masked)
        return token_gkl_loss(g_true, masked, self.log_ratio(x_0)).sum(), masked.sum().clamp(min=1)
