"""Training of the ratio networks of a cell: token-level in three parameterisations, sequence-level by three losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from gtl_lightning.config import Params
from gtl_lightning.settings import TokenRatio
from gtl_lightning.stages.borrow import clean_classifier, undone_smoothing, with_borrowed
from gtl_lightning.stages.common import MODELS, SOURCE, Cell, fraction_of
from gtl_lightning.stages.corpus import Corpus, load_denoiser
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

    own = params.methods.gtl
    backbone = Corpus.open(params).backbone(own.network)
    _token_ratio(params, cell, own, lambda _: TokenRatioNetwork(backbone))


def _gtl_head(params: Params, cell: Cell) -> None:
    """A head on the frozen denoiser's features."""
    from gtl_lightning.networks import FeatureTokenRatio

    own = params.methods.gtl_head
    _token_ratio(params, cell, own, partial(FeatureTokenRatio, rank=own.rank))


def _gtl_warm(params: Params, cell: Cell) -> None:
    """A copy of the denoiser against the frozen one."""
    from gtl_lightning.networks import DifferenceTokenRatio

    own = params.methods.gtl_warm
    _token_ratio(params, cell, own, partial(DifferenceTokenRatio, dropout=own.dropout))


def _token_ratio(params: Params, cell: Cell, ratio: TokenRatio, make: Callable[[MaskedDenoiser], TokenLevel]) -> None:
    """A token-level ratio by eqs. 9 and 9', one or more members (docs/method.md 2.2)."""
    from gtl_lightning.modules.ratio import TokenRatioModule
    from gtl_lightning.networks import RatioEnsemble, seeded

    corpus = Corpus.open(params)
    source = load_denoiser("source")
    train, val = corpus.target(fraction_of(cell), params.data.min_examples)
    inputs = [SOURCE]
    if ratio.borrowed:
        train = with_borrowed(params, corpus, cell, train, ratio.borrowed, ratio.clip)
        inputs.append(clean_classifier(cell))
    # Without eq. 9 source examples teach nothing: a batch is then target examples alone, as a baseline's is.
    data = domains_of if ratio.bce_weight > 0 else texts_of
    weights = ratio.model_dump(include={"bce_weight", "nll_weight", "martingale_weight"})
    members: list[Trained] = []
    for member in range(ratio.members):
        seed = cell.seed + 1000 * member

        def build(optimiser: OptimiserConfig, seed: int = seed) -> TrainedModule:
            with seeded(seed):
                network = make(source)
            return TokenRatioModule(network, source, optimiser=optimiser, **weights, **scoring(params, val))

        # The first member tells the learning rate; the others take it.
        lrs = {"lr": members[0].lr, "also_lr": ()} if members else {}
        trained = fit_best(
            params,
            cell,
            build,
            data(params, train, val, ratio.train, corpus, seed),
            ratio.train.model_copy(update=lrs),
            {"ratio": ratio.model_dump(exclude={"train"}), "schedule": params.schedule, "member": member},
            tuple(inputs),
            part=f"member-{member}",
            seed=seed,
        )
        members.append(trained)
    networks = [member.network for member in members]
    save_trained(MODELS / cell.name, networks[0] if len(networks) == 1 else RatioEnsemble(networks), members)


def _sequence_ratio(params: Params, cell: Cell, loss: Literal["gkl", "bce", "log_mse"]) -> None:
    """The sequence-level ratio by eq. 7a, 7b or 7c, with the cycle loss, eq. 8 (docs/method.md 2.1)."""
    from gtl_lightning.modules.ratio import SequenceRatioModule
    from gtl_lightning.networks import SequenceRatioNetwork, load_network, seeded

    methods = params.methods
    own = {"gkl": methods.gtl_sequence_gkl, "bce": methods.gtl_sequence_bce, "log_mse": methods.gtl_sequence_log_mse}
    corpus, ratio, smoothing = Corpus.open(params), own[loss], undone_smoothing(params)
    train_set, val = corpus.target(fraction_of(cell), params.data.min_examples)
    classifiers = clean_classifier(cell).parent
    clean, noised = (load_network(classifiers / f"{kind}.safetensors") for kind in ("clean", "noised"))

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        with seeded(cell.seed):
            network = SequenceRatioNetwork(corpus.backbone(ratio.network))
        return SequenceRatioModule(
            network,
            clean,
            noised,
            loss=loss,
            eta_1=ratio.eta_1,
            clip=ratio.clip,
            smoothing=smoothing,
            optimiser=optimiser,
            **scoring(params, val),
        )

    fit_and_save(
        params,
        cell,
        build,
        domains_of(params, train_set, val, ratio.train, corpus, cell.seed),
        ratio.train,
        {"ratio": ratio.model_dump(exclude={"train"}), "smoothing": smoothing, "schedule": params.schedule},
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
