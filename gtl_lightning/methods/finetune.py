"""`finetune`: the source denoiser, every weight trained on the target (docs/method.md 2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gtl_lightning.fields import Training
from gtl_lightning.methods.method import Context, Method, Recipe, Settings

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class Finetune(Settings):
    """The source denoiser, every weight fine-tuned."""


def recipe(context: Context, settings: Finetune) -> Recipe:
    """A copy of the source denoiser, trained with eq. 1."""
    from gtl_lightning.modules.denoiser import DenoiserModule

    source = context.frozen("source")

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        return DenoiserModule(source.trainable_copy(), optimiser, **context.scoring)

    return Recipe({"network": build}, context.target)


METHOD = Method(
    name="finetune",
    label="fine-tuning",
    help="The source denoiser, every weight fine-tuned.",
    kind="denoiser",
    settings=Finetune(train=Training(batch=32, lr=5e-4)),
    recipe=recipe,
    place=10,
    colours=("#c8500a", "#ff8f52"),
    marker="s",
)
