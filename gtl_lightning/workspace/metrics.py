"""Metrics of generated texts, each beside its value on real ones."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gtl_lightning.workspace.corpus import Corpus, open_network
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import NETWORK
from gtl_lightning.workspace.real import JUDGE, RealText

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gtl_lightning.data.dataset import TokenDataset


def sample_metrics(
    params: Params, corpus: Corpus, real: RealText, texts: list[str], sampled: list[Tensor]
) -> dict[str, Any]:
    """MAUVE and the text metrics of generated texts, each beside its value on real ones (`_real`)."""
    from gtl_lightning.evaluation.mauve import mauve_score

    mauve = mauve_score(
        _features(real, tuple(texts)),
        real.test,
        buckets=real.measured.mauve_buckets,
        seeds=range(real.measured.mauve_seeds),
    )
    values: dict[str, Any] = {"mauve": mauve.mean, "mauve_low": mauve.low, "mauve_high": mauve.high}
    values |= text_metrics(params, corpus, texts, sampled, real.exact_domain)
    return values | {f"{name}_real": value for name, value in real.values.items() if not name.startswith("mauve_")}


def text_metrics(
    params: Params, corpus: Corpus, texts: list[str], sampled: list[Tensor], exact_domain: str | None
) -> dict[str, Any]:
    """Domain score, reference perplexity, diversity and, for the generated sample, exact density of any texts."""
    from gtl_lightning.evaluation.diversity import diversity
    from gtl_lightning.evaluation.judge import Judge
    from gtl_lightning.evaluation.reference import reference_perplexity
    from gtl_lightning.networks import CausalLM

    spread = diversity(texts)
    return {
        "domain_score": Judge.load(JUDGE / "judge.safetensors").domain_score(texts),
        "reference_ppl": reference_perplexity(
            open_network(JUDGE / NETWORK, expect=CausalLM),
            sampled,
            pad_index=corpus.pad_index,
            batch=params.evaluation.batch,
        ),
        "distinct_1": spread.distinct_1,
        "distinct_2": spread.distinct_2,
        "distinct_3": spread.distinct_3,
        **_exact(texts, exact_domain),
    }


def _exact(texts: list[str], domain: str | None) -> dict[str, float | None]:
    """Exact nats per word under the sample's own target law, and the share of texts that this law can produce."""
    if domain is None:
        return {"exact_nll": None, "exact_known": None}
    from gtl_lightning.data.sample import exact_nll

    exact = exact_nll(texts, domain)
    return {"exact_nll": exact.mean_per_word if exact.known.any() else None, "exact_known": float(exact.known.mean())}


def memorisation_metrics(
    corpus: Corpus, real: RealText, sampled: list[Tensor], texts: list[str], train: TokenDataset | None
) -> dict[str, Any]:
    """Longest copied span and nearest neighbour in the target subset that was trained on; real test text beside it."""
    names = ("longest_copy", "longest_copy_real", "nearest_train", "nearest_train_real")
    if train is None:
        return dict.fromkeys(names)
    from gtl_lightning.evaluation.memorisation import memorisation

    rows = list(train)
    seen = real.train[: len(rows)]
    held_out = list(corpus.dataset("target_test").subset(real.samples))
    own = memorisation(sampled, rows, sample_features=_features(real, tuple(texts)), training_features=seen)
    same = memorisation(held_out, rows, sample_features=real.test, training_features=seen)
    values = (own.spans.mean(), same.spans.mean(), own.cosines.mean(), same.cosines.mean())
    return {name: float(value) for name, value in zip(names, values, strict=True)}


@lru_cache(maxsize=1)
def _features(real: RealText, texts: tuple[str, ...]) -> np.ndarray:
    """Float[n,d] of generated texts; one pass serves MAUVE and the nearest neighbours."""
    return real.featurizer(texts)
