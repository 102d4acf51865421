"""What every trained component shares: optimiser, learning-rate curve, repeatable noise, a comparable score."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from gtl_lightning.core.callables import evaluating
from gtl_lightning.core.guard import check_weights
from gtl_lightning.core.schedule import LogLinear, NoiseSchedule
from gtl_lightning.errors import UserError
from gtl_lightning.fields import Training
from gtl_lightning.networks import Frozen

Batch = dict[str, Tensor]
SCORE = "val_score"
"""Name under which every module logs what early stopping minimises."""
LOSS = "train_loss"
"""And the mean loss of the steps before."""
UNREAD = 32
"""Losses at most that wait to be looked at: by so many steps the host runs ahead of a GPU."""


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up, then a cosine down to `final_share` of the peak.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled; acts on matrices only, not on biases and norms.
        warmup_steps: steps of linear warm-up.
        betas: AdamW's moment decays.
        grad_clip: largest norm of the whole gradient.
        final_share: learning rate at the last step over the peak.
    """

    lr: float = 3e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    grad_clip: float = 1.0
    final_share: float = 0.05

    @classmethod
    def of(cls, training: Training, lr: float) -> OptimiserConfig:
        """Of a training run with peak learning rate `lr`."""
        return cls(lr, training.weight_decay, training.warmup, grad_clip=training.clip)

    def factor(self, step: int, total: int) -> float:
        """Learning rate at `step` (from 0) of `total`, over the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
        return self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * progress)) / 2


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed out of several integers; neighbours give unrelated seeds."""
    value = 0x9E3779B97F4A7C15
    for part in parts:
        value = ((value ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1


class TrainedModule(pl.LightningModule):
    """A network with its loss. `fit` trains it.

    Subclasses give `held_out_loss` (sum and count over a batch), and `loss` where it is not its mean. Noise in step n
    is a function of (seed, n) alone, and the noise of validation batch i of i alone: a resumed run repeats the unbroken
    one, and scores of different checks, runs and methods are taken under the same masks.

    Attributes:
        network: what is trained and kept; everything else is frozen and out of the state.
        seed: set by `fit`.
        total_steps: set by `fit`; length of the learning-rate curve.
        stacked: leading axes of every weight that number networks, not units.
        draws: noise levels per example in validation.
    """

    stacked = 0

    def __init__(
        self,
        network: nn.Module,
        optimiser: OptimiserConfig | None = None,
        schedule: NoiseSchedule | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimiser = optimiser or OptimiserConfig()
        self.schedule = schedule or LogLinear()
        self.draws = draws
        self.seed = 0
        self.total_steps = 1
        self._total = torch.zeros(2, dtype=torch.float64)
        self._losses: list[Tensor] = []
        self._unread: list[tuple[int, Tensor]] = []

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Scalar to minimise: the mean of `held_out_loss` over the batch, where a subclass says nothing else."""
        total, count = self.held_out_loss(batch, generator)
        return total / count

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(sum, count) of the validation score over one batch under one noise draw; lower is better."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Hidden width of the trained network: decides whether bf16 pays."""
        sized: Any = self.network if hasattr(self.network, "width") else self.network.config
        return int(sized.width)

    def frozen(self) -> list[Frozen]:
        """The networks that are read and not trained."""
        return [value for value in vars(self).values() if isinstance(value, Frozen)]

    def generator(self, *parts: int) -> torch.Generator:
        """Noise generator on the module's device, a function of `parts`."""
        return torch.Generator(self.device).manual_seed(mixed_seed(*parts))

    def on_fit_start(self) -> None:
        """Frozen networks follow to the device.

        Raises:
            UserError: one has a weight that is NaN or infinite: what is learned from its choices would not show it.
        """
        for frozen in self.frozen():
            frozen.network.to(self.device).eval()
            check_weights(frozen.network)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One loss, which is looked at soon.

        Raises:
            UserError: one of the last `UNREAD` is NaN or infinite.
        """
        step = self.global_step
        # Parts of one step, here and in other processes, have noise of their own.
        trainer = self.trainer
        part = (batch_idx % trainer.accumulate_grad_batches) * trainer.world_size + trainer.global_rank
        more = [part] if part else []
        _seed_dropout(mixed_seed(self.seed, step, 1, *more), self.device)
        loss = self.loss(batch, self.generator(self.seed, step, 0, *more))
        self._losses.append(loss.detach())
        self._unread.append((step, self._losses[-1]))
        if len(self._unread) >= UNREAD:
            self._read_losses()
        return loss

    def _read_losses(self) -> None:
        """One look at the device for several steps.

        Raises:
            UserError: naming the first loss that is NaN or infinite.
        """
        unread, self._unread = self._unread, []
        values = torch.stack([loss for _, loss in unread]).tolist() if unread else []
        for (step, _), value in zip(unread, values, strict=True):
            if not math.isfinite(value):
                raise UserError(
                    f"{type(self).__name__}: the loss became {value} at step {step}; the last good checkpoint is "
                    "kept, lower the learning rate or look at the data"
                )

    def score(self, batches: Iterable[Batch]) -> float:
        """The validation score of the network as it is, outside of a training: under the same noise.

        Raises:
            UserError: it is NaN or infinite, or nothing was scored.
        """
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad(), evaluating(self.network):
            for index, batch in enumerate(batches):
                here = {name: value.to(self.device) for name, value in batch.items()}
                for draw in range(self.draws):
                    found = self.held_out_loss(here, self.generator(index, draw, 2))
                    total += torch.stack(found).double().cpu()
        score = float(total[0] / total[1])
        if not math.isfinite(score):
            raise UserError(
                f"{type(self.network).__name__}: its score on held-out texts is {score}; it gives a token of them no "
                "probability: look at its tokenizer"
            )
        return score

    def on_train_epoch_start(self) -> None:
        """Start collecting."""
        self._losses, self._unread = [], []

    def on_validation_epoch_start(self) -> None:
        """Start summing, if all has gone well since the last time.

        Raises:
            UserError: a loss is NaN or infinite.
        """
        self._read_losses()
        self._total = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add `draws` noise draws of this batch."""
        for draw in range(self.draws):
            # Draws that do not depend on the training seed: one yardstick for all runs.
            total, count = self.held_out_loss(batch, self.generator(batch_idx, draw, 2))
            self._total += torch.stack([total.double(), count.double()])

    def on_validation_epoch_end(self) -> None:
        """Log the score, and the mean loss since the last one: logging every step would cost small networks dearly.

        Raises:
            UserError: it is NaN or infinite, or nothing was scored.
        """
        # One process's word: rounding apart, all have the same, and they must stop at the same check.
        total, count = self.trainer.strategy.broadcast(self._total).tolist()
        score = total / count if count else math.nan
        if not math.isfinite(score):
            raise UserError(
                f"{type(self).__name__}: the validation score became {score} at step {self.global_step}; the last good "
                "checkpoint is kept, lower the learning rate or look at the held-out data"
            )
        self.log(SCORE, score)
        if self._losses:
            self.log(LOSS, torch.stack(self._losses).mean(), sync_dist=self.trainer.world_size > 1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over what requires gradients, and the learning-rate curve."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        config = self.optimiser
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > self.stacked + 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= self.stacked + 1], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            fused=self.device.type in ("cpu", "cuda"),
        )
        curve = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: config.factor(step, self.total_steps))
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": curve, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm. Lightning's own clipping refuses fused optimisers in bf16 too, where no gradient is scaled."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)


def _seed_dropout(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, which takes 2 ms without a GPU: it notes a stack trace for each kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
