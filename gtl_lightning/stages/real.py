"""What real target text measures: features and metric values that every cell is compared with; a stage of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gtl_lightning.config import Params
from gtl_lightning.errors import UserError
from gtl_lightning.files import load_tensors, save_tensors, sha256_file, write_json
from gtl_lightning.records import Shape, read_record
from gtl_lightning.stages.common import DATA, MODELS, REAL, REAL_TEXTS, REAL_VALUES, TOKENS, log
from gtl_lightning.stages.corpus import Corpus
from gtl_lightning.stages.provenance import made_with
from gtl_lightning.stages.text import decode_all

if TYPE_CHECKING:
    import numpy as np

    from gtl_lightning.evaluation.features import Featurizer

FEATURES = REAL / "features.safetensors"
SHAPE: Shape = {"measured": dict, "exact_domain": (str, type(None)), "values": dict}
JUDGE = MODELS / "judge"
SHOWN_TEXTS = 32
"""Real and generated texts kept for people to read, in the report and in MLflow."""


@dataclass(frozen=True)
class Measured:
    """How real text was measured: a cell that is measured otherwise cannot be compared with it.

    Attributes:
        featurizer: name and fingerprint of its weights.
        samples: real texts a side; a cell generates as many.
        neighbours: training texts whose features are kept, at most.
        mauve_buckets, mauve_seeds: of MAUVE.
        tokens: hash of the tokens that the texts are read from.
    """

    featurizer: str
    samples: int
    neighbours: int
    mauve_buckets: int
    mauve_seeds: int
    tokens: str


@dataclass(frozen=True, eq=False)
class RealText:
    """Real target text, measured.

    Attributes:
        featurizer: that the features are of.
        measured: how.
        exact_domain: the sample's domain whose exact density scores generated texts; None for other data.
        values: metric -> value of real text.
        test: Float[samples,d], features of test texts, the side that samples are compared with.
        train: Float[n,d], features of the first training texts.
    """

    featurizer: Featurizer
    measured: Measured
    exact_domain: str | None
    values: dict[str, float | None]
    test: np.ndarray
    train: np.ndarray

    @property
    def samples(self) -> int:
        """Texts a side."""
        return self.measured.samples

    @classmethod
    def open(cls, params: Params, corpus: Corpus) -> RealText:
        """What the stage real-text left, if it was measured as `params` ask for; read before anything is sampled.

        Raises:
            UserError: missing, damaged, or measured otherwise; the line names what differs.
        """
        from gtl_lightning.evaluation.features import load_featurizer

        stored, (features, header) = read_record(REAL_VALUES, SHAPE), load_tensors(FEATURES)
        featurizer = load_featurizer(params.evaluation.featurizer)
        wanted = how(params, corpus, featurizer)
        for key, value in asdict(wanted).items():
            for place, found in ((REAL_VALUES, stored["measured"]), (FEATURES, header)):
                if found.get(key) != value:
                    raise UserError(
                        f"{place} was measured with {key} = {found.get(key)}, and {value} is asked for; measure real "
                        "text anew: `dvc repro real-text` (or `gtl real`)"
                    )
        return cls(
            featurizer,
            wanted,
            stored["exact_domain"],
            stored["values"],
            test=features["real"].numpy(),
            train=features["train"].numpy(),
        )


def how(params: Params, corpus: Corpus, featurizer: Featurizer) -> Measured:
    """How `params` ask for real text to be measured; where test texts are few, with as many a side as there are."""
    settings = params.evaluation
    return Measured(
        featurizer=featurizer.fingerprint,
        samples=comparable(params, corpus),
        neighbours=settings.neighbours,
        mauve_buckets=settings.mauve_buckets,
        mauve_seeds=settings.mauve_seeds,
        tokens=sha256_file(TOKENS / "meta.json")[:12],
    )


def comparable(params: Params, corpus: Corpus) -> int:
    """Texts a side: evaluation.samples, or half of the target test texts where these are fewer than twice as many."""
    return min(params.evaluation.samples, corpus.sizes["target_test"] // 2)


def measure_real(params: Params) -> None:
    """Features and metric values of real target text, as good a sample as any model could draw: real/.

    Raises:
        UserError: the judge is missing, or the featurizer cannot be loaded.
    """
    import torch

    from gtl_lightning.evaluation.features import load_featurizer
    from gtl_lightning.evaluation.mauve import mauve_score
    from gtl_lightning.stages.metrics import text_metrics

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
    target = params.data.target
    return target[0] if read_record(DATA / "provenance.json").get("generated") and len(target) == 1 else None
