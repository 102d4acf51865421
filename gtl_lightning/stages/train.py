"""Training stages: each builds a network, its module and its data, and fits it into models/NAME."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.config import Params, TokenRatio, Training
from gtl_lightning.stages.advisor import advise_cell
from gtl_lightning.stages.common import (
    MODELS,
    NETWORK,
    Cell,
    Corpus,
    load_denoiser,
    log,
    trainable_parameters,
)
from gtl_lightning.stages.evaluate import measure_real
from gtl_lightning.stages.fitting import (
    domains_of,
    fit_and_save,
    fit_network,
    optimiser,
    save_trained,
    scoring,
    texts_of,
)
from gtl_lightning.stages.text import decode_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from gtl_lightning.networks import MaskedDenoiser, TokenLevel


SOURCE = MODELS / "source" / NETWORK


def train_source(params: Params) -> None:
    """The denoiser of the source domain, frozen by everything that follows (docs/method.md eq. 1)."""
    from gtl_lightning.modules.denoiser import DenoiserModule
    from gtl_lightning.networks import MaskedDenoiser, seeded

    corpus = Corpus.open(params)
    with seeded(params.data.seed):
        network = MaskedDenoiser(corpus.backbone(params.networks.denoiser))
    module = DenoiserModule(network, optimiser(params.train.source), **scoring(params))
    fit_and_save(
        params,
        Cell("source", None, params.data.seed),
        module,
        texts_of(params, corpus.dataset("source_train"), corpus.dataset("source_val"), params.train.source, corpus, 0),
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
    module = PlannerModule(network, load_denoiser("source"), optimiser(params.train.planner), **scoring(params))
    fit_and_save(
        params,
        Cell("planner", None, params.data.seed),
        module,
        texts_of(params, corpus.dataset("source_train"), corpus.dataset("source_val"), params.train.planner, corpus, 0),
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
    fit_and_save(
        params,
        Cell("judge", None, params.data.seed),
        CausalLMModule(network, optimiser(params.train.reference)),
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
            network, noised=noised, smoothing=smoothing, optimiser=optimiser(training), **scoring(params)
        )
        fit_and_save(
            params,
            cell,
            module,
            domains_of(params, train, val, training, corpus, seed),
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
    fit_and_save(
        params,
        cell,
        DenoiserModule(network, optimiser(training), **scoring(params)),
        texts_of(params, train, val, training, corpus, cell.seed),
        training,
        {"network": params.networks.denoiser, "schedule": params.schedule, **settings},
        *inputs,
        folder=MODELS / cell.name,
        finish=finish,
    )


def _gtl(params: Params, cell: Cell) -> None:
    """Small, with an encoder of its own."""
    from gtl_lightning.networks import TokenRatioNetwork

    backbone = Corpus.open(params).backbone(params.networks.ratio)
    shape = {"network": params.networks.ratio}
    _token_ratio(params, cell, params.ratio.token, params.train.ratio, shape, lambda _: TokenRatioNetwork(backbone))


def _gtl_head(params: Params, cell: Cell) -> None:
    """A head on the frozen denoiser's features."""
    from gtl_lightning.networks import FeatureTokenRatio

    rank = params.ratio.head_rank
    make = partial(FeatureTokenRatio, rank=rank)
    _token_ratio(params, cell, params.ratio.head, params.train.head, {"rank": rank}, make)


def _gtl_warm(params: Params, cell: Cell) -> None:
    """A copy of the denoiser against the frozen one."""
    from gtl_lightning.networks import DifferenceTokenRatio

    dropout = params.ratio.warm_dropout
    make = partial(DifferenceTokenRatio, dropout=dropout)
    _token_ratio(params, cell, params.ratio.warm, params.train.warm, {"dropout": dropout}, make)


def _token_ratio(
    params: Params,
    cell: Cell,
    ratio: TokenRatio,
    training: Training,
    shape: dict[str, Any],
    make: Callable[[MaskedDenoiser], TokenLevel],
) -> None:
    """A token-level ratio by eqs. 9 and 9', one or more members (docs/method.md 2.2)."""
    from gtl_lightning.modules.ratio import TokenRatioModule
    from gtl_lightning.networks import RatioEnsemble, seeded

    corpus = Corpus.open(params)
    source = load_denoiser("source")
    train, val = corpus.target(_fraction(cell), params.data.min_examples)
    # Without eq. 9 source examples teach nothing: a batch is then target examples alone, as a baseline's is.
    data = domains_of if ratio.bce_weight > 0 else texts_of
    members = []
    for member in range(ratio.members):
        seed = cell.seed + 1000 * member
        with seeded(seed):
            network = make(source)
        module = TokenRatioModule(
            network,
            source,
            bce_weight=ratio.bce_weight,
            nll_weight=ratio.nll_weight,
            martingale_weight=ratio.martingale_weight,
            optimiser=optimiser(training),
            **scoring(params),
        )
        result = fit_network(
            params,
            cell,
            module,
            data(params, train, val, training, corpus, seed),
            training,
            {**shape, "ratio": ratio, "schedule": params.schedule, "member": member},
            (SOURCE,),
            part=f"member-{member}",
            seed=seed,
        )
        members.append((module.network, result))
    networks = [network for network, _ in members]
    save_trained(
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
            optimiser=optimiser(training),
            **scoring(params),
        )
        fit_and_save(
            params,
            cell,
            module,
            domains_of(params, train_set, val, training, corpus, cell.seed),
            training,
            {"network": params.networks.ratio, "ratio": ratio, "schedule": params.schedule},
            classifiers / "clean.safetensors",
            classifiers / "noised.safetensors",
            folder=MODELS / cell.name,
        )

    return train


_BUILDERS: dict[str, Any] = {
    "vanilla": _vanilla,
    "finetune": _finetune,
    "lora": _lora,
    "gtl": _gtl,
    "gtl-head": _gtl_head,
    "gtl-warm": _gtl_warm,
    "gtl-sequence-gkl": _sequence_ratio("gkl"),
    "gtl-sequence-bce": _sequence_ratio("bce"),
    "gtl-sequence-log-mse": _sequence_ratio("log_mse"),
}


def _fraction(cell: Cell) -> float:
    assert cell.fraction is not None
    return cell.fraction
