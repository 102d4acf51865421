"""`finetune-averaged`: the weights of source and fine-tuned denoiser, averaged (WiSE-FT, arXiv 2109.01903).

What fine-tuning to few texts unlearns, the average has not: a brake that costs nothing in training or in sampling.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from gtl_lightning.fields import no_repeats
from gtl_lightning.methods import finetune
from gtl_lightning.methods.method import Context, Method, Recipe

if TYPE_CHECKING:
    from torch import nn

Mixed = Annotated[float, Field(strict=True, ge=0, le=1)]


class AveragedFinetune(finetune.Finetune):
    """The source denoiser, every weight fine-tuned, and its weights averaged with those it started from."""

    alphas: tuple[Mixed, ...] = Field(
        (1.0, 0.75, 0.5, 0.25),
        min_length=1,
        description="shares of the fine-tuned weights; held-out texts choose, of equal ones the first",
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> AveragedFinetune:
        no_repeats(self, ("alphas",))
        return self


def recipe(context: Context, settings: AveragedFinetune) -> Recipe:
    """Fine-tuning's, then the averages."""
    from gtl_lightning.networks.averages import between

    source = context.frozen("source")

    def choices(tuned: nn.Module) -> dict[str, nn.Module]:
        return {f"alpha-{alpha:g}": between(source, tuned, alpha) for alpha in settings.alphas}

    return replace(finetune.recipe(context, settings), choices=choices)


METHOD = Method(
    name="finetune-averaged",
    label="fine-tuning, averaged with the source",
    help="The source denoiser, fine-tuned; its weights averaged with the source's, as held-out texts have it.",
    kind="denoiser",
    settings=AveragedFinetune(train=finetune.METHOD.settings.train),
    recipe=recipe,
    place=10,
)
