"""A resumable training of a study, on one core."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from gtl_lightning.data.loading import TextDataModule
from gtl_lightning.fields import Training
from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
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


def steady(training: Training) -> OptimiserConfig:
    """The rate stays at its peak: with averaged weights, a check's score is that of a training of that length."""
    return replace(OptimiserConfig.of(training, training.lr), final_share=1.0)


def untrained_score(made: TrainedModule, data: TextDataModule) -> float:
    """What `fit` would score the module before its first step, under the same noise as its checks."""
    made.network.eval()
    total = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for index, batch in enumerate(data.val_dataloader()):
            for draw in range(made.draws):
                found, count = made.held_out_loss(batch, made.generator(index, draw, 2))
                total += torch.stack([found.double(), torch.as_tensor(count).double()])
    made.network.train()
    return float(total[0] / total[1])
