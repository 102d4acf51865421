"""`gtl-sourceless`: GTL without source data: a ratio to the source denoiser's predictions (docs/method.md 3.3).

Target texts are told from what the frozen denoiser itself expects at masked positions: it needs neither a text of the
source nor a classifier, so it serves whoever has the weights of a source and not its data.
"""

from __future__ import annotations

from pydantic import Field

from gtl_lightning.fields import Network, Training
from gtl_lightning.methods.conditional_losses import RatioLoss, against
from gtl_lightning.methods.method import Context, Method, Recipe, Settings


class Sourceless(Settings):
    """The token-level ratio to the source denoiser's own predictions, a small network: no source text is read."""

    loss: RatioLoss = Field("bce", description="of TCSM's ratio losses: bce, lsif or gkl")
    network: Network = Network()
    train: Training = Training(batch=32, weight_decay=0.1)


def recipe(context: Context, settings: Sourceless) -> Recipe:
    """Beside the source's denoiser."""
    return against(context, context.frozen("source"), settings.network, settings.loss)


METHOD = Method(
    name="gtl-sourceless",
    label="GTL without source data",
    help="The token-level ratio to the source denoiser's own predictions: no source text is read.",
    kind="ratio",
    settings=Sourceless(),
    recipe=recipe,
    place=1,
)
