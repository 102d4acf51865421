"""`gtl-sourceless`: GTL without source data: a ratio to the source denoiser's predictions (docs/method.md 3.3).

Target texts are told from what the frozen denoiser itself expects at masked positions: it needs neither a text of the
source nor a classifier, so it serves whoever has the weights of a source and not its data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gtl_lightning.fields import Network, Training
from gtl_lightning.methods.conditional_losses import RatioLoss, ratio_loss
from gtl_lightning.methods.method import Context, Method, Recipe, Settings

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class Sourceless(Settings):
    """The token-level ratio to the source denoiser's own predictions, a small network: no source text is read."""

    loss: RatioLoss = Field("bce", description="of TCSM's ratio losses: bce, lsif or gkl")
    network: Network = Network()
    train: Training = Training(batch=32, weight_decay=0.1)


def recipe(context: Context, settings: Sourceless) -> Recipe:
    """As `gtl-finetuned`, beside the source's denoiser."""
    from gtl_lightning.modules.conditional_ratio import ConditionalRatioModule
    from gtl_lightning.networks import TokenRatioNetwork, seeded

    source, terms = context.frozen("source"), ratio_loss(settings.loss)

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        with seeded(seed):
            network = TokenRatioNetwork(context.backbone(settings.network))
        return ConditionalRatioModule(network, source, terms=terms, optimiser=optimiser, **context.scoring)

    return Recipe({"network": build}, context.target)


METHOD = Method(
    name="gtl-sourceless",
    label="GTL without source data",
    help="The token-level ratio to the source denoiser's own predictions: no source text is read.",
    kind="ratio",
    settings=Sourceless(),
    recipe=recipe,
    place=1,
)
