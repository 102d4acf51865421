"""Token arrays -> batches: memory-mapped, bucketed by length, and a function of (seed, epoch) alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.errors import UserError

Batch = dict[str, Tensor]
Rows = tuple[NDArray[np.int64], ...]

_POOL_BATCHES = 32  # batches' worth of shuffled examples that are sorted by length together
_ORDER_STREAM = 2  # the random stream of the batches' order; 0 and 1 draw the examples of the two domains


def epoch_indices(
    lengths: NDArray[np.int64], batch: int, steps: int, seed: int, epoch: int, stream: int = 0
) -> list[NDArray[np.int64]]:
    """Example indices of an epoch's `steps` batches, each [batch], shortest batch first; a function of the arguments.

    The epoch is cut from fresh random passes over the data, so that counts of any two examples differ by one at most.
    Within a pool of shuffled batches examples are sorted by length: similar lengths meet, no example is preferred.

    Args:
        lengths: tokens of each example: [n], n > 0; n may be smaller than a batch.
        batch: examples per batch.
        steps: batches.
        seed: of the run.
        epoch: number of the epoch.
        stream: tells apart data sets that share a seed.
    """
    generator = np.random.default_rng((seed, epoch, stream))
    wanted = batch * steps
    passes = [generator.permutation(len(lengths)) for _ in range(math.ceil(wanted / len(lengths)))]
    order = np.concatenate(passes)[:wanted]
    batches: list[NDArray[np.int64]] = []
    for start in range(0, wanted, batch * _POOL_BATCHES):
        pool = order[start : start + batch * _POOL_BATCHES]
        batches.extend(pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, batch))
    longest = [int(lengths[rows].max()) for rows in batches]
    return [batches[i] for i in np.argsort(longest, kind="stable")]


class _EpochDataModule(pl.LightningDataModule):
    """An epoch is exactly `steps_per_epoch` batches, a function of (seed, epoch); validation is fixed and in order.

    Use it with `Trainer(reload_dataloaders_every_n_epochs=1)`: the trainer's epoch then names the batches, and a run
    resumed at an epoch's end sees what the unbroken run would have seen.

    A training batch may come in `parts`, for processes that share it and for accumulated gradients: part i has every
    `parts`-th example from i on, and process r of w gets parts r, r + w, ... of every batch. So the examples of a step
    do not depend on the machine. Validation comes whole to every process.
    """

    def __init__(self, *, batch: int, steps_per_epoch: int, seed: int, pad_index: int, parts: int = 1) -> None:
        super().__init__()
        if batch % parts:
            raise UserError(
                f"batch = {batch} does not divide into {parts} parts (machine.devices times machine.accumulate); "
                "change one of them"
            )
        self.batch, self.steps_per_epoch, self.seed, self.pad_index = batch, steps_per_epoch, seed, pad_index
        self.parts = parts

    def epoch_batches(self, epoch: int) -> _Batches:
        """The batches of an epoch, made as they are asked for."""
        raise NotImplementedError

    def val_batches(self) -> Dataset[Batch]:
        """The validation batches."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the trainer's current epoch (of epoch 0 without a trainer)."""
        trainer = self.trainer
        batches = self.epoch_batches(trainer.current_epoch if trainer is not None else 0)
        if self.parts > 1:
            rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
            batches = batches.in_parts(self.parts, rank, world)
        return DataLoader(batches, batch_size=None, shuffle=False, pin_memory=self._to_gpu)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation batches."""
        return DataLoader(self.val_batches(), batch_size=None, shuffle=False, pin_memory=self._to_gpu)

    @property
    def _to_gpu(self) -> bool:
        """Whether batches go to a GPU: out of pinned memory Lightning copies them without waiting."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _shuffled(self, plan: Sequence[Rows], epoch: int) -> list[Rows]:
        order = np.random.default_rng((self.seed, epoch, _ORDER_STREAM)).permutation(len(plan))
        return [plan[i] for i in order]


class TextDataModule(_EpochDataModule):
    """Batches {"x_0": Long[b, l]} of one domain (see `_EpochDataModule` for what an epoch is).

    Args:
        train: training examples; fewer than a batch will do.
        val: validation examples, all served, in order.
        batch: examples per batch.
        steps_per_epoch: batches per epoch.
        seed: of the run.
        pad_index: what fills a batch.
        parts: that a training batch comes in.

    Raises:
        UserError: no examples.
    """

    def __init__(
        self,
        train: TokenDataset,
        val: TokenDataset,
        *,
        batch: int,
        steps_per_epoch: int,
        seed: int,
        pad_index: int,
        parts: int = 1,
    ) -> None:
        super().__init__(batch=batch, steps_per_epoch=steps_per_epoch, seed=seed, pad_index=pad_index, parts=parts)
        _check_not_empty(train=train, val=val)
        self.train, self.val = train, val

    def epoch_batches(self, epoch: int) -> _Batches:
        """The batches of an epoch."""
        plan = epoch_indices(self.train.lengths, self.batch, self.steps_per_epoch, self.seed, epoch)
        return _Batches((self.train,), self._shuffled([(rows,) for rows in plan], epoch), self.pad_index)

    def val_batches(self) -> Dataset[Batch]:
        """All validation examples in order."""
        return _Batches((self.val,), [(rows,) for rows in _in_order(len(self.val), self.batch)], self.pad_index)


class DomainDataModule(_EpochDataModule):
    """Batches {"x_0": Long[b, l], "is_target": Bool[b]}, half source, half target, padded together.

    Source and target halves of a batch are of similar length, and of one size: losses read logits as log-ratios.

    Args:
        source: training examples of the source; fewer than half a batch will do.
        target: training examples of the target, likewise.
        val_source: validation examples of the source.
        val_target: validation examples of the target; as many of each as the smaller has are served, in order.
        batch: examples per batch, an even number.
        steps_per_epoch: batches per epoch.
        seed: of the run.
        pad_index: what fills a batch.
        parts: that a training batch comes in.

    Raises:
        UserError: no examples of a domain, or a batch that does not divide into two halves.
    """

    def __init__(
        self,
        source: TokenDataset,
        target: TokenDataset,
        val_source: TokenDataset,
        val_target: TokenDataset,
        *,
        batch: int,
        steps_per_epoch: int,
        seed: int,
        pad_index: int,
        parts: int = 1,
    ) -> None:
        super().__init__(batch=batch, steps_per_epoch=steps_per_epoch, seed=seed, pad_index=pad_index, parts=parts)
        if batch < 2 * parts:
            raise UserError(f"batch = {batch} has no room for both domains; use at least {2 * parts}")
        if batch % 2:
            raise UserError(f"batch = {batch} is no half of each domain; take {batch - 1} or {batch + 1}")
        if batch % (2 * parts):  # the mean over parts would weigh an example of a smaller part more
            raise UserError(
                f"batch = {batch} does not divide into halves of {parts} equal parts (machine.devices times "
                f"machine.accumulate); take a multiple of {2 * parts}"
            )
        _check_not_empty(source=source, target=target, val_source=val_source, val_target=val_target)
        self.source, self.target, self.val_source, self.val_target = source, target, val_source, val_target

    def epoch_batches(self, epoch: int) -> _Batches:
        """The batches of an epoch."""
        halves = (
            epoch_indices(data.lengths, self.batch // 2, self.steps_per_epoch, self.seed, epoch, stream)
            for stream, data in enumerate((self.source, self.target))
        )
        plan = self._shuffled(list(zip(*halves, strict=True)), epoch)
        return _Batches((self.source, self.target), plan, self.pad_index)

    def val_batches(self) -> Dataset[Batch]:
        """As many validation examples of each domain as the smaller has, in order, half and half."""
        n = min(len(self.val_source), len(self.val_target))
        plan = [(rows, rows) for rows in _in_order(n, self.batch // 2)]
        return _Batches((self.val_source, self.val_target), plan, self.pad_index)


class _Batches(Dataset[Batch]):
    """Planned batches, made when asked for; `is_target` is there when there are two domains."""

    def __init__(self, data: Sequence[TokenDataset], plan: Sequence[Rows], pad_index: int) -> None:
        self.data, self.plan, self.pad_index = data, plan, pad_index

    def in_parts(self, parts: int, rank: int, world: int) -> _Batches:
        """What one of `world` processes gets of the batches, each cut into `parts`."""
        plan = [tuple(rows[i::parts] for rows in batch) for batch in self.plan for i in range(rank, parts, world)]
        return _Batches(self.data, plan, self.pad_index)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        parts = [data.batch(rows) for data, rows in zip(self.data, self.plan[index], strict=True)]
        if len(parts) == 1:
            return {"x_0": parts[0]}
        longest = max(part.shape[1] for part in parts)
        padded = [nn.functional.pad(part, (0, longest - part.shape[1]), value=self.pad_index) for part in parts]
        is_target = torch.arange(sum(len(part) for part in parts)) >= len(parts[0])
        return {"x_0": torch.cat(padded), "is_target": is_target}


def _in_order(n: int, batch: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + batch, n)) for start in range(0, n, batch)]


def _check_not_empty(**data: TokenDataset) -> None:
    for name, examples in data.items():
        if not len(examples):
            raise UserError(f"no {name} examples; give that split a share of the data")
