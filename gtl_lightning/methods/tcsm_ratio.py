"""`tcsm-ratio`: the source denoiser post-trained by its own ratio to what it was (TCSM, docs/method.md 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gtl_lightning.fields import Training
from gtl_lightning.methods.conditional_losses import RatioLoss, ratio_loss
from gtl_lightning.methods.method import Context, Method, Recipe, Settings

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class TcsmRatio(Settings):
    """The source denoiser, trained by log p_theta / p_source against its own predictions; no source text is read."""

    loss: RatioLoss = Field("bce", description="bce, lsif, or gkl, which is fine-tuning unweighted by noise level")


def recipe(context: Context, settings: TcsmRatio) -> Recipe:
    """A copy of the source denoiser beside the frozen one."""
    from gtl_lightning.modules.implicit_ratio import ImplicitRatioModule

    source, terms = context.frozen("source"), ratio_loss(settings.loss)

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        return ImplicitRatioModule(source.trainable_copy(), optimiser, reference=source, terms=terms, **context.scoring)

    return Recipe({"network": build}, context.target)


METHOD = Method(
    name="tcsm-ratio",
    label="TCSM, ratio",
    help="The source denoiser, post-trained by its ratio to what it was (TCSM).",
    kind="denoiser",
    settings=TcsmRatio(train=Training(batch=32, lr=5e-4)),
    recipe=recipe,
    place=13,
)
