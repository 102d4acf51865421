"""`finetune-pulled`: fine-tuning that is pulled back to where it started (L2-SP, arXiv 1802.01483)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from gtl_lightning.fields import Weight, no_repeats
from gtl_lightning.methods import finetune
from gtl_lightning.methods.method import Context, Method, Recipe

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule


class PulledFinetune(finetune.Finetune):
    """The source denoiser, every weight fine-tuned and pulled back to the source's."""

    pulls: tuple[Weight, ...] = Field(
        (0.003, 0.03), min_length=1, description="strengths of the pull; each is trained, held-out texts choose"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> PulledFinetune:
        no_repeats(self, ("pulls",))
        return self


def recipe(context: Context, settings: PulledFinetune) -> Recipe:
    """Copies of the source denoiser, one for each strength; the held-out target NELBO keeps one."""
    from gtl_lightning.modules.pulled import PulledModule

    source = context.frozen("source")

    def build(optimiser: OptimiserConfig, seed: int, pull: float) -> TrainedModule:
        return PulledModule(source.trainable_copy(), optimiser, start=source, pull=pull, **context.scoring)

    return Recipe({f"pull-{pull:g}": partial(build, pull=pull) for pull in settings.pulls}, context.target)


METHOD = Method(
    name="finetune-pulled",
    label="fine-tuning, pulled to the source",
    help="The source denoiser, fine-tuned under a penalty on the distance to its weights.",
    kind="denoiser",
    settings=PulledFinetune(train=finetune.METHOD.settings.train),
    recipe=recipe,
    place=10,
)
