"""`finetune-two`: the predictions of two fine-tuned denoisers, averaged, and of the source's as gamma has it.

Each is written as the log-ratio of the fine-tuned denoiser to the source's, log p_tuned - log p. The mean of the two
guides the source: p^(1 - gamma) (p_1 p_2)^(gamma / 2), at gamma = 1 the geometric mean of the two alone. What is left
of `gtl-warm`'s gain, which averages and pulls to the source alike, when fine-tuning may do both (docs/method.md 2.6)?
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from gtl_lightning.fields import Few
from gtl_lightning.methods import finetune
from gtl_lightning.methods.method import Context, Method, Recipe

if TYPE_CHECKING:
    from torch import nn


class TwoFinetunes(finetune.Finetune):
    """Denoisers that are fine-tuned alike from different seeds; their mean guides the source."""

    members: Few = Field(2, description="denoisers that are averaged; train is the budget of each")


def recipe(context: Context, settings: TwoFinetunes) -> Recipe:
    """Fine-tuning's, several times; each network kept as its ratio to the source."""
    from gtl_lightning.networks import DifferenceTokenRatio

    source = context.frozen("source")

    def ratio(tuned: nn.Module) -> nn.Module:
        difference = DifferenceTokenRatio(source)
        difference.shifted = tuned
        return difference

    return replace(finetune.recipe(context, settings), members=settings.members, finish=ratio)


METHOD = Method(
    name="finetune-two",
    label="fine-tuning, two averaged",
    help="Two fine-tuned denoisers, whose mean log-ratio to the source's guides it.",
    kind="ratio",
    settings=TwoFinetunes(train=finetune.METHOD.settings.train),
    recipe=recipe,
    rival=True,
    place=10,
)
