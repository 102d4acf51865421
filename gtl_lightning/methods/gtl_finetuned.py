"""`gtl-finetuned`: a token-level ratio that guides the cell's fine-tuned denoiser (TCSM, docs/method.md 2.6).

Does guidance repair what fine-tuning leaves? Target texts are told from the fine-tuned denoiser's own predictions.
"""

from __future__ import annotations

from gtl_lightning.fields import Network, Training
from gtl_lightning.methods.conditional_losses import against
from gtl_lightning.methods.method import Context, Method, Recipe, Settings


class FinetunedRatio(Settings):
    """The token-level ratio to the fine-tuned denoiser's own predictions, a small network."""

    network: Network = Network()
    train: Training = Training(batch=32, weight_decay=0.1)


def recipe(context: Context, settings: FinetunedRatio) -> Recipe:
    """Beside the fine-tuned denoiser, which it guides."""
    return against(context, context.frozen("finetuned"), settings.network)


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
