"""Fine-tuning on target texts at every noise level and on source texts above one (Ambient Discrete Diffusion)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from gtl_lightning.core.forward import absorbing_sample, nelbo_terms, shuffled_times
from gtl_lightning.core.protocols import EVERYWHERE, Source
from gtl_lightning.errors import UserError
from gtl_lightning.modules.base import Batch
from gtl_lightning.modules.denoiser import DenoiserModule, places, spread
from gtl_lightning.networks import ids_of, log_prob_of


class MixtureModule(DenoiserModule):
    """Minimises the NELBO of both domains at masked shares above t_max, of the target below it; score: the target's.

    At a noise level above t_max both domains have equal weight: a source text draws its level from that part alone, and
    counts by the part's length. With t_max near 1 nothing is left of the source.

    Args:
        t_max: masked share from which source texts are used, in (0, 1).

    Raises:
        UserError: t_max is out of range.
    """

    def __init__(self, *arguments: Any, t_max: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not 0 < t_max < 1:
            raise UserError(f"t_max = {t_max} is no masked share between 0 and 1")
        self.t_max = t_max

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum over the target texts of the NELBO in nats, and the number of their tokens (pads apart)."""
        return super().held_out_loss({"x_0": batch["x_0"][batch["is_target"]]}, generator)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The weighted NELBO of the mixture, per target token."""
        network = cast(Source, self.network)
        x_0, is_target = batch["x_0"], batch["is_target"]
        ids = ids_of(network)
        t, weight = self.levels(is_target, generator)
        x_t = absorbing_sample(x_0, t, self.schedule, ids.mask_index, generator, frozen=x_0 == ids.pad_index)
        masked = (x_t == ids.mask_index) & (x_0 != ids.mask_index)
        at = places(masked)
        log_p_true = log_prob_of(network, network.encode(x_t, t, EVERYWHERE, None)[at], x_0[at])
        nelbo = nelbo_terms(spread(log_p_true, masked), masked, t, self.schedule)
        return (weight * nelbo).sum() / (x_0[is_target] != ids.pad_index).sum()

    def levels(self, is_target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Float[b] times, a source text's above the time at which t_max is masked, and Float[b] weights."""
        t = shuffled_times(len(is_target), generator, device=is_target.device)
        start = float(self.schedule.inverse(torch.tensor([1 - self.t_max], dtype=torch.float64)))
        late = start + (1 - start) * t
        return torch.where(is_target, t, late), torch.where(is_target, 1.0, 1 - start)
