"""Training stages: each builds a network, its module and its data, and fits it into models/NAME."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from gtl_lightning.core.protocols import Source
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.data.tokenizer import fast_tokenizer
from gtl_lightning.evaluation.judge import fit_judge
from gtl_lightning.fields import Training
from gtl_lightning.files import digest, write_json
from gtl_lightning.methods import METHODS
from gtl_lightning.methods.fitting import Attempt, Trained, averaged, fit_recipe
from gtl_lightning.methods.method import Context, Role
from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
from gtl_lightning.modules.causal import CausalLMModule
from gtl_lightning.modules.classifier import ClassifierModule
from gtl_lightning.modules.fit import FitResult
from gtl_lightning.modules.planner import PlannerModule
from gtl_lightning.networks import (
    CausalLM,
    PositionNetwork,
    SequenceRatioNetwork,
    seeded,
)
from gtl_lightning.networks.adapters.origin import Origin
from gtl_lightning.sources import SOURCES
from gtl_lightning.sources.kind import Context as SourceContext
from gtl_lightning.workspace.advice import advise_cell
from gtl_lightning.workspace.corpus import Corpus, check_machine, device_of, load_denoiser, open_network
from gtl_lightning.workspace.fitting import domains_of, fit_and_save, fit_best, save_trained, scoring, texts_of
from gtl_lightning.workspace.frozen import OF_OTHERS, frozen_path
from gtl_lightning.workspace.options import checked_cell
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import (
    CAUSAL,
    MODELS,
    RESULT,
    SOURCE,
    TOKENS,
    Cell,
    fraction_of,
    log,
    note_run,
    study,
)
from gtl_lightning.workspace.progress import progress_bar
from gtl_lightning.workspace.provenance import made_with
from gtl_lightning.workspace.text import decode_all


def train_source(params: Params) -> None:
    """The denoiser of the source domain, frozen by everything that follows, as its kind says (sources/)."""
    check_machine(params)
    corpus, read = Corpus.open(params), set[Path]()
    kind, own = SOURCES[params.source.kind], params.source.own

    def causal() -> CausalLM:
        read.add(CAUSAL)
        return cast(CausalLM, open_network(CAUSAL, expect=CausalLM))

    context = SourceContext(
        corpus.backbone(params.networks.denoiser),
        causal,
        scoring(params, corpus.dataset("source_val")),
        params.train.source.steps,
        lambda: fast_tokenizer(TOKENS / "tokenizer"),
    )
    build = kind.recipe(context, own)
    if not kind.trains:
        _take(params, corpus, build(OptimiserConfig()), kind.origin(own))
        return
    settings = {"network": params.networks.denoiser, "schedule": params.schedule, "kind": kind.name, "own": own}
    _fit_on_source(params, corpus, "source", build, params.train.source, settings, read)


def _take(params: Params, corpus: Corpus, module: TrainedModule, origin: Origin | None) -> None:
    """What others trained, as models/source: its NELBO on held-out source text stands where a training's would."""
    kind = params.source.kind
    module.to(device_of(params))
    data = texts_of(
        params, corpus.dataset("source_train"), corpus.dataset("source_val"), params.train.source, corpus, 0
    )
    start, made = time.monotonic(), made_with(device_of(params).type, "32-true")
    tags = {"method": "source", "fraction": None, "seed": params.data.seed, "part": "network", "made_with": made}
    key = digest({**params.source.model_dump(mode="json"), "made_with": made})
    with study(params).child(
        "train", "train source network", key, tags, f"source: {kind}, which is not trained"
    ) as run:
        run.log_params(params.source.model_dump(mode="json"))
        score = module.score(data.val_dataloader())
        run.log_metrics({"best_score": score})
    seconds = time.monotonic() - start
    result = FitResult(best_score=score, best_step=0, steps=0, seconds=seconds, history=[])
    network = module.network.cpu()
    trained = Trained.once(module, data, result, 0.0, made, "network", "network")
    kept = replace(trained, parameters=0, kept_bytes=0)
    save_trained(SOURCE.parent, network, [kept], found={OF_OTHERS: asdict(origin)} if origin else None)
    log.info("source: %s, NELBO %.4f nats a token of held-out source text; nothing is trained", kind, score)


def train_causal(params: Params) -> None:
    """The causal model of the source domain, of the source denoiser's size: what some kinds of source start from.

    Where `source.kind` reads none, nothing is trained, and models/causal says so.
    """
    kind = SOURCES[params.source.kind]
    if not kind.reads_causal:
        write_json(CAUSAL.parent / RESULT, {"untrained": f"source.kind = {kind.name} reads no causal model"})
        note_run(CAUSAL.parent / RESULT, {"seconds": 0.0})
        return
    check_machine(params)
    corpus, size = Corpus.open(params), params.networks.denoiser
    options = kind.causal_options(params.source.own)

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        return CausalLMModule(CausalLM(corpus.backbone(size)), optimiser, **options)

    settings = {"network": size, "options": sorted(options)}
    _fit_on_source(params, corpus, "causal", build, params.train.causal, settings)


def train_planner(params: Params) -> None:
    """The learned reveal order, on source text (docs/method.md 2.3)."""
    check_machine(params)
    corpus, size = Corpus.open(params), params.networks.planner
    denoiser, scored = load_denoiser("source"), scoring(params, corpus.dataset("source_val"))

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        return PlannerModule(PositionNetwork(corpus.backbone(size)), denoiser=denoiser, optimiser=optimiser, **scored)

    settings = {"network": size, "schedule": params.schedule}
    _fit_on_source(params, corpus, "planner", build, params.train.planner, settings, {SOURCE})


def _fit_on_source(
    params: Params,
    corpus: Corpus,
    name: str,
    build: Callable[[OptimiserConfig], TrainedModule],
    training: Training,
    settings: dict[str, Any],
    inputs: Collection[Path] = (),
) -> None:
    """What all cells share, trained once on the source split into models/NAME."""
    train, val = corpus.dataset("source_train"), corpus.dataset("source_val")

    def built(optimiser: OptimiserConfig) -> TrainedModule:
        with seeded(params.data.seed):
            return build(optimiser)

    fit_and_save(
        params,
        Cell(name, None, params.data.seed),
        built,
        texts_of(params, train, val, training, corpus, 0),
        training,
        settings,
        *inputs,
        folder=MODELS / name,
    )


def train_judge(params: Params) -> None:
    """The domain judge and the reference model, on text kept apart for them alone."""
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
    """One method on a fraction of the target data, as its recipe says (methods/).

    Raises:
        UserError: no point of the grid, or the fraction leaves too few examples.
    """
    cell = checked_cell(method, fraction, seed)
    check_machine(params)
    corpus = Corpus.open(params)
    train, val = corpus.target(fraction_of(cell), params.data.min_examples)  # refused before seconds of imports
    own, read, said = params.methods.of(method), set[Path](), dict[str, Any]()
    begun = time.process_time()
    recipe = METHODS[method].recipe(context_of(params, corpus, cell, train, val, read, said), own)
    prepared = time.process_time() - begun
    data = domains_of if recipe.both_domains else texts_of
    settings = {
        "method": own.model_dump(exclude={"train"}),
        "schedule": params.schedule,
        **said,
        **recipe.depends,
        **recipe.found,
    }

    def fit_one(attempt: Attempt, build: Callable[[OptimiserConfig], TrainedModule]) -> Trained:
        return fit_best(
            params,
            cell,
            build,
            data(params, recipe.target, val, own.train, corpus, attempt.seed),
            attempt.training,
            {**settings, "variant": attempt.variant, "member": attempt.member},
            read,
            part=attempt.part,
            seed=attempt.seed,
        )

    members = fit_recipe(recipe, own.train, seed, fit_one)
    network = averaged([member.network for member in members])
    save_trained(MODELS / cell.name, network, members, read=read, found=recipe.found, prepared=prepared)


def context_of(
    params: Params,
    corpus: Corpus,
    cell: Cell,
    train: TokenDataset,
    val: TokenDataset,
    read: set[Path],
    said: dict[str, Any],
) -> Context:
    """What a method's recipe may know; every file that it opens is noted in `read`, what it asks for in `said`."""

    def frozen(role: Role) -> Source | nn.Module:
        path = frozen_path(role, cell)
        read.add(path)
        return open_network(path) if role in ("clean", "noised") else load_denoiser(path.parent.name)

    def smoothing() -> float:
        said["smoothing"] = params.classifier.label_smoothing if params.classifier.unsmooth else 0.0
        return float(said["smoothing"])

    return Context(
        seed=cell.seed,
        target=train,
        source=lambda: corpus.dataset("source_train"),
        backbone=corpus.backbone,
        denoiser=params.networks.denoiser,
        frozen=frozen,
        scoring=scoring(params, val),
        smoothing=smoothing,
        device=device_of(params),
        progress=progress_bar,
    )
