"""Training of the domain classifiers: on clean text, and on noised text with its noise level (docs/method.md 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.modules.denoiser import noised
from gtl_lightning.networks import SequenceRatioNetwork
from gtl_lightning.papers.gtl import bce_loss, log_ratio_from_logit, unsmooth


class ClassifierModule(TrainedModule):
    """Binary cross-entropy on the logit of P(target | x), target positive; score: the same on held-out data.

    Args:
        network: a `SequenceRatioNetwork`; its output is the logit (a log-ratio when both domains come equally often).
        noised: False reads clean x_0 (t = 0), True noised (z_t, t): then it is eq. 7c, log r_t itself.
        smoothing: labels are `smoothing` and 1 - `smoothing`; undo it with `papers.gtl.unsmooth` on reading the logit.
        optimiser: AdamW's settings.
        schedule: noise.
        draws: noise draws an example in validation (one, if clean).
    """

    network: SequenceRatioNetwork

    def __init__(
        self,
        network: SequenceRatioNetwork,
        *,
        noised: bool = False,
        smoothing: float = 0.0,
        optimiser: OptimiserConfig | None = None,
        schedule: NoiseSchedule | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__(network, optimiser, schedule, draws if noised else 1)
        self.noised = noised
        self.smoothing = smoothing

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies, number of examples."""
        x, t = batch["x_0"], torch.zeros(len(batch["x_0"]), device=batch["x_0"].device)
        if self.noised:
            x, t, _ = noised(x, self.network.config, self.schedule, generator)
        # `bce_loss` takes a log-ratio and adds the log share itself; the network's output is the logit.
        terms = bce_loss(self.network(x, t), batch["is_target"], self.smoothing)
        return terms.sum(), torch.full((), len(x), device=x.device)


def frozen_log_ratio(classifier: nn.Module, x: Tensor, t: Tensor, smoothing: float, clip: float) -> Tensor:
    """Float[b]: log q/p as a trained classifier sees it, smoothing undone (unless 0), clipped to [-clip, clip]."""
    with torch.no_grad():
        logit = unsmooth(classifier(x, t), smoothing)
        return log_ratio_from_logit(logit).clamp(-clip, clip)
