"""Lightning callbacks of `fit`: moving average, keeping of state, progress."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, WeightAveraging
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gtl_lightning.errors import UserError
from gtl_lightning.files import remove, save_tensors, writing
from gtl_lightning.modules.base import LOSS, SCORE
from gtl_lightning.networks.store import unshared
from gtl_lightning.resources import PeakMemory

logger = logging.getLogger(__name__)
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.safetensors"


class Average(AveragedModel):
    """torch's, on a device; how many updates there were stays with the host, which torch would let ask for it.

    The decay warms up as (1 + n) / (10 + n): without that, a run shorter than 1 / (1 - decay) steps would average in
    its initial weights.
    """

    def __init__(self, model: nn.Module, device: torch.device, decay: float) -> None:
        super().__init__(model)
        self.module.to(device)
        self.decay = decay

    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the weights of a model of the same shape, on the same device; take its buffers."""
        means, news = ([weight.detach() for weight in each.parameters()] for each in (self.module, model))
        if done := int(self.n_averaged):
            torch._foreach_lerp_(means, news, 1 - min(self.decay, (1 + done) / (10 + done)))
        else:
            torch._foreach_copy_(means, news)
        for mean, new in zip(self.module.buffers(), model.buffers(), strict=True):
            mean.copy_(new)
        self.n_averaged += 1


class Averaging(WeightAveraging):
    """Lightning's moving average of the weights (EMA) from step 0; validation sees the averaged weights."""

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False)
        self._decay = decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average where the weights will be.

        Lightning makes it before they go there: it would stay with the host, and all weights come back at every step.
        """
        if stage == "fit":
            self._average_model = Average(pl_module, trainer.strategy.root_device, self._decay)

    def averaged_state(self) -> dict[str, Tensor]:
        """The averaged module's state, under the module's own names."""
        assert self._average_model is not None
        return self._average_model.module.state_dict()


def _computed(device: torch.device) -> float:
    """Seconds of the processor, all threads, which what others do beside it does not raise; by the clock on a GPU."""
    return time.process_time() if device.type == "cpu" else time.monotonic()


class Keeper(Checkpoint):
    """At every check: notes the score, keeps the best weights and a resumable checkpoint, stops when patience is out.

    Both files are replaced whole, `best` before `last`: killed in between, the run repeats the check and writes the
    same `best` again.
    """

    def __init__(self, state_dir: Path, check_every: int, patience: int, averaging: Averaging | None) -> None:
        self.state_dir = state_dir
        self.check_every = check_every
        self.patience = patience
        self.averaging = averaging
        self._since = time.monotonic()
        self._computed = 0.0
        self._peak: PeakMemory | None = None
        self.forget()

    def forget(self) -> None:
        """Be as at the start of training."""
        self.best_score = math.inf
        self.best_step = 0
        self.seconds = 0.0
        self.compute_seconds = 0.0
        self.peak_bytes: int | None = None
        self.history: list[dict[str, float]] = []

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` checks brought nothing better."""
        return bool(self.history) and self.history[-1]["step"] - self.best_step >= self.patience * self.check_every

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: they load as weights only."""
        return {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "compute_seconds": self.compute_seconds,
            "peak_bytes": self.peak_bytes,
            "history": self.history,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
        self.seconds, self.history = state_dict["seconds"], state_dict["history"]
        self.compute_seconds, self.peak_bytes = state_dict["compute_seconds"], state_dict["peak_bytes"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks."""
        self._since, self._computed = time.monotonic(), _computed(pl_module.device)
        self._peak = PeakMemory(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The check itself; validation has just run.

        Raises:
            UserError: the data module gave fewer batches than a check takes, or the folder cannot be written.
        """
        step = trainer.global_step
        if step % self.check_every:
            if trainer.should_stop:  # another callback's word: what was best at the last check stands
                return
            raise UserError(
                f"training data ran out at step {step}, checks are every {self.check_every} steps; "
                "give a data module of that many steps per epoch"
            )
        score = float(trainer.callback_metrics[SCORE])
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        now = _computed(pl_module.device)
        self.compute_seconds, self._computed = self.compute_seconds + now - self._computed, now
        rise = self._peak.rise() if self._peak else None
        self.peak_bytes = self.peak_bytes if rise is None else max(self.peak_bytes or 0, rise)
        row = {"step": step, "train_loss": float(trainer.callback_metrics[LOSS]), "score": score}
        self.history.append({**row, "seconds": self.seconds})
        if score < self.best_score:
            self.best_score, self.best_step = score, step
            if trainer.is_global_zero:
                self._keep_best(pl_module)
        self._keep_last(trainer)
        trainer.should_stop = trainer.should_stop or self.out_of_patience

    def _keep_best(self, module: pl.LightningModule) -> None:
        state = self.averaging.averaged_state() if self.averaging else module.state_dict()
        network = {name.removeprefix("network."): v for name, v in state.items() if name.startswith("network.")}
        save_tensors(self.state_dir / BEST, unshared(network), {"step": self.best_step, "score": self.best_score})

    def _keep_last(self, trainer: pl.Trainer) -> None:
        last = self.state_dir / LAST
        temporary = self.state_dir / f".{LAST}.{os.getpid()}.tmp"
        try:
            with writing(last):
                trainer.save_checkpoint(temporary)  # all processes wait for the first, which writes
                if not trainer.is_global_zero:
                    return
                if last.exists():
                    os.replace(last, self.state_dir / PREVIOUS)
                os.replace(temporary, last)
        finally:
            remove(temporary)


class Reporter(Callback):
    """Progress with the time left: a bar on a terminal, else a line every `every` seconds and at every check."""

    def __init__(self, name: str, total: int, every: float = 20.0) -> None:
        self.name = name
        self.total = total
        self.every = every
        self._bar: Progress | None = None
        self._first = 0
        self._began = self._said = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, note where a resumed run starts."""
        self._first = trainer.global_step
        self._began = self._said = time.monotonic()
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(self.name, total=self.total, completed=self._first, note="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Move the bar; a line when one is due."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step)
        elif time.monotonic() - self._said > self.every:
            self._say(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the score."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=f"score {float(trainer.callback_metrics[SCORE]):.4f}")
        else:
            self._say(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, trainer: pl.Trainer) -> None:
        self._said = time.monotonic()
        step = trainer.global_step
        rate = (step - self._first) / max(1e-9, self._said - self._began)
        left = (self.total - step) / max(1e-9, rate)
        values = {name: trainer.callback_metrics.get(name) for name in (LOSS, SCORE)}
        shown = "".join(f", {name} {float(value):.4f}" for name, value in values.items() if value is not None)
        logger.info("%s: step %d/%d%s, %.1f steps/s, %.0f s left", self.name, step, self.total, shown, rate, left)
