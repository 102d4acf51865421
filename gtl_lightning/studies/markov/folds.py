"""Cross-validation of a stack: every member has rows of its own, all members step together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gtl_lightning.errors import UserError

Batch = dict[str, Tensor]


def fold_count(n: int, parts: int, held_out: int) -> int:
    """How many of `parts` folds to train: so many that `held_out` sequences are held out in all, if there are."""
    return min(parts, math.ceil(held_out / max(1, n // parts)))


def cut(n: int, parts: int, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(rows kept, rows held out), Long, of the first `folds` of `parts` equal parts of n shuffled rows.

    Raises:
        UserError: fewer rows than parts.
    """
    if n < parts:
        raise UserError(f"n = {n} target sequences cannot be cut into {parts} folds; give at least {parts}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    size = n // parts
    held = [order[fold * size : (fold + 1) * size] for fold in range(folds)]
    return [(order[torch.isin(order, part, invert=True)], part) for part in held]


def plausible_gamma(gammas: Sequence[float], scores: Tensor) -> int:
    """Index of the gamma nearest to 1 whose held-out score is within one standard error of the least.

    Few held-out sequences leave neighbouring strengths level, and among what is level chance would decide. At
    gamma = 1 guidance is what eq. 5 says (docs/method.md 2.1), so another strength has to earn its place: the
    one-standard-error rule (Breiman et al. 1984, section 3.4.3) with gamma = 1 as the simplest model.

    Args:
        gammas: g strengths.
        scores: Float[g,k,h], nats per token of each held-out sequence at each; one value a sequence, which is what is
            independent. The error is that of the difference from the least, paired by sequence.
    """
    values = scores.double().flatten(1)
    means = values.mean(1)
    least = int(means.argmin())
    excess = values - values[least]
    error = excess.std(1) / math.sqrt(values.shape[1]) if values.shape[1] > 1 else torch.zeros_like(means)
    level = [index for index in range(len(gammas)) if means[index] - means[least] <= error[index]]
    return min(level, key=lambda index: (abs(gammas[index] - 1), float(means[index])))


class FoldData(pl.LightningDataModule):
    """Batches {"x_0": Long[m,b,l], "source": Long[m,b,l]} for m members: one for each fold, and one for all rows.

    An epoch is `steps_per_epoch` batches, a function of (seed, epoch). In every batch a member sees its target rows
    equally often, give or take one. Validation is one batch: the held-out rows of every fold, and source rows.

    Args:
        target: Long[n,l] target sequences.
        folds: as `cut` makes them.
        source: Long[s,l] source sequences to train on.
        source_val: Long[c,l] others to score on.
        batch: rows of each domain that a member gets in a step.
        steps_per_epoch: batches in an epoch.
        rows_scored: held-out rows are repeated, to meet other masks, until a fold has about so many.
        seed: of the run.
        refit: whether there is a last member that trains on all rows.
    """

    def __init__(
        self,
        target: Tensor,
        folds: list[tuple[Tensor, Tensor]],
        source: Tensor,
        source_val: Tensor,
        *,
        batch: int,
        steps_per_epoch: int,
        rows_scored: int,
        seed: int,
        refit: bool = True,
    ) -> None:
        super().__init__()
        self.members = [target[kept] for kept, _ in folds] + ([target] if refit else [])
        self.source, self.batch, self.steps_per_epoch, self.seed = source, batch, steps_per_epoch, seed
        held = torch.stack([target[rows] for _, rows in folds])
        self.repeats = max(1, round(rows_scored / held.shape[1]))
        self.val: Batch = {
            "x_0": held.repeat(1, self.repeats, 1),
            "source": source_val[:rows_scored].expand(len(folds), -1, -1),
        }

    def by_sequence(self, values: Tensor) -> Tensor:
        """Float[...,k,r] of the rows scored -> Float[...,k,h]: the mean over each held-out sequence's repeats."""
        return values.unflatten(-1, (self.repeats, -1)).mean(-2)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the trainer's current epoch (of epoch 0 without a trainer)."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]))
        batches = [self._draw(generator) for _ in range(self.steps_per_epoch)]
        return DataLoader(_Listed(batches), batch_size=None, shuffle=False)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The one validation batch."""
        return DataLoader(_Listed([self.val]), batch_size=None, shuffle=False)

    def _draw(self, generator: torch.Generator) -> Batch:
        rows = []
        for own in self.members:
            passes = [torch.randperm(len(own), generator=generator) for _ in range(math.ceil(self.batch / len(own)))]
            rows.append(own[torch.cat(passes)[: self.batch]])
        shape = (len(self.members), self.batch)
        return {
            "x_0": torch.stack(rows),
            "source": self.source[torch.randint(len(self.source), shape, generator=generator)],
        }


class _Listed(Dataset[Batch]):
    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        return self._batches[index]
