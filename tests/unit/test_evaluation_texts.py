"""Diversity and memorisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.diversity import diversity
from gtl_lightning.evaluation.memorisation import copied_spans, memorisation, nearest_cosines


def test_diversity_counts_by_hand() -> None:
    result = diversity(["a b a b", "a b a b", "c"])
    assert result.distinct_1 == pytest.approx(3 / 9)
    assert result.distinct_2 == pytest.approx(2 / 6)
    assert result.distinct_3 == pytest.approx(2 / 4)
    assert result.self_repetition == 0
    assert result.duplicates == pytest.approx(1 / 3)
    assert (result.length_min, result.length_max, result.length_mean) == (1, 4, 3)
    assert result.length_std == pytest.approx(np.sqrt(2))


def test_repetition_within_a_text_is_seen() -> None:
    assert diversity(["a a a a a a a"]).self_repetition == pytest.approx(3 / 4)
    assert diversity(["a b c d e f g"]).self_repetition == 0
    assert diversity([""]).distinct_1 == 0
    with pytest.raises(UserError, match="no text"):
        diversity([])


def test_spans_end_at_sequence_ends_and_need_no_torch() -> None:
    training = [torch.tensor([1, 2, 3]), np.array([4, 5, 6])]
    samples = [[3, 4, 5], [1, 2, 3, 4, 5, 6], [9, 9], [], [1, 2, 3]]
    assert copied_spans([torch.tensor(row, dtype=torch.long) for row in samples], training).tolist() == [2, 3, 0, 0, 3]


def test_cosines_find_the_nearest_row() -> None:
    training = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert nearest_cosines(np.array([[3.0, 3.0], [0.0, 1.0], [-1.0, -1.0]]), training) == pytest.approx(
        [np.sqrt(0.5), 1.0, -np.sqrt(0.5)]
    )


def test_copies_stand_out_from_fresh_sequences() -> None:
    generator = np.random.default_rng(0)
    training = list(generator.integers(0, 50, size=(500, 40)))
    fresh = list(generator.integers(0, 50, size=(50, 40)))
    vectors = generator.normal(size=(550, 16))
    copied = memorisation(training[:50], training, sample_features=vectors[:50], training_features=vectors[:500])
    new = memorisation(fresh, training, sample_features=vectors[500:], training_features=vectors[:500])
    assert copied.summary()["span_mean"] == 40
    assert copied.summary()["cosine_mean"] == pytest.approx(1)
    assert new.summary()["span_p95"] < 8
    assert new.summary()["cosine_p95"] < 0.95


def test_bad_memorisation_input_is_one_clear_line() -> None:
    row = [torch.tensor([1])]
    with pytest.raises(UserError, match="at least one sample"):
        copied_spans([], row)
    with pytest.raises(UserError, match="one featurizer"):
        nearest_cosines(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(UserError, match="1 samples but 2 feature rows"):
        memorisation(row, row, sample_features=np.zeros((2, 3)), training_features=np.zeros((1, 3)))
