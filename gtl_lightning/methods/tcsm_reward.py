"""`tcsm-reward`: the source denoiser post-trained by a reward, the clean classifier's log-ratio (docs/method.md 3.4).

With R = log q/p of a domain classifier and beta = 1 the law tilted by the reward is the target's: the transfer problem
itself. Target texts only choose the checkpoint and teach the classifier; what the denoiser learns from is its own.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydantic import Field

from gtl_lightning.fields import Positive, PositiveFloat, Training
from gtl_lightning.methods.borrowing import log_ratios
from gtl_lightning.methods.method import Context, Method, Recipe, Settings
from gtl_lightning.methods.source_samples import source_samples

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule

log = logging.getLogger("gtl")

REPEATED = 16
"""Texts drawn by weight, for every sample there is: in the mean each counts by its weight, to one in so many."""


class TcsmReward(Settings):
    """The source denoiser, trained on its own samples weighted by exp(R / beta), R the classifier's log-ratio."""

    samples: Positive = Field(1024, description="texts drawn from the joint law of the source denoiser")
    beta: PositiveFloat = Field(1.0, description="temperature of the reward; at 1 the tilted law is the target's")
    clip: PositiveFloat = Field(5.0, description="largest |R|")
    least_effective: Positive = Field(32, description="effective number of samples below which a warning is given")


def recipe(context: Context, settings: TcsmReward) -> Recipe:
    """Form (b): joint samples and their weights, a copy of the denoiser trained with eq. 1."""
    import numpy as np
    import torch

    from gtl_lightning.modules.denoiser import DenoiserModule
    from gtl_lightning.papers.gtl import importance_draws
    from gtl_lightning.papers.tcsm import effective_sample_size

    source = context.frozen("source")
    lengths = np.random.default_rng(context.seed).choice(context.target.lengths, size=settings.samples)
    drawn = source_samples(context, lengths.tolist())
    log_weights = log_ratios(context, drawn, settings.clip) / settings.beta
    effective = float(effective_sample_size(log_weights))
    warning = (
        f"the reward leaves {effective:.0f} of {settings.samples} samples, below least_effective = "
        f"{settings.least_effective}: raise samples or beta"
        if effective < settings.least_effective
        else None
    )
    if warning:
        log.warning("%s", warning)
    ranks = importance_draws(log_weights, REPEATED * settings.samples, torch.Generator().manual_seed(context.seed))

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        return DenoiserModule(source.trainable_copy(), optimiser, **context.scoring)

    found = {"effective_samples": round(effective, 1), **({"warning": warning} if warning else {})}
    return Recipe({"network": build}, drawn.take(ranks.numpy()), found=found)


METHOD = Method(
    name="tcsm-reward",
    label="TCSM, reward",
    help="The source denoiser, trained on its own samples, weighted by the classifier's log-ratio (TCSM).",
    kind="denoiser",
    settings=TcsmReward(train=Training(batch=32, lr=5e-4)),
    recipe=recipe,
    reads_classifier=True,
    place=14,
)
