"""`tcsm-score`, `tcsm-distribution`, `tcsm-distilled`: the source denoiser by target concrete score matching.

The same network, data, noise and number of steps as `nelbo`, another objective (docs/method.md section 3).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gtl_lightning.fields import Section
from gtl_lightning.sources.kind import Build, Context, NoSettings, SourceKind

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule

Floor = Annotated[float, Field(strict=True, gt=0, lt=1)]


class Score(Section):
    """Of the kind tcsm-score (docs/method.md eq. 11)."""

    floor: Floor = Field(1e-3, description="least probability that is taken at its word, in units of 1 / V")


def score(context: Context, settings: Score) -> Build:
    """Eq. 11 with the generalised KL, weighted over noise levels as eq. 1."""
    from gtl_lightning.modules.concrete_score import ConcreteScoreModule, score_form_terms
    from gtl_lightning.networks import MaskedDenoiser

    terms = partial(score_form_terms, floor=settings.floor)

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        network = MaskedDenoiser(context.backbone)
        return ConcreteScoreModule(network, optimiser, terms=terms, by_level=True, **context.scoring)

    return build


def distribution(context: Context, settings: NoSettings) -> Build:
    """Eq. 12 with the forward divergence on data; with the weight of eq. 1 it would be `nelbo` to the last bit."""
    from gtl_lightning.modules.concrete_score import ConcreteScoreModule, cross_entropy_terms
    from gtl_lightning.networks import MaskedDenoiser

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        network = MaskedDenoiser(context.backbone)
        return ConcreteScoreModule(network, optimiser, terms=cross_entropy_terms, by_level=False, **context.scoring)

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
    SourceKind("tcsm-score", "A masked denoiser from nothing, by its concrete score (TCSM).", score, Score()),
    SourceKind("tcsm-distribution", "The same by the law of each position, noise levels alike (TCSM).", distribution),
    SourceKind(
        "tcsm-distilled",
        "The same by what the causal model of the source domain says of each position (TCSM).",
        distilled,
        reads_causal=True,
    ),
)
