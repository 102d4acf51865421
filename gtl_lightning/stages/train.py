"""Training stages: each builds a network, its module and its data, and fits it into models/NAME."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.config import Params, Training
from gtl_lightning.files import write_json
from gtl_lightning.stages.advisor import advise_cell
from gtl_lightning.stages.common import (
    MODELS,
    NETWORK,
    RESULT,
    TOKENS,
    Cell,
    Corpus,
    load_denoiser,
    log,
    state_dir,
    study,
    trainable_parameters,
)
from gtl_lightning.stages.evaluate import measure_real
from gtl_lightning.stages.text import decode_all

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule
    from torch import nn

    from gtl_lightning.data.dataset import TokenDataset
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.modules.fit import FitResult

SOURCE = MODELS / "source" / NETWORK
TOKENS_META = TOKENS / "meta.json"


def train_source(params: Params) -> None:
    """The denoiser of the source domain, frozen by everything that follows (docs/method.md eq. 1)."""
    from gtl_lightning.modules.denoiser import DenoiserModule
    from gtl_lightning.networks import MaskedDenoiser, seeded

    corpus = Corpus.open(params)
    with seeded(params.data.seed):
        network = MaskedDenoiser(corpus.backbone(params.networks.denoiser))
    module = DenoiserModule(network, _optimiser(params.train.source), _schedule(params))
    _fit_and_save(
        params,
        Cell("source", None, params.data.seed),
        module,
        _texts(params, corpus.dataset("source_train"), corpus.dataset("source_val"), params.train.source, corpus, 0),
        params.train.source,
        {"network": params.networks.denoiser, "schedule": params.schedule},
        folder=MODELS / "source",
    )


def train_planner(params: Params) -> None:
    """The learned reveal order, on source text (docs/method.md 2.3)."""
    from gtl_lightning.modules.planner import PlannerModule
    from gtl_lightning.networks import PositionNetwork, seeded

    corpus = Corpus.open(params)
    with seeded(params.data.seed):
        network = PositionNetwork(corpus.backbone(params.networks.planner))
    module = PlannerModule(network, load_denoiser("source"), _optimiser(params.train.planner), _schedule(params))
    _fit_and_save(
        params,
        Cell("planner", None, params.data.seed),
        module,
        _texts(params, corpus.dataset("source_train"), corpus.dataset("source_val"), params.train.planner, corpus, 0),
        params.train.planner,
        {"network": params.networks.planner, "schedule": params.schedule},
        SOURCE,
        folder=MODELS / "planner",
    )


def train_judge(params: Params) -> None:
    """The domain judge and the reference model, on text kept apart for them alone."""
    from gtl_lightning.evaluation.judge import fit_judge
    from gtl_lightning.modules.causal import CausalLMModule
    from gtl_lightning.networks import CausalLM, seeded

    corpus = Corpus.open(params)
    target = corpus.dataset("judge_target")
    texts = {name: decode_all(corpus.dataset(name)) for name in ("judge_source", "judge_target")}
    judge = fit_judge(texts["judge_source"], texts["judge_target"], seed=params.data.seed)
    log.info("judge: held-out AUC %.3f", judge.auc)
    with seeded(params.data.seed):
        network = CausalLM(corpus.backbone(params.networks.reference))
    held_out = max(1, len(target) // 10)
    _fit_and_save(
        params,
        Cell("judge", None, params.data.seed),
        CausalLMModule(network, _optimiser(params.train.reference)),
        _texts(
            params,
            target.subset(len(target) - held_out),
            target.tail(len(target) - held_out),
            params.train.reference,
            corpus,
            0,
        ),
        params.train.reference,
        {"network": params.networks.reference},
        folder=MODELS / "judge",
    )
    judge.save(MODELS / "judge" / "judge.safetensors")
    measure_real(params)


def train_classifier(params: Params, fraction: float, seed: int) -> None:
    """Domain classifiers on clean and on noised text, and the advisor's word on the overlap (docs/method.md 2.1)."""
    from gtl_lightning.modules.classifier import ClassifierModule
    from gtl_lightning.networks import SequenceRatioNetwork, seeded

    corpus, training = Corpus.open(params), params.train.classifier
    train, val = corpus.target(fraction, params.data.min_examples)
    cell = Cell("classifier", fraction, seed)
    for kind, noised, smoothing in (("clean", False, params.ratio.label_smoothing), ("noised", True, 0.0)):
        with seeded(seed):
            network = SequenceRatioNetwork(corpus.backbone(params.networks.ratio))
        module = ClassifierModule(
            network, noised=noised, smoothing=smoothing, optimiser=_optimiser(training), schedule=_schedule(params)
        )
        _fit_and_save(
            params,
            cell,
            module,
            _domains(params, train, val, training, corpus, seed),
            training,
            {"network": params.networks.ratio, "kind": kind, "smoothing": smoothing, "schedule": params.schedule},
            folder=MODELS / cell.name,
            part=kind,
        )
    advise_cell(params, corpus, cell, val)


def train_cell(params: Params, method: str, fraction: float, seed: int) -> None:
    """One baseline denoiser or ratio network on a fraction of the target data."""
    _BUILDERS[method](params, Cell(method, fraction, seed))


def _vanilla(params: Params, cell: Cell) -> None:
    from gtl_lightning.networks import MaskedDenoiser, seeded

    corpus = Corpus.open(params)
    with seeded(cell.seed):
        network = MaskedDenoiser(corpus.backbone(params.networks.denoiser))
    _fit_denoiser(params, corpus, cell, network, params.train.vanilla, {})


def _finetune(params: Params, cell: Cell) -> None:
    from gtl_lightning.networks import copy_of

    _fit_denoiser(
        params, Corpus.open(params), cell, copy_of(load_denoiser("source")), params.train.finetune, {}, SOURCE
    )


def _lora(params: Params, cell: Cell) -> None:
    from gtl_lightning.modules.lora import add_lora, merge_lora

    network = add_lora(load_denoiser("source"), rank=params.lora.rank, alpha=params.lora.alpha, seed=cell.seed)
    _fit_denoiser(
        params,
        Corpus.open(params),
        cell,
        network,
        params.train.lora,
        {"lora": params.lora.model_dump()},
        SOURCE,
        finish=merge_lora,
    )


def _fit_denoiser(
    params: Params,
    corpus: Corpus,
    cell: Cell,
    network: nn.Module,
    training: Training,
    settings: dict[str, Any],
    *inputs: Path,
    finish: Any = None,
) -> None:
    from gtl_lightning.modules.denoiser import DenoiserModule

    train, val = corpus.target(_fraction(cell), params.data.min_examples)
    _fit_and_save(
        params,
        cell,
        DenoiserModule(network, _optimiser(training), _schedule(params)),
        _texts(params, train, val, training, corpus, cell.seed),
        training,
        {"network": params.networks.denoiser, "schedule": params.schedule, **settings},
        *inputs,
        folder=MODELS / cell.name,
        finish=finish,
    )


def _token_ratio(params: Params, cell: Cell) -> None:
    """The token-level ratio: eqs. 9 and 9', one or more members (docs/method.md 2.2)."""
    from gtl_lightning.modules.ratio import TokenRatioModule
    from gtl_lightning.networks import RatioEnsemble, TokenRatioNetwork, seeded

    corpus, training, ratio = Corpus.open(params), params.train.ratio, params.ratio
    source = load_denoiser("source")
    train, val = corpus.target(_fraction(cell), params.data.min_examples)
    members = []
    for member in range(ratio.members):
        with seeded(cell.seed + 1000 * member):
            network = TokenRatioNetwork(corpus.backbone(params.networks.ratio))
        module = TokenRatioModule(
            network,
            source,
            bce_weight=ratio.bce_weight,
            nll_weight=ratio.nll_weight,
            martingale_weight=ratio.martingale_weight,
            optimiser=_optimiser(training),
            schedule=_schedule(params),
        )
        result = _fit(
            params,
            cell,
            module,
            _domains(params, train, val, training, corpus, cell.seed + 1000 * member),
            training,
            {"network": params.networks.ratio, "ratio": ratio.model_dump(), "member": member},
            (SOURCE,),
            part=f"member-{member}",
        )
        members.append((module.network, result))
    networks = [network for network, _ in members]
    _save(
        MODELS / cell.name,
        networks[0] if len(networks) == 1 else RatioEnsemble(networks),
        min((result for _, result in members), key=lambda result: result.best_score),
        sum(trainable_parameters(network) for network in networks),
        seconds=sum(result.seconds for _, result in members),
        steps=sum(result.steps for _, result in members),
    )


def _sequence_ratio(loss: str) -> Any:
    def train(params: Params, cell: Cell) -> None:
        from gtl_lightning.modules.ratio import SequenceRatioModule
        from gtl_lightning.networks import SequenceRatioNetwork, load_network, seeded

        corpus, training, ratio = Corpus.open(params), params.train.ratio, params.ratio
        train_set, val = corpus.target(_fraction(cell), params.data.min_examples)
        classifiers = MODELS / Cell("classifier", cell.fraction, cell.seed).name
        clean, noised = (load_network(classifiers / f"{kind}.safetensors") for kind in ("clean", "noised"))
        with seeded(cell.seed):
            network = SequenceRatioNetwork(corpus.backbone(params.networks.ratio))
        module = SequenceRatioModule(
            network,
            clean,
            noised,
            loss=loss,
            eta_1=ratio.eta_1,
            clip=ratio.clip,
            smoothing=ratio.label_smoothing if ratio.unsmooth else 0.0,
            optimiser=_optimiser(training),
            schedule=_schedule(params),
        )
        _fit_and_save(
            params,
            cell,
            module,
            _domains(params, train_set, val, training, corpus, cell.seed),
            training,
            {"network": params.networks.ratio, "ratio": ratio.model_dump()},
            classifiers / "clean.safetensors",
            classifiers / "noised.safetensors",
            folder=MODELS / cell.name,
        )

    return train


_BUILDERS: dict[str, Any] = {
    "vanilla": _vanilla,
    "finetune": _finetune,
    "lora": _lora,
    "gtl": _token_ratio,
    "gtl-sequence-gkl": _sequence_ratio("gkl"),
    "gtl-sequence-bce": _sequence_ratio("bce"),
    "gtl-sequence-log-mse": _sequence_ratio("log_mse"),
}


def _fit_and_save(
    params: Params,
    cell: Cell,
    module: TrainedModule,
    data: LightningDataModule,
    training: Training,
    settings: dict[str, Any],
    *inputs: Path,
    folder: Path,
    part: str = "network",
    finish: Any = None,
) -> None:
    parameters = sum(weight.numel() for weight in module.network.parameters() if weight.requires_grad)
    result = _fit(params, cell, module, data, training, settings, inputs, part)
    network = finish(module.network) if finish else module.network
    _save(folder, network, result, parameters, part=part, seconds=result.seconds, steps=result.steps)


def _fit(
    params: Params,
    cell: Cell,
    module: TrainedModule,
    data: LightningDataModule,
    training: Training,
    settings: dict[str, Any],
    inputs: tuple[Path, ...],
    part: str,
) -> FitResult:
    from gtl_lightning.modules.fit import fit

    settings = {**settings, "training": training.model_dump(), "fraction": cell.fraction, "seed": cell.seed}
    plain = {key: value.model_dump() if hasattr(value, "model_dump") else value for key, value in settings.items()}
    state = state_dir(f"{cell.name}-{part}", plain, TOKENS_META, *inputs)
    tags = {"method": cell.method, "fraction": cell.fraction, "seed": cell.seed, "part": part}
    with study(params).child("train", f"train {cell.name} {part}", state.name, tags) as run:
        run.log_params(plain)
        result = fit(
            module,
            data,
            steps=training.steps,
            check_every=training.check_every,
            patience=training.patience,
            state_dir=state,
            precision=params.machine.precision,
            ema_decay=training.ema,
            seed=cell.seed,
            logger=run.lightning_logger(),
            accelerator=params.machine.accelerator,
        )
        run.log_metrics({"best_score": result.best_score, "best_step": result.best_step, "seconds": result.seconds})
    log.info(
        "%s %s: best %.4f at step %d of %d, %.0f s",
        cell.name,
        part,
        result.best_score,
        result.best_step,
        result.steps,
        result.seconds,
    )
    return result


def _save(
    folder: Path,
    network: nn.Module,
    result: FitResult,
    parameters: int,
    *,
    seconds: float,
    steps: int,
    part: str = "network",
) -> None:
    from gtl_lightning.networks import save_network

    summary = {
        **{key: value for key, value in asdict(result).items() if key != "history"},
        "steps": steps,
        "seconds": round(seconds, 2),
        "trainable_parameters": parameters,
    }
    save_network(folder / f"{part}.safetensors", network, summary)
    write_json(folder / (RESULT if part == "network" else f"{part}.json"), {**summary, "history": result.history})


def _optimiser(training: Training) -> OptimiserConfig:
    from gtl_lightning.modules.base import OptimiserConfig

    return OptimiserConfig(
        lr=training.lr,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup,
        grad_clip=training.clip,
    )


def _schedule(params: Params) -> Any:
    from gtl_lightning.schedule import schedule

    return schedule(params.schedule)


def _texts(
    params: Params, train: TokenDataset, val: TokenDataset, training: Training, corpus: Corpus, seed: int
) -> LightningDataModule:
    from gtl_lightning.data.loading import TextDataModule

    val = val.subset(min(len(val), params.train.val_examples))
    return TextDataModule(
        train, val, batch=training.batch, steps_per_epoch=training.check_every, seed=seed, pad_index=corpus.pad_index
    )


def _domains(
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
    )


def _fraction(cell: Cell) -> float:
    assert cell.fraction is not None
    return cell.fraction
