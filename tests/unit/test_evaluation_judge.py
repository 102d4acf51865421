from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.judge import Judge, fit_judge
from gtl_lightning.files import save_tensors

SHARED = [f"word{at}" for at in range(30)]
SOURCE, TARGET = ["graph", "algorithm", "proof"], ["boson", "plasma", "galaxy"]


def texts(own: list[str], n: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(SHARED + own * 3, size=15)) for _ in range(n)]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return fit_judge(texts(SOURCE, 300, 0), texts(TARGET, 100, 1))


def test_domains_are_separated_on_texts_not_seen(judge: Judge) -> None:
    assert judge.auc > 0.95
    assert judge.domain_score(texts(TARGET, 100, 2)) > 0.7
    assert judge.domain_score(texts(SOURCE, 100, 3)) < 0.3
    # Unequal numbers of texts must not lean the judge to the larger domain: a text of neither is undecided.
    assert judge.domain_score(texts([], 200, 4)) == pytest.approx(0.5, abs=0.15)


def test_judge_of_one_domain_split_in_two_knows_nothing() -> None:
    blind = fit_judge(texts(SOURCE, 200, 0), texts(SOURCE, 200, 1))
    assert blind.auc == pytest.approx(0.5, abs=0.16)


def test_probabilities_are_those_of_the_fitted_pipeline(judge: Judge) -> None:
    """Rebuilt from its arrays, the judge must tokenise, weigh and normalise as sklearn did while fitting."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    source, target = texts(SOURCE, 300, 0), texts(TARGET, 100, 1)
    labels = [0] * 300 + [1] * 100
    fit, _, fit_labels, _ = train_test_split(source + target, labels, test_size=0.2, random_state=0, stratify=labels)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000)
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(vectorizer.fit_transform(fit), fit_labels)
    fresh = texts(TARGET, 20, 5)
    assert judge.probabilities(fresh) == pytest.approx(model.predict_proba(vectorizer.transform(fresh))[:, 1])


def test_save_and_load_keep_every_probability(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors")
    loaded = Judge.load(tmp_path / "judge.safetensors")
    assert loaded.auc == judge.auc
    assert loaded.vocabulary == judge.vocabulary
    fresh = texts(TARGET, 20, 5)
    assert np.array_equal(loaded.probabilities(fresh), judge.probabilities(fresh))


def test_foreign_and_truncated_files_are_refused(judge: Judge, tmp_path: Path) -> None:
    save_tensors(tmp_path / "other.safetensors", {}, {"kind": "network"})
    with pytest.raises(UserError, match="no domain judge"):
        Judge.load(tmp_path / "other.safetensors")
    judge.save(tmp_path / "judge.safetensors")
    whole = (tmp_path / "judge.safetensors").read_bytes()
    (tmp_path / "judge.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        Judge.load(tmp_path / "judge.safetensors")


def test_too_few_or_wordless_texts_are_refused(judge: Judge) -> None:
    with pytest.raises(UserError, match="19 target texts"):
        fit_judge(texts(SOURCE, 50, 0), texts(TARGET, 19, 1))
    with pytest.raises(UserError, match="share no words"):
        fit_judge(["? !"] * 30, ["; ."] * 30)
    with pytest.raises(UserError, match="no text to judge"):
        judge.domain_score([])
