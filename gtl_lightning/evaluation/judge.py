"""A domain judge that taught nothing: TF-IDF word features and logistic regression, on texts that no network has seen.

Cut the judge's texts and the texts to be judged to the same length (the model's), or it judges length instead of
domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.calibration import roc_auc

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

MIN_TEXTS = 20  # a domain: below, a held-out AUC says nothing
HELD_OUT = 0.2
MAX_TERMS = 50_000
KIND = "domain-judge"


@dataclass(frozen=True)
class Judge:
    """P(target | text) for equally frequent domains.

    Attributes:
        vocabulary: words and pairs of words, in the order of the weights.
        idf: Float[v] inverse document frequencies.
        coefficients: Float[v] weights of the log-odds, target positive.
        intercept: bias of the log-odds.
        auc: area under the ROC curve on texts held out of the fit.
    """

    vocabulary: tuple[str, ...]
    idf: np.ndarray
    coefficients: np.ndarray
    intercept: float
    auc: float

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """P(target | text), Float[n].

        Raises:
            UserError: no text was given.
        """
        if not texts:
            raise UserError("no text to judge; give at least one")
        vectorizer = _vectorizer(self.vocabulary)
        vectorizer.idf_ = self.idf
        log_odds = vectorizer.transform(texts) @ self.coefficients + self.intercept
        return 0.5 * (1 + np.tanh(log_odds / 2))

    def domain_score(self, texts: Sequence[str]) -> float:
        """Mean P(target | text): the domain score, higher is nearer the target.

        Raises:
            UserError: no text was given.
        """
        return float(self.probabilities(texts).mean())

    def save(self, path: Path | str) -> None:
        """Write as safetensors, the vocabulary as UTF-8 bytes; no pickle.

        Raises:
            UserError: the folder cannot be written.
        """
        import torch

        from gtl_lightning.files import save_tensors

        terms = np.frombuffer("\n".join(self.vocabulary).encode(), dtype=np.uint8)
        tensors = {"vocabulary": terms, "idf": self.idf, "coefficients": self.coefficients}
        meta = {"kind": KIND, "intercept": self.intercept, "auc": self.auc}
        save_tensors(path, {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, meta)

    @classmethod
    def load(cls, path: Path | str) -> Judge:
        """Read what `save` wrote; nothing is executed.

        Raises:
            UserError: missing, truncated, or not a judge.
        """
        from gtl_lightning.files import load_tensors
        from gtl_lightning.records import NUMBER, record

        tensors, meta = load_tensors(path)
        if meta.get("kind") != KIND:
            raise UserError(f"{path} holds no domain judge; delete it and run the stage that fits the judge")
        record(meta, path, {"intercept": NUMBER, "auc": NUMBER})
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        try:
            vocabulary = tuple(arrays["vocabulary"].tobytes().decode().split("\n"))
            fits = {arrays[name].shape for name in ("idf", "coefficients")} == {(len(set(vocabulary)),)}
        except (KeyError, UnicodeDecodeError):
            fits = False
        if not fits:
            raise UserError(f"{path}: its words and their weights do not fit; delete it and fit the judge again")
        return cls(vocabulary, arrays["idf"], arrays["coefficients"], meta["intercept"], meta["auc"])


def fit_judge(source_texts: Sequence[str], target_texts: Sequence[str], seed: int = 0) -> Judge:
    """Fit the judge on four fifths of the texts and measure its AUC on the rest.

    Args:
        source_texts: texts of the source domain, used for nothing else.
        target_texts: texts of the target domain, used for nothing else.
        seed: of the split.

    Raises:
        UserError: fewer than 20 texts of a domain, or texts without a shared vocabulary.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    for name, texts in (("source", source_texts), ("target", target_texts)):
        if len(texts) < MIN_TEXTS:
            raise UserError(
                f"the judge got {len(texts)} {name} texts; it needs at least {MIN_TEXTS}: enlarge its split"
            )
    texts = [*source_texts, *target_texts]
    labels = np.repeat([0, 1], [len(source_texts), len(target_texts)])
    fit_texts, held_texts, fit_labels, held_labels = train_test_split(
        texts, labels, test_size=HELD_OUT, random_state=seed, stratify=labels
    )
    vectorizer = _vectorizer()
    try:
        features = vectorizer.fit_transform(fit_texts)
    except ValueError as error:
        raise UserError("the judge's texts share no words; give natural-language texts of both domains") from error
    # Balanced: the score then does not depend on how many texts of either domain the judge was given.
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(features, fit_labels)
    return Judge(
        vocabulary=tuple(vectorizer.get_feature_names_out()),
        idf=vectorizer.idf_,
        coefficients=model.coef_[0],
        intercept=float(model.intercept_[0]),
        auc=roc_auc(model.decision_function(vectorizer.transform(held_texts)), held_labels),
    )


def _vectorizer(vocabulary: Sequence[str] | None = None) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    shape = {"min_df": 2, "max_features": MAX_TERMS} if vocabulary is None else {"vocabulary": vocabulary}
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **shape)
