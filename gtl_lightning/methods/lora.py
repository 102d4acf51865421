"""`lora`, `lora-wide`: the source denoiser with low-rank updates trained on the target (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from gtl_lightning.fields import PositiveFloat, Size, Training
from gtl_lightning.methods.method import Context, Method, Recipe, Settings

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class LowRank(Settings):
    """Low-rank fine-tuning (peft)."""

    rank: Size = Field(8, description="rank of the update")
    alpha: PositiveFloat = Field(16.0, description="scale of the update")


def recipe(context: Context, settings: LowRank) -> Recipe:
    """Adapters on a copy of the source denoiser, trained with eq. 1 and merged into its weights at the end."""
    from gtl_lightning.modules.denoiser import DenoiserModule
    from gtl_lightning.modules.lora import add_lora, merge_lora

    source = context.frozen("source")

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        adapted = add_lora(source, rank=settings.rank, alpha=settings.alpha, seed=seed)
        return DenoiserModule(adapted, optimiser, **context.scoring)

    finish: Any = merge_lora
    return Recipe({"network": build}, context.target, finish=finish)


METHODS = (
    Method(
        name="lora",
        label="LoRA",
        help="The source denoiser, fine-tuned at low rank.",
        kind="denoiser",
        settings=LowRank(train=Training(batch=32)),
        recipe=recipe,
        place=20,
        colours=("#9a6b00", "#edc04e"),
        marker="D",
    ),
    Method(
        name="lora-wide",
        label="LoRA, higher rank",
        help="The source denoiser, fine-tuned at a higher rank.",
        kind="denoiser",
        settings=LowRank(rank=32, alpha=64.0, train=Training(batch=32)),
        recipe=recipe,
        place=21,
    ),
)
"""Two ranks, at one scale of the update: alpha over rank is 2."""
