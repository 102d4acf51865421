"""`tcsm-preference`: the source denoiser post-trained to prefer target texts to its own (docs/method.md 3.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gtl_lightning.fields import Few, PositiveFloat, Training
from gtl_lightning.methods.method import Context, Method, Recipe, Settings
from gtl_lightning.methods.source_samples import source_samples

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class TcsmPreference(Settings):
    """The source denoiser, trained to prefer target texts to its own samples of the same length."""

    beta: PositiveFloat = Field(0.1, description="how near it stays to the source denoiser: the larger, the nearer")
    masks: Few = Field(2, description="masks a pair, over which the likelihoods are averaged inside the sigmoid")


def recipe(context: Context, settings: TcsmPreference) -> Recipe:
    """Every target text beside one text of the source denoiser's, as long as it."""
    from gtl_lightning.modules.preference import PreferenceModule

    source = context.frozen("source")
    pairs = context.target.interleaved(source_samples(context, context.target.lengths.tolist()))

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        return PreferenceModule(
            source.trainable_copy(),
            optimiser,
            reference=source,
            beta=settings.beta,
            masks=settings.masks,
            **context.scoring,
        )

    return Recipe({"network": build}, pairs)


METHOD = Method(
    name="tcsm-preference",
    label="TCSM, preference",
    help="The source denoiser, trained to prefer target texts to its own (TCSM).",
    kind="denoiser",
    settings=TcsmPreference(train=Training(batch=16, lr=5e-4)),
    recipe=recipe,
    place=15,
)
