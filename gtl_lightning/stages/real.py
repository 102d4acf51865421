"""`gtl real`: real target text is measured, as every cell is measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from gtl_lightning.data.origin import TARGET, domains, read_provenance
from gtl_lightning.evaluation.features import load_featurizer
from gtl_lightning.evaluation.mauve import mauve_score
from gtl_lightning.files import save_tensors, write_json
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.metrics import text_metrics
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import DATA, REAL_TEXTS, REAL_VALUES, log
from gtl_lightning.workspace.provenance import made_with
from gtl_lightning.workspace.real import FEATURES, SHOWN_TEXTS, how
from gtl_lightning.workspace.text import decode_all


def measure_real(params: Params) -> None:
    """Features and metric values of real target text, as good a sample as any model could draw: real/.

    Raises:
        UserError: the judge is missing, or the featurizer cannot be loaded.
    """
    corpus = Corpus.open(params)
    featurizer = load_featurizer(params.evaluation.featurizer)
    measured = how(params, corpus, featurizer)
    if measured.samples < params.evaluation.samples:
        log.warning(
            "evaluation.samples = %d, and there are %d target test texts: every comparison is of %d texts a side",
            *(params.evaluation.samples, corpus.sizes["target_test"], measured.samples),
        )
    test, train = corpus.dataset("target_test"), corpus.dataset("target_train")
    neighbours = train.subset(min(len(train), measured.neighbours))
    real, other = test.subset(measured.samples), test.tail(measured.samples).subset(measured.samples)
    features = {
        name: featurizer(decode_all(split)) for name, split in (("real", real), ("other", other), ("train", neighbours))
    }
    mauve = mauve_score(
        features["other"], features["real"], buckets=measured.mauve_buckets, seeds=range(measured.mauve_seeds)
    )
    exact_domain = _exact_domain(params)
    values: dict[str, Any] = {"mauve": mauve.mean, "mauve_low": mauve.low, "mauve_high": mauve.high}
    texts = decode_all(other)
    values |= text_metrics(params, corpus, texts, list(other), exact_domain)
    save_tensors(FEATURES, {name: torch.from_numpy(value) for name, value in features.items()}, asdict(measured))
    write_json(REAL_TEXTS, decode_all(real)[:SHOWN_TEXTS])
    write_json(
        REAL_VALUES,
        {
            "measured": asdict(measured),
            "exact_domain": exact_domain,
            "values": values,
            "made_with": made_with("cpu", "32-true"),
        },
    )
    log.info("real text: MAUVE %.3f of %d texts a side", mauve.mean, measured.samples)


def _exact_domain(params: Params) -> str | None:
    _, target = domains(DATA, params.data.source, params.data.target)
    known = read_provenance(DATA).get("generated") and len(target) == 1 and target[0] != TARGET
    return target[0] if known else None
