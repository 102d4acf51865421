"""`ar2diff`: the causal model of the source domain, continued as a denoiser (AR2Diff; docs/method.md section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from gtl_lightning.fields import Flag, Section
from gtl_lightning.sources.kind import Build, Context, SourceKind

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class AR2Diff(Section):
    """The causal model of the source domain, continued as a denoiser for `train.source.steps`."""

    shift: Flag = Field(True, description="a state predicts the token after the one it stands at, as in a causal model")
    anneal: Annotated[float, Field(strict=True, ge=0, le=1)] = Field(
        0.0, description="share of the steps over which attention to later tokens is let in; 0: all at once"
    )
    prefix_lm: Flag = Field(False, description="the causal model reads a random front part of a text from both sides")


def recipe(context: Context, settings: AR2Diff) -> Build:
    """The causal model's weights, trained with eq. 1."""
    from gtl_lightning.modules.continuation import ContinuationModule
    from gtl_lightning.networks import MaskedDenoiser

    causal = context.causal()

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        network = MaskedDenoiser.from_causal(causal, shift=settings.shift)
        anneal_steps = round(settings.anneal * context.steps)
        return ContinuationModule(network, anneal_steps=anneal_steps, optimiser=optimiser, **context.scoring)

    return build


def causal_options(settings: AR2Diff) -> Mapping[str, Any]:
    """Of each text a random prefix is given, where that is asked for."""
    from gtl_lightning.papers.ar2diff import random_prefix

    return {"prefix": random_prefix} if settings.prefix_lm else {}


SOURCE = SourceKind(
    name="ar2diff",
    help="The causal model of the source domain, continued as a denoiser.",
    recipe=recipe,
    settings=AR2Diff(),
    reads_causal=True,
    causal_options=causal_options,
)
