"""Training of the sequence-level ratio network f = log r_t (METHOD.md 2.1, eqs. 7a-c and 8)."""

from __future__ import annotations

import torch
from torch import Tensor

from gtl_lightning.errors import UserError
from gtl_lightning.gtl import bce_loss, cycle_loss, gkl_loss, log_mse_loss
from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.modules.classifier import frozen_log_ratio
from gtl_lightning.modules.denoiser import noised
from gtl_lightning.networks import Frozen, SequenceRatioNetwork
from gtl_lightning.schedule import NoiseSchedule

LOSSES = ("gkl", "bce", "log_mse")


class SequenceRatioModule(TrainedModule):
    """One of the losses gkl (7b), bce (7c), log_mse (7a), and eta_1 times the cycle loss (8).

    gkl and log_mse read source examples against r*(x_0) of a frozen clean classifier, the cycle loss target examples
    against the log-ratio of a frozen classifier of noised text; bce reads both domains and their labels. The score is
    the same objective on held-out data.

    Args:
        network: what is trained.
        loss: "gkl", "bce" or "log_mse".
        clean_classifier: trained on clean text; needed by gkl and log_mse.
        noised_classifier: trained on noised text; needed when eta_1 > 0.
        smoothing: label smoothing of the classifiers, undone; 0 reads their logits raw.
        share_target: share of target examples that the classifiers, and this module, are trained on.
        clip: largest |log r*|.
        eta_1: weight of the cycle loss.
        optimiser: AdamW's settings.
        schedule: noise.
        draws: noise draws an example in validation.

    Raises:
        UserError: an unknown loss, or a classifier that it needs is missing.
    """

    network: SequenceRatioNetwork

    def __init__(
        self,
        network: SequenceRatioNetwork,
        *,
        loss: str = "gkl",
        clean_classifier: SequenceRatioNetwork | None = None,
        noised_classifier: SequenceRatioNetwork | None = None,
        smoothing: float = 0.0,
        share_target: float = 0.5,
        clip: float = 5.0,
        eta_1: float = 0.1,
        optimiser: OptimiserConfig | None = None,
        schedule: NoiseSchedule | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__(network, optimiser, schedule, draws)
        if loss not in LOSSES:
            raise UserError(f"ratio loss {loss!r} is unknown; choose one of {', '.join(LOSSES)}")
        if loss != "bce" and clean_classifier is None:
            raise UserError(f"ratio loss {loss!r} needs a classifier of clean text; train it first")
        if eta_1 > 0 and noised_classifier is None:
            raise UserError(f"eta_1 = {eta_1} needs a classifier of noised text; train it first or set eta_1 to 0")
        self.kind = loss
        self.clean = Frozen(clean_classifier) if clean_classifier else None
        self.timed = Frozen(noised_classifier) if noised_classifier else None
        self.smoothing = smoothing
        self.share_target = share_target
        self.clip = clip
        self.eta_1 = eta_1

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean of the terms over the batch."""
        total, count = self.score(batch, generator)
        return total / count

    def score(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum of the terms of all examples, number of examples.

        A batch without examples of a domain has no terms of it: the sums over both domains are the objective.
        """
        x_0, is_target = batch["x_0"], batch["is_target"]
        x_t, t, _ = noised(x_0, self.network.config, self.schedule, generator)
        f = self.network(x_t, t)
        total = self._ratio_terms(f, x_0, is_target).sum()
        if self.eta_1 > 0 and self.timed is not None:
            log_r_t = frozen_log_ratio(self.timed.network, x_t, t, self.smoothing, self.share_target, self.clip)
            total = total + self.eta_1 * cycle_loss(f, log_r_t)[is_target].sum()
        return total, torch.tensor(len(x_0), device=x_0.device)

    def _ratio_terms(self, f: Tensor, x_0: Tensor, is_target: Tensor) -> Tensor:
        if self.kind == "bce" or self.clean is None:
            return bce_loss(f, is_target, share_target=self.share_target)
        source = x_0[~is_target]
        zero = torch.zeros(len(source), device=x_0.device)
        log_r_star = frozen_log_ratio(self.clean.network, source, zero, self.smoothing, self.share_target, self.clip)
        return (gkl_loss if self.kind == "gkl" else log_mse_loss)(f[~is_target], log_r_star)
