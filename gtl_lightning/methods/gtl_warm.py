"""`gtl-warm`: the token-level ratio as a trained copy of the denoiser against the frozen one (docs/method.md 2.2)."""

from __future__ import annotations

from functools import partial

from pydantic import Field

from gtl_lightning.fields import Few, Share, Training, Weight
from gtl_lightning.methods.method import Context, Method, Recipe
from gtl_lightning.methods.token_ratio import TokenRatio, token_recipe


class WarmRatio(TokenRatio):
    """The token-level ratio as the difference of a warm-started copy and the frozen denoiser."""

    dropout: Share = Field(0.1, description="dropout of the copy of the denoiser while it is trained")
    bce_weight: Weight = Field(0.0, description="weight of eq. 9")
    members: Few = Field(2, description="networks in the ensemble; train is the budget of each")
    train: Training = Training(steps=150, batch=32, lr=5e-4)


def recipe(context: Context, settings: WarmRatio) -> Recipe:
    """Starts silent: copy and original are the same."""
    from gtl_lightning.networks import DifferenceTokenRatio

    return token_recipe(context, settings, partial(DifferenceTokenRatio, dropout=settings.dropout))


METHOD = Method(
    name="gtl-warm",
    label="GTL warm",
    help="The token-level ratio as the difference of a warm-started copy and the frozen denoiser.",
    kind="ratio",
    settings=WarmRatio(),
    recipe=recipe,
    place=0,
)
