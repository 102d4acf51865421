"""`train_ratio`: the density ratio of two sets of texts, for a denoiser that is anyone's; kept and read back.

The methods are those of the registry, by their own recipes: what the pipeline trains is what is trained here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import nn

from gtl_lightning.api.reading import Reading, Texts, as_source, check_batches, check_pair, device_of, held_out_of
from gtl_lightning.api.training import (
    accelerator_of,
    backbone_of,
    check_lightning,
    fit_folder,
    identity_of,
    settings_of,
    staying,
)
from gtl_lightning.core.callables import evaluating
from gtl_lightning.core.guidance import TokenRatio
from gtl_lightning.core.protocols import Denoiser, Source
from gtl_lightning.core.schedule import LOG_LINEAR, LogLinear, NoiseSchedule, course, name_of
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.data.loading import DomainDataModule, TextDataModule
from gtl_lightning.errors import UserError
from gtl_lightning.fields import Network, check_seed
from gtl_lightning.files import digest
from gtl_lightning.methods import METHODS
from gtl_lightning.methods.fitting import Attempt, Trained, averaged, fit_recipe, held_out_draws, lowest
from gtl_lightning.methods.method import Context, Recipe, Role
from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
from gtl_lightning.modules.fit import FitResult, MakesTrainer, fit, lent
from gtl_lightning.networks import BackboneConfig, Ids, Plain, load_network, read_meta, save_network
from gtl_lightning.networks.block import NO_PAD
from gtl_lightning.records import Shape, record
from gtl_lightning.sharing.shareable import RATIO, WEIGHTS, Shareable, part_of, write_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HELD_OUT = 0.1
"""Share of the target texts that is kept from training, where none are given."""
VAL_EXAMPLES = 128
"""Noise draws, over all held-out texts, that a training scores itself on, at least."""


@dataclass(frozen=True)
class TrainedRatio(TokenRatio, Shareable):
    """A `TokenRatio` that knows where it comes from: give it to `Guidance`, `select_gamma` and `nelbo`.

    Attributes:
        method: that trained it.
        mask_index, pad_index: what the ids mean.
        length: most tokens of a text.
        fits: what each member's training came to; `best_score` is the guided NELBO of held-out target texts at gamma 1
            in nats per token, `history` has a row a check.
        schedule: name of the noise schedule that it was trained on; None for one without a name.
    """

    method: str
    mask_index: int
    pad_index: int | None
    length: int
    fits: tuple[FitResult, ...]
    schedule: str | None = LOG_LINEAR

    @property
    def network(self) -> nn.Module:
        """The trained network, on the denoiser's device; the denoiser is no part of it."""
        return cast(nn.Module, self.f)

    def save(self, path: Path | str) -> None:
        """Write weights and configuration as safetensors; the denoiser is not stored.

        Raises:
            UserError: the folder cannot be written.
        """
        said = {key: value for key, value in vars(self).items() if key not in ("f", "fits")}
        save_network(path, self.network, {**said, "fits": [asdict(fit) for fit in self.fits]})

    def write_to(self, folder: Path) -> None:
        """As `save`, in the folder of `save_pretrained`."""
        self.save(folder / WEIGHTS)
        write_config(folder, {RATIO: WEIGHTS})

    @classmethod
    def read_from(cls, folder: Path, denoiser: Denoiser | None = None) -> TrainedRatio:
        """As `load_ratio`, of the folder of `save_pretrained`."""
        return load_ratio(part_of(folder, RATIO), denoiser)


def load_ratio(path: Path | str, denoiser: Denoiser | None = None) -> TrainedRatio:
    """What `TrainedRatio.save` wrote, on the denoiser's device; nothing of the file is executed.

    Args:
        path: the file.
        denoiser: the one that it was trained beside, for `gtl-head` and `gtl-warm`, which read it.

    Raises:
        UserError: a missing or damaged file, one of another kind, or another denoiser than the ratio's.
    """
    said: dict[str, type | tuple[type, ...]]
    said = {"method": str, "mask_index": int, "pad_index": (int, type(None)), "length": int, "fits": list}
    shape: Shape = {**said, "schedule?": (str, type(None))}  # of which ratios of before say nothing
    meta = record(read_meta(path), path, shape)
    ids = Ids(meta["mask_index"], NO_PAD if meta["pad_index"] is None else meta["pad_index"])
    source = None if denoiser is None else as_source(denoiser, ids, meta["length"])
    network = load_network(path, denoiser=source).to(device_of(denoiser))
    fits = tuple(FitResult(**fit) for fit in meta["fits"])
    own = {key: meta[key] for key in said if key != "fits"}
    return TrainedRatio(cast(Any, network), **own, fits=fits, schedule=meta.get("schedule", LOG_LINEAR))


def train_ratio(
    denoiser: Denoiser,
    source_texts: Texts,
    target_texts: Texts,
    *,
    method: str | None = None,
    tokenizer: PreTrainedTokenizerFast | str | None = None,
    mask_index: int | None = None,
    pad_index: int | None = None,
    length: int | None = None,
    schedule: NoiseSchedule | None = None,
    held_out: Texts | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    check_every: int | None = None,
    patience: int | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    accelerator: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
    logger: Any = None,
    callbacks: Sequence[Callback] = (),
    trainer: pl.Trainer | MakesTrainer = pl.Trainer,
    **settings: Any,
) -> TrainedRatio:
    """Learn log q/p of target over source texts, to guide `denoiser`, which stays as it is.

    Training stops where `patience` checks on held-out target texts brought nothing better, and the best weights are
    kept. The result is a function of the arguments and of the machine.

    Args:
        denoiser: (x_t: Long[b,l], t: Float[b]) -> Float[b,l,v] log-probabilities or logits; v counts the mask. A
            module, any function (which computes where its input lies), or a `core.protocols.Source`.
        source_texts: of the domain that the denoiser is of: token ids Long[n,l], n sequences of ids, or n strings.
        target_texts: of the wanted domain, in the same form; a few dozen are a beginning.
        method: a ratio of `gtl methods` that needs no classifier; None: "gtl-head" beside a `Source`, else "gtl".
            "gtl-warm" trains a copy of the denoiser, by its `trainable_copy(dropout)` or `copy.deepcopy`.
        tokenizer: for strings: a fast one of transformers, its folder or its hub name.
        mask_index: id of the mask; None: the denoiser's own, or the tokenizer's.
        pad_index: id that fills up short texts; None likewise, and none where nothing names one.
        length: most tokens of a text (strings are cut) and of what is sampled; None: the longest text's.
        schedule: that a denoiser which reads t was trained with, and the ratio is; LogLinear by default, where t is the
            masked share. Sample and measure with the same.
        held_out: target texts to stop on; None: a tenth of target_texts, at random.
        steps: optimiser steps at most; this and the next four are the method's own where they are None.
        batch: texts a step.
        lr: peak learning rate.
        check_every: steps between checks.
        patience: checks without a better score before stopping.
        seed: of weights, order and noise.
        folder: where training resumes after a kill; None: it does not. What lies there of another training (texts,
            denoiser, settings) is refused.
        accelerator: Lightning's; "auto" takes a GPU for a module, and for a function the place of its weights.
        precision: "32-true", "bf16-mixed" or "auto".
        progress: a bar on a terminal, else lines by `logging`.
        logger: Lightning's, or None.
        callbacks: Lightning's; `train_loss` and `val_score` are what they may watch.
        trainer: a Trainer of your own, which keeps its devices, precision, loggers and callbacks and gets length and
            checks from here; or a function of the arguments of one (`pl.Trainer`'s names) that makes it, a subclass
            say. Several networks (gtl-warm has two: members=1 trains one) take a function.
        settings: of the method, as `methods.NAME` has them: bce_weight=0, members=4, network={"width": 96}.

    Raises:
        UserError: source and target are alike, or one is empty; ids outside the vocabulary, or the mask among them;
            a denoiser that gives NaN or another shape; a method or setting that there is not; a loss that became NaN;
            a folder that holds another training.
        KeyboardInterrupt: Ctrl-C.
    """
    check_seed(seed)
    known = {"tokenizer": tokenizer, "mask_index": mask_index, "pad_index": pad_index, "length": length}
    reading = Reading.of(denoiser, **cast(Any, known))
    source, target = reading.read(source_texts, "source_texts"), reading.read(target_texts, "target_texts")
    longest = length or int(max(source.lengths.max(), target.lengths.max()))
    frozen = as_source(denoiser, reading.ids, longest)
    check_batches(frozen.vocab_size, source_texts=source, target_texts=target)
    check_pair(source, target)
    method = method or ("gtl" if isinstance(frozen, Plain) else "gtl-head")
    training = {"steps": steps, "batch": batch, "lr": lr, "check_every": check_every, "patience": patience}
    own = settings_of(method, settings, training)
    if method == "gtl-head" and isinstance(frozen, Plain):
        raise UserError("gtl-head reads hidden states, and this denoiser is no core.protocols.Source; choose gtl")
    if held_out is None:
        train, val = held_out_of(target, HELD_OUT, seed, "target_texts")
    else:
        train, val = target, reading.read(held_out, "held_out")
        check_batches(frozen.vocab_size, source_texts=source, held_out=val)
    schedule = schedule or LogLinear()
    context = _context(frozen, source, train, val, longest, seed, method, schedule)
    recipe = METHODS[method].recipe(context, own)
    if isinstance(trainer, pl.Trainer) and recipe.members > 1:
        raise UserError(
            f"{method} trains {recipe.members} networks and a Trainer fits one; "
            "give members=1, or trainer=lambda **arguments: Trainer(**arguments)"
        )
    check_lightning(logger, callbacks, trainer)
    make = lent(trainer) if isinstance(trainer, pl.Trainer) else trainer
    options = {"accelerator": accelerator_of(denoiser, accelerator), "precision": precision, "progress": progress}
    options |= {"logger": logger, "callbacks": callbacks, "trainer": make}
    if folder is not None:  # what stands there of another training is not gone on from
        said = own.model_dump(mode="json") | {"length": longest}
        if type(schedule) is not LogLinear:
            said["schedule"] = course(schedule)
        parts = {"source_texts": source, "target_texts": train, "held_out": val}
        options["identity"] = identity_of(frozen, {"method": method, "settings": digest(said)}, parts)
    with fit_folder(folder) as state, evaluating(denoiser), staying(denoiser) as home:
        members = fit_recipe(recipe, own.train, seed, partial(_fit, recipe, source, val, state, options))
        network = averaged([member.network for member in members]).to(home).eval()
    fits = tuple(member.result for member in members)
    pad = None if reading.ids.pad_index == NO_PAD else reading.ids.pad_index
    return TrainedRatio(cast(Any, network), method, reading.ids.mask_index, pad, longest, fits, name_of(schedule))


def _fit(
    recipe: Recipe,
    source: TokenDataset,
    val: TokenDataset,
    state: Path,
    options: dict[str, Any],
    attempt: Attempt,
    build: Callable[[OptimiserConfig], TrainedModule],
) -> Trained:
    """One member of a ratio, with the best of its rates."""
    training = attempt.training
    cut = {"batch": training.batch, "steps_per_epoch": training.check_every, "seed": attempt.seed}
    cut["pad_index"] = val.pad_index
    data: pl.LightningDataModule
    if recipe.both_domains:  # the score reads the target alone: which source texts stand beside it is of no account
        data = DomainDataModule(source, recipe.target, source, val, **cut)
    else:
        data = TextDataModule(recipe.target, val, **cut)

    def at(lr: float) -> Trained:
        module = build(OptimiserConfig.of(training, lr))
        result = fit(
            module,
            data,
            steps=training.steps,
            check_every=training.check_every,
            patience=training.patience,
            ema_decay=training.ema,
            state_dir=state / f"{attempt.part}-{lr:g}",
            seed=attempt.seed,
            **options,
        )
        return Trained.once(module, data, result, lr, "", attempt.part, f"{attempt.part}-{lr:g}")

    return lowest([at(lr) for lr in (training.lr, *training.also_lr)])


def _context(
    frozen: Source,
    source: TokenDataset,
    train: TokenDataset,
    val: TokenDataset,
    length: int,
    seed: int,
    method: str,
    schedule: NoiseSchedule,
) -> Context:
    """What a recipe may know, of texts and a denoiser that are in no folder of the pipeline."""

    def opened(role: Role) -> Source:
        if role in ("clean", "noised"):
            raise UserError(f"{method} learns from a classifier of the two domains, as it is set; `gtl train` has one")
        return frozen

    def without_classifier() -> float:
        raise AssertionError("no classifier is read")

    def backbone(network: Network) -> BackboneConfig:
        return backbone_of(network, frozen.vocab_size, Ids(frozen.mask_index, val.pad_index), length)

    return Context(
        seed=seed,
        target=train,
        source=lambda: source,
        backbone=backbone,
        denoiser=Network(),
        frozen=opened,
        scoring={"schedule": schedule, "draws": held_out_draws(len(val), VAL_EXAMPLES)},
        smoothing=without_classifier,
        device=device_of(frozen),
        progress=lambda what: None,
    )
