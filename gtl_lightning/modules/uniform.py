"""Training of a denoiser for uniform noise (docs/method.md eq. 1u); `continuous.py` samples and guides it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from gtl_lightning.core.forward import stratified_times, uniform_nelbo_terms, uniform_sample
from gtl_lightning.errors import UserError
from gtl_lightning.modules.base import Batch, TrainedModule
from gtl_lightning.networks import UniformDenoiser

EDGE = 1e-3
"""Times are drawn this far from 0 and 1, where single terms of the NELBO grow without bound."""


class UniformDenoiserModule(TrainedModule):
    """Minimises the NELBO under uniform noise of sequences without padding; score: nats per token."""

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum over the batch of the NELBO in nats, and the number of tokens.

        Raises:
            UserError: mask or padding are not the last ids, as `continuous.Uniform` has them.
        """
        network = cast(UniformDenoiser, self.network)
        x_0 = batch["x_0"]
        v = network.config.vocab_size - len(network.config.specials)
        if min(network.config.specials, default=v) < v:
            raise UserError(
                f"uniform noise takes the ids from 0 to {v - 1} for the tokens; mask and padding must be the last ids, "
                f"and are {network.config.specials}"
            )
        t = (1 - EDGE) * stratified_times(len(x_0), generator, EDGE, device=x_0.device)
        x_t = uniform_sample(x_0, t, self.schedule, v, generator)
        p = network(x_t, t)[..., :v].exp()
        return uniform_nelbo_terms(p, x_0, x_t, t, self.schedule).sum(), torch.full((), x_0.numel(), device=x_0.device)
