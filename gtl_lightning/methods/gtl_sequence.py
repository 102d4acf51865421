"""`gtl-sequence-*`: sequence-level ratios by eq. 7a, 7b or 7c, with the cycle loss, eq. 8 (docs/method.md 2.1)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from gtl_lightning.fields import Network, PositiveFloat, Training, Weight
from gtl_lightning.methods.method import Context, Method, Recipe, Settings

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class SequenceRatio(Settings):
    """A sequence-level ratio (docs/method.md 2.1)."""

    network: Network = Network()
    clip: PositiveFloat = Field(5.0, description="largest |log r*| that enters the loss")
    eta_1: Weight = Field(0.1, description="weight of the cycle loss, eq. 8")
    train: Training = Training(weight_decay=0.1)


def recipe(context: Context, settings: SequenceRatio, loss: str) -> Recipe:
    """Learns from the classifiers of clean and of noised text."""
    from gtl_lightning.modules.ratio import SequenceRatioModule
    from gtl_lightning.networks import SequenceRatioNetwork, seeded

    clean, noised, smoothing = context.frozen("clean"), context.frozen("noised"), context.smoothing()

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        with seeded(seed):
            network = SequenceRatioNetwork(context.backbone(settings.network))
        return SequenceRatioModule(
            network,
            clean,
            noised,
            loss=loss,
            eta_1=settings.eta_1,
            clip=settings.clip,
            smoothing=smoothing,
            optimiser=optimiser,
            **context.scoring,
        )

    return Recipe({"network": build}, context.target, both_domains=True)


LOSSES = {
    "gkl": "The sequence-level ratio network, generalised KL.",
    "bce": "The sequence-level ratio network, cross-entropy.",
    "log-mse": "The sequence-level ratio network, the published loss.",
}

METHODS = tuple(
    Method(
        name=f"gtl-sequence-{loss}",
        label=f"GTL sequence {loss.replace('-', ' ')}",
        help=text,
        kind="ratio",
        settings=SequenceRatio(),
        recipe=partial(recipe, loss=loss.replace("-", "_")),
        place=0,
    )
    for loss, text in LOSSES.items()
)
