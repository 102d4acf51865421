"""`tcsm-score`, `tcsm-distribution`, `tcsm-uniform`, `tcsm-distilled`: the source by target concrete score matching.

The same network, data and number of steps as `nelbo`, another objective, or another noise before the mask
(docs/method.md section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gtl_lightning.fields import Section
from gtl_lightning.sources.kind import Build, Context, NoSettings, SourceKind

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class Uniform(Section):
    """Of the kind tcsm-uniform (docs/method.md eq. 12)."""

    share: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        0.5, description="share of the steps by whose end uniform noise has given way to the mask, evenly"
    )


def score(context: Context, settings: NoSettings) -> Build:
    """Eq. 11 with the generalised KL, weighted over noise levels as eq. 1."""
    from gtl_lightning.modules.concrete_score import ConcreteScoreModule, score_form_terms
    from gtl_lightning.networks import MaskedDenoiser

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        network = MaskedDenoiser(context.backbone)
        return ConcreteScoreModule(network, optimiser, terms=score_form_terms, by_level=True, **context.scoring)

    return build


def distribution(context: Context, settings: NoSettings) -> Build:
    """Eq. 12 with the forward divergence on data; with the weight of eq. 1 it would be `nelbo` to the last bit."""
    from gtl_lightning.modules.concrete_score import ConcreteScoreModule, cross_entropy_terms
    from gtl_lightning.networks import MaskedDenoiser

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        network = MaskedDenoiser(context.backbone)
        return ConcreteScoreModule(network, optimiser, terms=cross_entropy_terms, by_level=False, **context.scoring)

    return build


def uniform(context: Context, settings: Uniform) -> Build:
    """Eq. 12 at all positions of texts under uniform noise, at first; as guidance needs a mask, at masks later."""
    from gtl_lightning.modules.concrete_score import UniformFirstModule
    from gtl_lightning.networks import MaskedDenoiser

    uniform_steps = round(settings.share * context.steps)

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        network = MaskedDenoiser(context.backbone)
        return UniformFirstModule(network, optimiser, uniform_steps=uniform_steps, **context.scoring)

    return build


def distilled(context: Context, settings: NoSettings) -> Build:
    """Eq. 12 with the two-sided conditionals of the causal model of the source domain, by one gradient a text."""
    from gtl_lightning.modules.concrete_score import DistilledModule
    from gtl_lightning.networks import MaskedDenoiser

    teacher = context.causal()

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        return DistilledModule(MaskedDenoiser(context.backbone), optimiser, teacher=teacher, **context.scoring)

    return build


SOURCES = (
    SourceKind("tcsm-score", "A masked denoiser from nothing, by its concrete score (TCSM).", score),
    SourceKind("tcsm-distribution", "The same by the law of each position, noise levels alike (TCSM).", distribution),
    SourceKind("tcsm-uniform", "The same under uniform noise at first, masks later (TCSM).", uniform, Uniform()),
    SourceKind(
        "tcsm-distilled",
        "The same by what the causal model of the source domain says of each position (TCSM).",
        distilled,
        reads_causal=True,
    ),
)
