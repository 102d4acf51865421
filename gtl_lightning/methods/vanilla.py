"""`vanilla`: a denoiser trained on the target alone, from nothing (docs/method.md 2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gtl_lightning.fields import Training
from gtl_lightning.methods.method import Context, Method, Recipe, Settings

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class Vanilla(Settings):
    """A denoiser from scratch on the target."""


def recipe(context: Context, settings: Vanilla) -> Recipe:
    """A network of the source denoiser's size, trained with eq. 1."""
    from gtl_lightning.modules.denoiser import DenoiserModule
    from gtl_lightning.networks import MaskedDenoiser, seeded

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        with seeded(seed):
            network = MaskedDenoiser(context.backbone(context.denoiser))
        return DenoiserModule(network, optimiser, **context.scoring)

    return Recipe({"network": build}, context.target, depends={"network": context.denoiser.model_dump()})


METHOD = Method(
    name="vanilla",
    label="vanilla",
    help="A denoiser from scratch on the target.",
    kind="denoiser",
    settings=Vanilla(train=Training(batch=32)),
    recipe=recipe,
    place=30,
    colours=("#00805a", "#3fcb9f"),
    marker="^",
)
