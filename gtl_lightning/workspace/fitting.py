"""What every training stage shares: data, optimiser, the resumable and tracked fit, and the files it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.fields import Training
from gtl_lightning.files import sha256_file, write_json
from gtl_lightning.methods.fitting import Spent, Trained, held_out_draws, lowest
from gtl_lightning.workspace.corpus import Corpus, device_of, token_files, tokens_hash
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import RESULT, Cell, log, note_run, state_dir, study
from gtl_lightning.workspace.provenance import made_with

TRAINING = "gtl_lightning.stages.train"
"""Where every training of the pipeline starts."""
TOOK = {"history", "seconds", "compute_seconds", "peak_bytes"}
"""Of a fit's result, what stands elsewhere: in the history, in runs/."""

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule
    from torch import nn

    from gtl_lightning.data.dataset import TokenDataset
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.modules.fit import FitResult

    Build = Callable[[OptimiserConfig], TrainedModule]


def fit_and_save(
    params: Params,
    cell: Cell,
    build: Build,
    data: LightningDataModule,
    training: Training,
    settings: dict[str, Any],
    *inputs: Path,
    folder: Path,
    part: str = "network",
) -> None:
    """Fit one network and leave models/.../PART.safetensors and its result.

    Args:
        params: all parameters.
        cell: what is trained; names the run and the state.
        build: optimiser -> module with a fresh network.
        data: training and held-out batches.
        training: length and stopping.
        settings: all that the result depends on beside `training`; part of the state's key.
        inputs: files that are read, hashed into the key.
        folder: where the network goes.
        part: file name, where a folder holds several networks.
    """
    trained = fit_best(params, cell, build, data, training, settings, inputs, part)
    save_trained(folder, trained.network, [trained], part=part)


def fit_best(
    params: Params,
    cell: Cell,
    build: Build,
    data: LightningDataModule,
    training: Training,
    settings: dict[str, Any],
    inputs: Collection[Path],
    part: str,
    seed: int | None = None,
    code: str | None = None,
) -> Trained:
    """Fit with each of the learning rates, one after the other; the lowest held-out score wins.

    Arguments as in `fit_and_save`; `seed` is that of noise, order and dropout, the cell's own unless a cell trains
    several networks alike; `code` is the module that it starts in, where that is none of the pipeline's: such a one
    names all that it reads.
    """
    from gtl_lightning.modules.base import OptimiserConfig

    tried = []
    for lr in (training.lr, *training.also_lr):
        begun, computed = time.monotonic(), time.process_time()
        module = build(OptimiserConfig.of(training, lr))  # which counts tables, where a method has them
        built = Spent(time.monotonic() - begun, time.process_time() - computed)
        name = part if lr == training.lr else f"{part}-lr-{lr:g}"
        result, made = _fit_tracked(params, cell, module, data, training, lr, settings, inputs, name, seed, code)
        once = Trained.once(module, data, result, lr, made, part, name)
        tried.append(replace(once, spent=built + once.spent))
    return lowest(tried)


def _fit_tracked(
    params: Params,
    cell: Cell,
    module: TrainedModule,
    data: LightningDataModule,
    training: Training,
    lr: float,
    settings: dict[str, Any],
    inputs: Collection[Path],
    part: str,
    seed: int | None,
    code: str | None,
) -> tuple[FitResult, str]:
    """Fit one network in its own resumable state and its own tracked run; also says what it was made with.

    Raises:
        UserError: the tracker cannot be reached, the loss became NaN, or the state is in use or broken.
    """
    from gtl_lightning.modules.fit import fit, resolve_precision

    machine = params.machine
    own = {**training.model_dump(exclude={"also_lr"}), "lr": lr}
    settings = {**settings, "training": own, "fraction": cell.fraction, "seed": cell.seed}
    # Whatever changes the examples that are trained or selected on must not meet another run's finished state.
    settings |= {"val_examples": params.train.val_examples}
    settings |= {"min_examples": params.data.min_examples} if cell.fraction is not None else {}
    plain = {key: value.model_dump() if hasattr(value, "model_dump") else value for key, value in settings.items()}
    # DVC does not know where a network was trained; state of another place would be taken for this one's.
    precision = resolve_precision(machine.precision, module.width, machine.accelerator)
    device = device_of(params).type
    place: dict[str, Any] = {"precision": precision, "device": device}
    place |= {"devices": machine.devices, "accumulate": machine.accumulate}
    read = [*sorted(inputs)] if code else [*token_files(), *sorted(inputs)]
    state = state_dir(f"{cell.name}-{part}", plain | place, *read, code=code or TRAINING)
    made = made_with(device, precision, machine.devices * machine.accumulate)
    tags = {"method": cell.method, "fraction": cell.fraction, "seed": cell.seed, "part": part, "made_with": made}
    note = f"{cell}: the training of its {part}, with learning curves."
    with study(params).child("train", f"train {cell.name} {part}", state.name, tags, note) as run:
        run.log_params(plain)
        result = fit(
            module,
            data,
            steps=training.steps,
            check_every=training.check_every,
            patience=training.patience,
            state_dir=state,
            precision=machine.precision,
            ema_decay=training.ema,
            seed=cell.seed if seed is None else seed,
            logger=run.lightning_logger(),
            accelerator=machine.accelerator,
            devices=machine.devices,
            accumulate=machine.accumulate,
        )
        found = {"best_score": result.best_score, "best_step": result.best_step, **Spent.on(result).noted}
        run.log_metrics(found)
    log.info(
        "%s %s: best %.4f at step %d of %d, %.0f s",
        cell.name,
        part,
        result.best_score,
        result.best_step,
        result.steps,
        result.seconds,
    )
    return result, made


def save_trained(
    folder: Path,
    network: nn.Module,
    trained: Sequence[Trained],
    *,
    part: str = "network",
    read: Collection[Path] = (),
    found: Mapping[str, Any] | None = None,
    prepared: float = 0.0,
) -> None:
    """Write the network and what its training came to: cost of all members, score and curve of the best.

    What was read is named with short hashes, the tokens too: a ratio belongs to the denoiser beside which it was
    trained, and every network to the texts and the ids that it knows. What the
    recipe found stands with them, a `warning` for the report among it. What it took stands in `runs/`, the seconds in
    which the recipe `prepared` its texts too: equal trainings leave equal files.
    """
    from gtl_lightning.networks import save_network

    best = min(trained, key=lambda member: member.result.best_score)
    summary = {
        **{key: value for key, value in asdict(best.result).items() if key not in TOOK},
        "lr": best.lr,
        "part": best.part,
        "steps": sum(member.steps for member in trained),
        "trainable_parameters": sum(member.parameters for member in trained),
        "kept_bytes": sum(member.kept_bytes for member in trained),
        "tried": {name: score for member in trained for name, score in member.tried.items()},
        "made_with": best.made_with,
        "read": {str(path): sha256_file(path)[:12] for path in sorted(read)},
        "tokens": tokens_hash(),
        **(found or {}),
    }
    save_network(folder / f"{part}.safetensors", network, summary)
    history = [{key: value for key, value in check.items() if key != "seconds"} for check in best.result.history]
    path = folder / (RESULT if part == "network" else f"{part}.json")
    write_json(path, {**summary, "history": history})
    note_run(path, {**Spent.by(trained).noted, "prepare_seconds": round(prepared, 2)})


def scoring(params: Params, val: TokenDataset) -> dict[str, Any]:
    """Arguments of every module: the noise schedule, and the noise draws of each held-out example in a score.

    Few held-out examples are drawn more often, until their draws are `train.val_examples`.
    """
    from gtl_lightning.core.schedule import schedule

    draws = held_out_draws(len(val), params.train.val_examples)
    return {"schedule": schedule(params.schedule), "draws": draws}


def texts_of(
    params: Params, train: TokenDataset, val: TokenDataset, training: Training, corpus: Corpus, seed: int
) -> LightningDataModule:
    """Batches of one domain."""
    from gtl_lightning.data.loading import TextDataModule

    val = val.subset(min(len(val), params.train.val_examples))
    return TextDataModule(
        train,
        val,
        batch=training.batch,
        steps_per_epoch=training.check_every,
        seed=seed,
        pad_index=corpus.pad_index,
        parts=params.machine.devices * params.machine.accumulate,
    )


def domains_of(
    params: Params, train: TokenDataset, val: TokenDataset, training: Training, corpus: Corpus, seed: int
) -> LightningDataModule:
    """Source and target, equally often in training; held-out target beside at least as much held-out source."""
    from gtl_lightning.data.loading import DomainDataModule

    val = val.subset(min(len(val), params.train.val_examples))
    source_val = corpus.dataset("source_val")
    return DomainDataModule(
        corpus.dataset("source_train"),
        train,
        source_val.subset(min(len(source_val), max(len(val), 256))),
        val,
        batch=training.batch,
        steps_per_epoch=training.check_every,
        seed=seed,
        pad_index=corpus.pad_index,
        parts=params.machine.devices * params.machine.accumulate,
    )
