"""`gtl-head`: the token-level ratio as a head on the frozen denoiser's features (docs/method.md 2.2)."""

from __future__ import annotations

from functools import partial

from pydantic import Field

from gtl_lightning.fields import Size
from gtl_lightning.methods.method import Context, Method, Recipe
from gtl_lightning.methods.token_ratio import TokenRatio, token_recipe


class HeadRatio(TokenRatio):
    """The token-level ratio as a head on the frozen denoiser's features."""

    rank: Size = Field(64, description="rank of the map on the frozen features")


def recipe(context: Context, settings: HeadRatio) -> Recipe:
    """One pass of the denoiser serves both: guidance costs next to nothing."""
    from gtl_lightning.networks import FeatureTokenRatio

    return token_recipe(context, settings, partial(FeatureTokenRatio, rank=settings.rank))


METHOD = Method(
    name="gtl-head",
    label="GTL head",
    help="The token-level ratio as a head on the frozen denoiser's features.",
    kind="ratio",
    settings=HeadRatio(),
    recipe=recipe,
    place=0,
)
