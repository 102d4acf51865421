"""What real target text measures: features and metric values that every cell is compared with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gtl_lightning.errors import UserError
from gtl_lightning.files import load_tensors, sha256_file
from gtl_lightning.records import COUNT, NUMBER, Shape, Values, read_record
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import MODELS, REAL, REAL_VALUES, TOKENS

if TYPE_CHECKING:
    import numpy as np

    from gtl_lightning.evaluation.features import Featurizer

FEATURES = REAL / "features.safetensors"
SHAPE: Shape = {
    "measured": {
        **dict.fromkeys(("featurizer", "tokens"), str),
        **dict.fromkeys(("samples", "neighbours", "mauve_buckets", "mauve_seeds"), COUNT),
    },
    "exact_domain": (str, type(None)),
    "values": Values((*NUMBER, type(None))),
}
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
        # Tokens first: where they are others, so may be the number of texts, which nobody asked to be another.
        for key, value in {"tokens": wanted.tokens, **asdict(wanted)}.items():
            for place, found in ((REAL_VALUES, stored["measured"]), (FEATURES, header)):
                if found.get(key) != value:
                    said = f"with {key} = {found.get(key)}, and {value} is asked for"
                    raise UserError(
                        f"{place} was measured {f'on other tokens than {TOKENS} holds' if key == 'tokens' else said}; "
                        "measure real text anew: `dvc repro real-text` (or `gtl real`)"
                    )
        widths = {value.ndim == 2 and value.shape[1] for value in features.values()}
        if not {"real", "train"} <= features.keys() or len(widths) > 1 or False in widths:
            raise UserError(
                f"{FEATURES} lacks `real` or `train`, or they are no [n, d]; measure real text anew (`gtl real`)"
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
