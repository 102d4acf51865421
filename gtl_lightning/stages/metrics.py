"""Metrics of generated texts, each beside its value on real ones, and what of the real texts they need."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gtl_lightning.config import Params
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json, write_json
from gtl_lightning.stages.common import DATA, MODELS, NETWORK
from gtl_lightning.stages.corpus import Corpus
from gtl_lightning.stages.text import decode_all

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gtl_lightning.data.dataset import TokenDataset

JUDGE = MODELS / "judge"
SHOWN_TEXTS = 32
"""Real and generated texts kept for people to read, in the report and in MLflow."""


def measure_real(params: Params) -> None:
    """Features and metric values of real target text: what every cell is compared with. Part of the judge's stage."""
    import torch

    from gtl_lightning.evaluation.features import load_featurizer
    from gtl_lightning.evaluation.mauve import mauve_score
    from gtl_lightning.files import save_tensors

    corpus, wanted = Corpus.open(params), params.evaluation.samples
    test, train = corpus.dataset("target_test"), corpus.dataset("target_train")
    if len(test) < 2 * wanted:
        raise UserError(
            f"evaluation.samples = {wanted} needs {2 * wanted} target test texts, there are {len(test)}; lower it, or "
            "raise data.target_test"
        )
    featurizer = load_featurizer(params.evaluation.featurizer)
    neighbours = train.subset(min(len(train), params.evaluation.neighbours))
    real, other = test.subset(wanted), test.tail(wanted).subset(wanted)
    features = {
        name: featurizer(decode_all(split)) for name, split in (("real", real), ("other", other), ("train", neighbours))
    }
    mauve = mauve_score(
        features["other"], features["real"], buckets=params.evaluation.mauve_buckets, seeds=_mauve_seeds(params)
    )
    values = {"mauve": mauve.mean, "mauve_low": mauve.low, "mauve_high": mauve.high}
    texts = decode_all(other)
    values |= _text_metrics(params, corpus, texts, list(other))
    save_tensors(
        JUDGE / "features.safetensors",
        {name: torch.from_numpy(value) for name, value in features.items()},
        {"featurizer": params.evaluation.featurizer},
    )
    write_json(JUDGE / "real.json", values)
    write_json(JUDGE / "real_texts.json", decode_all(real)[:SHOWN_TEXTS])


def sample_metrics(params: Params, corpus: Corpus, texts: list[str], sampled: list[Tensor]) -> dict[str, Any]:
    """MAUVE and the text metrics of generated texts, each beside its value on real ones (`_real`)."""
    from gtl_lightning.evaluation.mauve import mauve_score

    mauve = mauve_score(
        _features(params.evaluation.featurizer, tuple(texts)),
        _real_features("real"),
        buckets=params.evaluation.mauve_buckets,
        seeds=_mauve_seeds(params),
    )
    real = read_json(JUDGE / "real.json")
    values: dict[str, Any] = {"mauve": mauve.mean, "mauve_low": mauve.low, "mauve_high": mauve.high}
    values |= _text_metrics(params, corpus, texts, sampled)
    return values | {f"{name}_real": value for name, value in real.items() if not name.startswith("mauve_")}


def _text_metrics(params: Params, corpus: Corpus, texts: list[str], sampled: list[Tensor]) -> dict[str, Any]:
    from gtl_lightning.evaluation.diversity import diversity
    from gtl_lightning.evaluation.judge import Judge
    from gtl_lightning.evaluation.reference import reference_perplexity
    from gtl_lightning.networks import CausalLM, load_network

    spread = diversity(texts)
    return {
        "domain_score": Judge.load(JUDGE / "judge.safetensors").score(texts),
        "reference_ppl": reference_perplexity(
            load_network(JUDGE / NETWORK, expect=CausalLM),
            sampled,
            pad_index=corpus.pad_index,
            batch=params.evaluation.batch,
        ),
        "distinct_1": spread.distinct_1,
        "distinct_2": spread.distinct_2,
        "distinct_3": spread.distinct_3,
        **_exact(texts, params.data.target),
    }


def _exact(texts: list[str], target: tuple[str, ...]) -> dict[str, float | None]:
    """Exact nats per word under the sample's own target law, and the share of texts that this law can produce."""
    if not read_json(DATA / "provenance.json").get("generated") or len(target) != 1:
        return {"exact_nll": None, "exact_known": None}
    from gtl_lightning.data.sample import exact_nll

    exact = exact_nll(texts, target[0])
    nll = float(exact.nats[exact.known].sum() / exact.words[exact.known].sum()) if exact.known.any() else None
    return {"exact_nll": nll, "exact_known": float(exact.known.mean())}


def memorisation_metrics(
    params: Params, sampled: list[Tensor], texts: list[str], train: TokenDataset | None
) -> dict[str, Any]:
    """Longest copied span and nearest neighbour in the target subset that was trained on; real test text beside it."""
    names = ("longest_copy", "longest_copy_real", "nearest_train", "nearest_train_real")
    if train is None:
        return dict.fromkeys(names)
    from gtl_lightning.evaluation.memorisation import memorisation

    corpus = Corpus.open(params)
    rows = list(train)
    seen = _real_features("train")[: len(rows)]
    held_out = list(corpus.dataset("target_test").subset(params.evaluation.samples))
    own = memorisation(
        sampled,
        rows,
        sample_features=_features(params.evaluation.featurizer, tuple(texts)),
        training_features=seen,
    )
    real = memorisation(held_out, rows, sample_features=_real_features("real"), training_features=seen)
    values = (own.spans.mean(), real.spans.mean(), own.cosines.mean(), real.cosines.mean())
    return {name: float(value) for name, value in zip(names, values, strict=True)}


@lru_cache(maxsize=1)
def _features(featurizer: str, texts: tuple[str, ...]) -> np.ndarray:
    """Float[n,d] of generated texts; one pass serves MAUVE and the nearest neighbours."""
    from gtl_lightning.evaluation.features import load_featurizer

    return load_featurizer(featurizer)(texts)


def _real_features(name: str) -> np.ndarray:
    from gtl_lightning.files import load_tensors

    return load_tensors(JUDGE / "features.safetensors")[0][name].numpy()


def _mauve_seeds(params: Params) -> range:
    return range(params.evaluation.mauve_seeds)
