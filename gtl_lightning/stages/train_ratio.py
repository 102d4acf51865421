"""Training of the ratio networks of a cell: token-level in three parameterisations, sequence-level by three losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from gtl_lightning.config import Params
from gtl_lightning.sections import Training
from gtl_lightning.settings import TokenRatio
from gtl_lightning.stages.borrow import clean_classifier, with_borrowed
from gtl_lightning.stages.common import MODELS, SOURCE, Cell, Corpus, fraction_of, load_denoiser
from gtl_lightning.stages.fitting import (
    domains_of,
    fit_and_save,
    fit_best,
    save_trained,
    scoring,
    texts_of,
)

if TYPE_CHECKING:
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.networks import MaskedDenoiser, TokenLevel
    from gtl_lightning.stages.fitting import Trained


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
    train, val = corpus.target(fraction_of(cell), params.data.min_examples)
    inputs = [SOURCE]
    if ratio.borrowed:
        train = with_borrowed(params, corpus, cell, train, ratio.borrowed)
        inputs.append(clean_classifier(cell))
    # Without eq. 9 source examples teach nothing: a batch is then target examples alone, as a baseline's is.
    data = domains_of if ratio.bce_weight > 0 else texts_of
    members: list[Trained] = []
    for member in range(ratio.members):
        seed = cell.seed + 1000 * member

        def build(optimiser: OptimiserConfig, seed: int = seed) -> TrainedModule:
            with seeded(seed):
                network = make(source)
            weights = ratio.model_dump(exclude={"members", "borrowed"})
            return TokenRatioModule(network, source, optimiser=optimiser, **weights, **scoring(params, val))

        # The first member tells the learning rate; the others take it.
        lrs = {"lr": members[0].lr, "also_lr": ()} if members else {}
        trained = fit_best(
            params,
            cell,
            build,
            data(params, train, val, training, corpus, seed),
            training.model_copy(update=lrs),
            {**shape, "ratio": ratio, "schedule": params.schedule, "member": member},
            tuple(inputs),
            part=f"member-{member}",
            seed=seed,
        )
        members.append(trained)
    networks = [member.network for member in members]
    save_trained(MODELS / cell.name, networks[0] if len(networks) == 1 else RatioEnsemble(networks), members)


def _sequence_ratio(params: Params, cell: Cell, loss: str) -> None:
    """The sequence-level ratio by eq. 7a, 7b or 7c, with the cycle loss, eq. 8 (docs/method.md 2.1)."""
    from gtl_lightning.modules.ratio import SequenceRatioModule
    from gtl_lightning.networks import SequenceRatioNetwork, load_network, seeded

    corpus, training, ratio = Corpus.open(params), params.train.ratio, params.ratio
    train_set, val = corpus.target(fraction_of(cell), params.data.min_examples)
    classifiers = clean_classifier(cell).parent
    clean, noised = (load_network(classifiers / f"{kind}.safetensors") for kind in ("clean", "noised"))

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        with seeded(cell.seed):
            network = SequenceRatioNetwork(corpus.backbone(params.networks.ratio))
        return SequenceRatioModule(
            network,
            clean,
            noised,
            loss=loss,
            eta_1=ratio.eta_1,
            clip=ratio.clip,
            smoothing=ratio.undone_smoothing,
            optimiser=optimiser,
            **scoring(params, val),
        )

    fit_and_save(
        params,
        cell,
        build,
        domains_of(params, train_set, val, training, corpus, cell.seed),
        training,
        {"network": params.networks.ratio, "ratio": ratio, "schedule": params.schedule},
        classifiers / "clean.safetensors",
        classifiers / "noised.safetensors",
        folder=MODELS / cell.name,
    )


RATIOS: dict[str, Callable[[Params, Cell], None]] = {
    "gtl": _gtl,
    "gtl-head": _gtl_head,
    "gtl-warm": _gtl_warm,
    "gtl-sequence-gkl": partial(_sequence_ratio, loss="gkl"),
    "gtl-sequence-bce": partial(_sequence_ratio, loss="bce"),
    "gtl-sequence-log-mse": partial(_sequence_ratio, loss="log_mse"),
}
