"""`refinemix`: fine-tuning on a mixture that holds source texts at high noise alone (Ambient Discrete Diffusion).

Noise takes away what sets the domains apart before it takes what they share: above a masked share t_max source texts
teach as target texts do, below it the target's alone. t_max = 1 is plain fine-tuning.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from gtl_lightning.fields import Training, no_repeats
from gtl_lightning.methods.method import Context, Method, Recipe, Settings

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule

Level = Annotated[float, Field(strict=True, gt=0, lt=1)]


class RefineMix(Settings):
    """The source denoiser, fine-tuned on target texts and, above a noise level, on source texts."""

    t_max: tuple[Level, ...] = Field(
        (0.9, 0.7), min_length=1, description="masked shares from which source texts are used; held-out texts choose"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> RefineMix:
        no_repeats(self, ("t_max",))
        return self


def recipe(context: Context, settings: RefineMix) -> Recipe:
    """Copies of the source denoiser, one for each t_max; the held-out target NELBO keeps one."""
    from gtl_lightning.modules.mixture import MixtureModule

    source = context.frozen("source")

    def build(optimiser: OptimiserConfig, seed: int, t_max: float) -> TrainedModule:
        return MixtureModule(source.trainable_copy(), optimiser, t_max=t_max, **context.scoring)

    builds = {f"t_max-{t_max:g}": partial(build, t_max=t_max) for t_max in settings.t_max}
    return Recipe(builds, context.target, both_domains=True)


METHOD = Method(
    name="refinemix",
    label="fine-tuning, mixture at high noise",
    help="The source denoiser, fine-tuned on target texts and, at high noise alone, on source texts.",
    kind="denoiser",
    settings=RefineMix(train=Training(lr=5e-4)),
    recipe=recipe,
    place=12,
)
