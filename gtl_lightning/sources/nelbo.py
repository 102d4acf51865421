"""`nelbo`: a denoiser trained on the source domain from nothing, by its NELBO (MDLM; docs/method.md eq. 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gtl_lightning.sources.kind import Build, Context, NoSettings, SourceKind

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


def recipe(context: Context, settings: NoSettings) -> Build:
    """A masked denoiser with random weights, trained with eq. 1."""
    from gtl_lightning.modules.denoiser import DenoiserModule
    from gtl_lightning.networks import MaskedDenoiser

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        return DenoiserModule(MaskedDenoiser(context.backbone), optimiser, **context.scoring)

    return build


SOURCE = SourceKind(name="nelbo", help="A masked denoiser from nothing, by its NELBO.", recipe=recipe)
