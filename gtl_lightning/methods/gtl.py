"""`gtl`: the token-level ratio as a small network with an encoder of its own (docs/method.md 2.2)."""

from __future__ import annotations

from gtl_lightning.fields import Network, Training
from gtl_lightning.methods.method import Context, Method, Recipe
from gtl_lightning.methods.token_ratio import TokenRatio, token_recipe


class SmallRatio(TokenRatio):
    """The token-level ratio as a small network of its own."""

    network: Network = Network()
    train: Training = Training(weight_decay=0.1)


def recipe(context: Context, settings: SmallRatio) -> Recipe:
    """Reads the source denoiser for eq. 9' alone."""
    from gtl_lightning.networks import TokenRatioNetwork

    return token_recipe(context, settings, lambda _: TokenRatioNetwork(context.backbone(settings.network)))


METHOD = Method(
    name="gtl",
    label="GTL",
    help="The token-level ratio, eqs. 9 and 9': a small network of its own.",
    kind="ratio",
    settings=SmallRatio(),
    recipe=recipe,
    place=0,
    colours=("#0067a5", "#5cb8f0"),
    marker="o",
)
