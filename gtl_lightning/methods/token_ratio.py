"""What the token-level ratios have in common: their losses, eqs. 9 and 9', and their averaging (docs/method.md 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from gtl_lightning.fields import Few, Natural, PositiveFloat, Weight
from gtl_lightning.methods.borrowing import with_borrowed
from gtl_lightning.methods.method import Context, Recipe, Settings

if TYPE_CHECKING:
    from gtl_lightning.core.protocols import Source
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.networks import TokenLevel


class TokenRatio(Settings):
    """A token-level ratio: its loss, and how many networks are averaged."""

    bce_weight: Weight = Field(0.3, description="weight of eq. 9")
    nll_weight: Weight = Field(1.0, description="weight of eq. 9'")
    martingale_weight: Weight = Field(0.0, description="weight of the martingale regulariser, eq. 6")
    borrowed: Natural = Field(
        0, description="target texts' worth of source texts, drawn by the clean classifier's ratio (eq. 9'')"
    )
    clip: PositiveFloat = Field(5.0, description="largest |log r*| that source texts are borrowed by")
    members: Few = Field(1, description="networks in the ensemble; train is the budget of each")

    @model_validator(mode="after")
    def _learns_something(self) -> TokenRatio:
        if self.bce_weight + self.nll_weight + self.martingale_weight == 0:
            raise ValueError("bce_weight, nll_weight and martingale_weight are all 0; raise one of them")
        return self


def token_recipe(context: Context, settings: TokenRatio, network: Callable[[Source], TokenLevel]) -> Recipe:
    """One or more members of a parameterisation: `network` makes a fresh one beside the frozen source denoiser."""
    from gtl_lightning.modules.ratio import TokenRatioModule
    from gtl_lightning.networks import seeded

    source = context.frozen("source")
    weights = settings.model_dump(include={"bce_weight", "nll_weight", "martingale_weight"})

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        with seeded(seed):
            fresh = network(source)
        return TokenRatioModule(fresh, source, optimiser=optimiser, **weights, **context.scoring)

    return Recipe(
        {"network": build},
        with_borrowed(context, settings.borrowed, settings.clip) if settings.borrowed else context.target,
        # Without eq. 9 source examples teach nothing: a batch is then target examples alone, as a baseline's is.
        both_domains=settings.bce_weight > 0,
        members=settings.members,
    )
