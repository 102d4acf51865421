"""`gtl-finetuned`: a token-level ratio that guides the cell's fine-tuned denoiser (TCSM, docs/method.md 2.6).

Does guidance repair what fine-tuning leaves? Target texts are told from the fine-tuned denoiser's own predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gtl_lightning.fields import Network, Training
from gtl_lightning.methods.method import Context, Method, Recipe, Settings

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class FinetunedRatio(Settings):
    """The token-level ratio to the fine-tuned denoiser's own predictions, a small network."""

    network: Network = Network()
    train: Training = Training(batch=32, weight_decay=0.1)


def recipe(context: Context, settings: FinetunedRatio) -> Recipe:
    """Negatives are predicted by the denoiser that it guides: no source text, no classifier."""
    from gtl_lightning.modules.conditional_ratio import ConditionalRatioModule
    from gtl_lightning.networks import TokenRatioNetwork, seeded

    finetuned = context.frozen("finetuned")

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        with seeded(seed):
            network = TokenRatioNetwork(context.backbone(settings.network))
        return ConditionalRatioModule(network, finetuned, optimiser=optimiser, **context.scoring)

    return Recipe({"network": build}, context.target)


METHOD = Method(
    name="gtl-finetuned",
    label="GTL on fine-tuning",
    help="The token-level ratio to the fine-tuned denoiser's own predictions, which guides that denoiser.",
    kind="ratio",
    beside="finetuned",
    settings=FinetunedRatio(),
    recipe=recipe,
    place=0,
)
