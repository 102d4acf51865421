"""`fit`: train a module with Lightning so that a run killed anywhere and started again ends the same."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from gtl_lightning.errors import UserError, lacks_memory
from gtl_lightning.files import remove, sha256_file, write_json
from gtl_lightning.modules.base import TrainedModule
from gtl_lightning.modules.callbacks import BEST, LAST, PREVIOUS, Averaging, Keeper, Reporter
from gtl_lightning.modules.state import RESULT, finished, kept_best, locked, restore_best, resumable
from gtl_lightning.records import sealed
from gtl_lightning.resources import has_bf16

log = logging.getLogger(__name__)
MakesTrainer = Callable[..., pl.Trainer]
BF16_WIDTH = 128
"""Narrower networks lose more in casting than they gain in bf16 on a CPU."""


@dataclass(frozen=True)
class FitResult:
    """What a fit came to.

    Attributes:
        best_score: lowest validation score; its weights are in the module.
        best_step: the step it was reached at.
        steps: optimiser steps taken.
        seconds: time spent training and validating, over all resumptions.
        history: one row a check: step, train_loss, score, seconds.
        compute_seconds: of the processor, all threads; on a GPU, which a training has to itself, by the clock.
        peak_bytes: by which training raised the memory in use: gradients, moments, activations; None if not known.
    """

    best_score: float
    best_step: int
    steps: int
    seconds: float
    history: list[dict[str, float]]
    compute_seconds: float = 0.0
    peak_bytes: int | None = None


def fit(
    module: TrainedModule,
    datamodule: pl.LightningDataModule,
    *,
    steps: int,
    check_every: int,
    patience: int,
    state_dir: Path | str,
    precision: str = "auto",
    ema_decay: float = 0.0,
    seed: int = 0,
    logger: Any = None,
    accelerator: str = "auto",
    devices: int = 1,
    accumulate: int = 1,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    trainer: MakesTrainer = pl.Trainer,
    identity: Mapping[str, str] | None = None,
) -> FitResult:
    """Train until `steps` or until `patience` checks in a row brought nothing better; best weights end in the module.

    State is kept in `state_dir` at every check. Called again after a kill, the fit goes on from there and ends with the
    same weights as an unbroken one; called again after its end, it returns the same result at once. Keep the
    folder keyed by the configuration: a state of other settings is refused.

    Args:
        module: what to train; its `seed` and `total_steps` are set here.
        datamodule: gives `check_every` batches an epoch, reloaded every epoch (its order must be a function of the
            epoch); validation batches always in the same order.
        steps: most optimiser steps; rounded up to whole checks.
        check_every: steps between validations.
        patience: checks without a better score before stopping.
        state_dir: folder for the resumable state.
        precision: "32-true", "bf16-mixed", or "auto": bf16 where hardware and width make it pay.
        ema_decay: decay of the moving average of the weights; 0: none. Scores and results are the average's.
        seed: of noise and dropout.
        logger: a Lightning logger, or None.
        accelerator: Lightning's.
        devices: processes that share each batch (DDP), one a GPU; the data module must come in parts for them.
        accumulate: batches of the data module that make one step.
        progress: show a bar or lines.
        callbacks: further ones of Lightning.
        trainer: makes the Trainer, from the arguments that this function would give it.
        identity: what else a state must be of to be gone on from, by name, where the folder's name does not say it.

    Raises:
        UserError: NaN loss, a second process in the same folder, a broken or foreign state, a folder that cannot be
            written, too little memory.
        KeyboardInterrupt: Ctrl-C; the fit can be resumed.
    """
    if min(steps, check_every, patience, devices, accumulate) < 1:
        raise UserError(
            f"steps = {steps}, check_every = {check_every}, patience = {patience}, devices = {devices}, "
            f"accumulate = {accumulate}; each must be at least 1"
        )
    if not 0 <= ema_decay < 1:
        raise UserError(f"ema_decay = {ema_decay}; it must be at least 0 and below 1")
    folder = Path(state_dir)
    checks = math.ceil(steps / check_every)
    resolved = resolve_precision(precision, module.width, accelerator)
    settings = {
        "module": type(module).__name__,
        "steps": checks * check_every,
        "check_every": check_every,
        "patience": patience,
        "ema_decay": ema_decay,
        "seed": seed,
        **(identity or {}),
    }
    with locked(folder):
        if done := finished(folder, settings):
            stored, tensors = done
            restore_best(module, folder, tensors)
            return FitResult(**stored)
        module.seed, module.total_steps = seed, checks * check_every
        averaging = Averaging(ema_decay) if ema_decay else None
        keeper = Keeper(folder, check_every, patience, averaging)
        reporter = Reporter(type(module).__name__, checks * check_every) if progress else None
        own = [callback for callback in (keeper, averaging, reporter) if callback is not None]
        resume = resumable(folder, settings, keeper, module)
        if not (resume and (keeper.out_of_patience or len(keeper.history) >= checks)):
            with _quiet(), torch.random.fork_rng():
                with _made():
                    made = trainer(
                        accelerator=accelerator,
                        devices=devices,
                        strategy="ddp_spawn" if devices > 1 else "auto",
                        accumulate_grad_batches=accumulate,
                        use_distributed_sampler=False,  # the data module cuts batches itself
                        precision=resolved,
                        max_epochs=checks,
                        limit_train_batches=check_every * accumulate,
                        reload_dataloaders_every_n_epochs=1,
                        num_sanity_val_steps=0,
                        gradient_clip_val=module.optimiser.grad_clip,
                        callbacks=[*own, *callbacks],
                        logger=logger if logger is not None else False,
                        log_every_n_steps=max(1, min(50, check_every)),
                        enable_progress_bar=False,
                        enable_model_summary=False,
                        inference_mode=False,  # the moving average swaps weights around validation
                        default_root_dir=folder,
                    )
                _run(made, module, datamodule, resume)
            if devices > 1:  # the processes are gone, and with them what their keepers knew
                resumable(folder, settings, keeper, module)
        if not keeper.history:
            raise UserError(f"training was stopped before its first check, at step {check_every}: nothing is kept")
        result = FitResult(
            best_score=keeper.best_score,
            best_step=keeper.best_step,
            steps=int(keeper.history[-1]["step"]),
            seconds=keeper.seconds,
            history=keeper.history,
            compute_seconds=keeper.compute_seconds,
            peak_bytes=keeper.peak_bytes,
        )
        restore_best(module, folder, kept_best(folder, keeper.best_step))
        ended = {"settings": settings, "result": asdict(result), "best": sha256_file(folder / BEST)}
        write_json(folder / RESULT, sealed(ended))
        remove(folder / LAST, folder / PREVIOUS)
        return result


@contextmanager
def _made() -> Iterator[None]:
    """Around the making of a Trainer: what it refuses (a GPU that is not there) is one line."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"Lightning makes no Trainer of these arguments: {first}; choose others") from error


def lent(trainer: pl.Trainer) -> MakesTrainer:
    """A Trainer that exists, as `fit` takes it, for one fit.

    Where and how precisely it computes, its loggers and callbacks stay as they are; what `fit` says of length, checks
    and what is kept takes the place of its own.
    """

    def take(*, callbacks: list[Callback], max_epochs: int, gradient_clip_val: float, **others: Any) -> pl.Trainer:
        if trainer.global_step:
            raise UserError(
                "this Trainer has trained already, and it trains one network; "
                "give a function that makes one, trainer=lambda **arguments: Trainer(**arguments)"
            )
        held: list[Callback] = vars(trainer)["callbacks"]
        held.extend(callbacks)
        trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = max_epochs, -1
        for name in ("limit_train_batches", "reload_dataloaders_every_n_epochs", "num_sanity_val_steps"):
            setattr(trainer, name, others[name])
        trainer.gradient_clip_val = gradient_clip_val
        trainer.fit_loop.epoch_loop.val_loop.inference_mode = others["inference_mode"]
        return trainer

    return take


def resolve_precision(precision: str, width: int, accelerator: str = "auto") -> str:
    """Lightning's precision string; "auto" is bf16 on a GPU that has it, and on a CPU that has it for wide networks.

    Raises:
        UserError: neither "auto", "32-true" nor "bf16-mixed".
    """
    if precision not in ("auto", "32-true", "bf16-mixed"):
        raise UserError(f"precision = {precision!r}; choose auto, 32-true or bf16-mixed")
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if has_bf16("cuda") else "32-true"
    on_cpu = accelerator in ("auto", "cpu") and not torch.backends.mps.is_available()
    return "bf16-mixed" if on_cpu and width >= BF16_WIDTH and has_bf16("cpu") else "32-true"


def _run(trainer: pl.Trainer, module: TrainedModule, datamodule: pl.LightningDataModule, resume: Path | None) -> None:
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    except SIGTERMException as error:
        # Lightning would leave with exit status 0, which a pipeline takes for success.
        raise SystemExit(128 + signal.SIGTERM) from error
    except SystemExit as error:
        # Lightning turns Ctrl-C into exit(1); callers expect the interrupt itself.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    except Exception as error:
        if lacks_memory(error):
            raise UserError(
                f"{type(module).__name__}: not enough memory to train; lower the batch of its section of train, raise "
                "machine.accumulate, or give the process more"
            ) from error
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's tips, summaries and worker warnings are noise here; its errors are not."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [item.level for item in loggers]
    for item in loggers:
        item.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch\.optim)(\.|$)")
        try:
            yield
        finally:
            for item, level in zip(loggers, levels, strict=True):
                item.setLevel(level)
