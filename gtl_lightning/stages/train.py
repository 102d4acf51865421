"""Training stages: each builds a network, its module and its data, and fits it into models/NAME."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.config import Params
from gtl_lightning.sections import Network, Training
from gtl_lightning.stages.advisor import advise_cell
from gtl_lightning.stages.asked import known_cell
from gtl_lightning.stages.common import MODELS, SOURCE, Cell, fraction_of, log
from gtl_lightning.stages.corpus import Corpus, check_machine, load_denoiser
from gtl_lightning.stages.fitting import (
    domains_of,
    fit_and_save,
    scoring,
    texts_of,
)
from gtl_lightning.stages.text import decode_all
from gtl_lightning.stages.train_ratio import RATIOS

if TYPE_CHECKING:
    from torch import nn

    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.networks import BackboneConfig


def train_source(params: Params) -> None:
    """The denoiser of the source domain, frozen by everything that follows (docs/method.md eq. 1)."""
    from gtl_lightning.modules.denoiser import DenoiserModule
    from gtl_lightning.networks import MaskedDenoiser

    _fit_on_source(params, "source", MaskedDenoiser, params.networks.denoiser, DenoiserModule, params.train.source)


def train_planner(params: Params) -> None:
    """The learned reveal order, on source text (docs/method.md 2.3)."""
    from gtl_lightning.modules.planner import PlannerModule
    from gtl_lightning.networks import PositionNetwork

    module = partial(PlannerModule, denoiser=load_denoiser("source"))
    _fit_on_source(params, "planner", PositionNetwork, params.networks.planner, module, params.train.planner, SOURCE)


def _fit_on_source(
    params: Params,
    name: str,
    network: Callable[[BackboneConfig], nn.Module],
    size: Network,
    module: Callable[..., TrainedModule],
    training: Training,
    *inputs: Path,
) -> None:
    """What all cells share, trained once on the source split into models/NAME."""
    from gtl_lightning.networks import seeded

    check_machine(params)
    corpus = Corpus.open(params)
    train, val = corpus.dataset("source_train"), corpus.dataset("source_val")

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        with seeded(params.data.seed):
            fresh = network(corpus.backbone(size))
        return module(fresh, optimiser=optimiser, **scoring(params, val))

    fit_and_save(
        params,
        Cell(name, None, params.data.seed),
        build,
        texts_of(params, train, val, training, corpus, 0),
        training,
        {"network": size, "schedule": params.schedule},
        *inputs,
        folder=MODELS / name,
    )


def train_judge(params: Params) -> None:
    """The domain judge and the reference model, on text kept apart for them alone."""
    from gtl_lightning.evaluation.judge import fit_judge
    from gtl_lightning.modules.causal import CausalLMModule
    from gtl_lightning.networks import CausalLM, seeded

    check_machine(params)
    corpus = Corpus.open(params)
    target = corpus.dataset("judge_target")
    texts = {name: decode_all(corpus.dataset(name)) for name in ("judge_source", "judge_target")}
    judge = fit_judge(texts["judge_source"], texts["judge_target"], seed=params.data.seed)
    log.info("judge: held-out AUC %.3f", judge.auc)

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        with seeded(params.data.seed):
            return CausalLMModule(CausalLM(corpus.backbone(params.networks.reference)), optimiser)

    held_out = max(1, len(target) // 10)
    fit_and_save(
        params,
        Cell("judge", None, params.data.seed),
        build,
        texts_of(
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


def train_classifier(params: Params, fraction: float, seed: int) -> None:
    """Domain classifiers on clean and on noised text, and the advisor's word on the overlap (docs/method.md 2.1)."""
    check_machine(params)
    corpus, training = Corpus.open(params), params.train.classifier
    train, val = corpus.target(fraction, params.data.min_examples)  # refused before seconds of imports

    from gtl_lightning.modules.classifier import ClassifierModule
    from gtl_lightning.networks import SequenceRatioNetwork, seeded

    cell = Cell("classifier", fraction, seed)
    for kind, noised, smoothing in (("clean", False, params.classifier.label_smoothing), ("noised", True, 0.0)):

        def build(optimiser: OptimiserConfig, noised: bool = noised, smoothing: float = smoothing) -> TrainedModule:
            with seeded(seed):
                network = SequenceRatioNetwork(corpus.backbone(params.networks.classifier))
            settings = {"noised": noised, "smoothing": smoothing, **scoring(params, val)}
            return ClassifierModule(network, optimiser=optimiser, **settings)

        fit_and_save(
            params,
            cell,
            build,
            domains_of(params, train, val, training, corpus, seed),
            training,
            {"network": params.networks.classifier, "kind": kind, "smoothing": smoothing, "schedule": params.schedule},
            folder=MODELS / cell.name,
            part=kind,
        )
    advise_cell(params, corpus, cell, val)


def train_cell(params: Params, method: str, fraction: float, seed: int) -> None:
    """One baseline denoiser or ratio network on a fraction of the target data.

    Raises:
        UserError: no point of the grid, or the fraction leaves too few examples.
    """
    cell = known_cell(method, fraction, seed)
    check_machine(params)
    Corpus.open(params).target(fraction_of(cell), params.data.min_examples)  # refused before seconds of imports
    {**BASELINES, **RATIOS}[method](params, cell)


def _vanilla(params: Params, cell: Cell) -> None:
    from gtl_lightning.networks import MaskedDenoiser, seeded

    corpus = Corpus.open(params)

    def fresh() -> MaskedDenoiser:
        with seeded(cell.seed):
            return MaskedDenoiser(corpus.backbone(params.networks.denoiser))

    size = {"network": params.networks.denoiser}
    _fit_denoiser(params, corpus, cell, fresh, params.methods.vanilla.train, size)


def _finetune(params: Params, cell: Cell) -> None:
    from gtl_lightning.networks import copy_of

    source = load_denoiser("source")
    training = params.methods.finetune.train
    _fit_denoiser(params, Corpus.open(params), cell, partial(copy_of, source), training, {}, SOURCE)


def _lora(params: Params, cell: Cell) -> None:
    from gtl_lightning.modules.lora import add_lora, merge_lora

    own = params.methods.lora

    def adapted() -> nn.Module:
        return add_lora(load_denoiser("source"), rank=own.rank, alpha=own.alpha, seed=cell.seed)

    _fit_denoiser(
        params,
        Corpus.open(params),
        cell,
        adapted,
        own.train,
        {"lora": own.model_dump(exclude={"train"})},
        SOURCE,
        finish=merge_lora,
    )


def _fit_denoiser(
    params: Params,
    corpus: Corpus,
    cell: Cell,
    network: Callable[[], nn.Module],
    training: Training,
    settings: dict[str, Any],
    *inputs: Path,
    finish: Any = None,
) -> None:
    from gtl_lightning.modules.denoiser import DenoiserModule

    train, val = corpus.target(fraction_of(cell), params.data.min_examples)
    fit_and_save(
        params,
        cell,
        lambda optimiser: DenoiserModule(network(), optimiser, **scoring(params, val)),
        texts_of(params, train, val, training, corpus, cell.seed),
        training,
        {"schedule": params.schedule, **settings},
        *inputs,
        folder=MODELS / cell.name,
        finish=finish,
    )


BASELINES: dict[str, Callable[[Params, Cell], None]] = {"vanilla": _vanilla, "finetune": _finetune, "lora": _lora}
