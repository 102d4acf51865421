"""A resumable training of the study of target concrete score matching."""

from __future__ import annotations

from typing import Any

from gtl_lightning.data.loading import TextDataModule
from gtl_lightning.fields import Training
from gtl_lightning.modules.base import TrainedModule
from gtl_lightning.modules.fit import FitResult, fit
from gtl_lightning.workspace.paths import state_dir


def fitted(
    name: str,
    made: TrainedModule,
    data: TextDataModule,
    training: Training,
    key: dict[str, Any],
    seed: int,
    code: str,
) -> FitResult:
    """Train on one core, in fp32; the state is named by `key`, the seed, and all that the module `code` may run."""
    return fit(
        made,
        data,
        steps=training.steps,
        check_every=training.check_every,
        patience=training.patience,
        state_dir=state_dir(name, key | {"training": training.model_dump(), "seed": seed}, code=code),
        precision="32-true",
        ema_decay=training.ema,
        seed=seed,
        accelerator="cpu",
        progress=False,
    )
