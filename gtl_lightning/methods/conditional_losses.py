"""A ratio that tells true tokens from a frozen denoiser's predictions, and its losses (docs/method.md 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gtl_lightning.methods.method import Recipe

if TYPE_CHECKING:
    from gtl_lightning.core.protocols import Source
    from gtl_lightning.fields import Network
    from gtl_lightning.methods.method import Context
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.modules.conditional_ratio import TokenLoss

RatioLoss = Literal["bce", "lsif", "gkl"]


def ratio_loss(name: RatioLoss) -> TokenLoss:
    """The function of `papers.tcsm`."""
    from gtl_lightning.papers import tcsm

    return {"bce": tcsm.conditional_bce_loss, "lsif": tcsm.conditional_lsif_loss, "gkl": tcsm.conditional_gkl_loss}[
        name
    ]


def against(context: Context, denoiser: Source, network: Network, loss: RatioLoss = "bce") -> Recipe:
    """A small network beside `denoiser`, whose predictions are the negatives: no source text, no classifier."""
    from gtl_lightning.modules.conditional_ratio import ConditionalRatioModule
    from gtl_lightning.networks import TokenRatioNetwork, seeded

    terms = ratio_loss(loss)

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        with seeded(seed):
            ratio = TokenRatioNetwork(context.backbone(network))
        return ConditionalRatioModule(ratio, denoiser, terms=terms, optimiser=optimiser, **context.scoring)

    return Recipe({"network": build}, context.target)
