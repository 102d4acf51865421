"""Sequences of a Markov chain to train on, and what its exact law scores under the noise of a training's checks."""

from __future__ import annotations

import numpy as np
import torch

from gtl_lightning.core.forward import nelbo_terms
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.data.loading import TextDataModule
from gtl_lightning.fields import Training
from gtl_lightning.laws.chains import MarkovChain
from gtl_lightning.modules.base import TrainedModule, mixed_seed
from gtl_lightning.modules.denoiser import noised
from gtl_lightning.networks import Ids
from gtl_lightning.networks.block import NO_PAD

TRAIN, HELD_OUT = range(2)


def chain_data(chain: MarkovChain, length: int, held_out: int, training: Training, seed: int) -> TextDataModule:
    """As many sequences as the training sees, each once; the held-out ones are the same for every seed."""

    def drawn(n: int, stream: int) -> TokenDataset:
        generator = torch.Generator().manual_seed(mixed_seed(seed if stream == TRAIN else 0, stream))
        tokens = chain.sample(n, length, generator).numpy().ravel()
        return TokenDataset.from_arrays(tokens, np.arange(n + 1, dtype=np.int64) * length, NO_PAD)

    return TextDataModule(
        drawn(training.steps * training.batch, TRAIN),
        drawn(held_out, HELD_OUT),
        batch=training.batch,
        steps_per_epoch=training.check_every,
        seed=seed,
        pad_index=NO_PAD,
    )


def least(data: TextDataModule, chain: MarkovChain, made: TrainedModule) -> float:
    """What the exact posterior scores, nats per token, under the masks that the module is scored under."""
    total, count = 0.0, 0
    for i, batch in enumerate(data.val_dataloader()):
        x_0, ids = batch["x_0"], Ids(chain.mask_index, NO_PAD)
        for draw in range(made.draws):
            x_t, t, masked = noised(x_0, ids, made.schedule, made.generator(i, draw, 2))
            log_p = chain(x_t).gather(-1, x_0[..., None]).squeeze(-1)
            total += float(nelbo_terms(log_p, masked, t, made.schedule).sum())
            count += x_0.numel()
    return total / count
