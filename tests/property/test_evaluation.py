from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gtl_lightning.evaluation.calibration import expected_calibration_error
from gtl_lightning.evaluation.diversity import diversity
from gtl_lightning.evaluation.likelihood import nelbo
from gtl_lightning.evaluation.masked_likelihood import Masking
from gtl_lightning.evaluation.memorisation import copied_spans
from gtl_lightning.evaluation.overlap import effective_share

ids = st.sampled_from([0, 1, 2, 7])
sequences = st.lists(st.lists(ids, min_size=0, max_size=12), min_size=1, max_size=6)
large_ids = st.sampled_from([0, 1, 2**20, 2**33])


def brute_force(sample: list[int], training: list[list[int]]) -> int:
    spans = {tuple(row[a:b]) for row in training for a in range(len(row)) for b in range(a + 1, len(row) + 1)}
    own = [(b - a, tuple(sample[a:b])) for a in range(len(sample)) for b in range(a + 1, len(sample) + 1)]
    return max((length for length, span in own if span in spans), default=0)


@settings(max_examples=150)
@given(samples=sequences, training=sequences)
def test_longest_copied_span_equals_brute_force(samples: list[list[int]], training: list[list[int]]) -> None:
    found = copied_spans([torch.tensor(row, dtype=torch.long) for row in samples], [np.array(row) for row in training])
    assert found.tolist() == [brute_force(sample, training) for sample in samples]


@settings(max_examples=50)
@given(st.lists(large_ids, min_size=1, max_size=30), st.lists(large_ids, min_size=1, max_size=30))
def test_spans_hold_for_ids_that_do_not_pack(sample: list[int], training: list[int]) -> None:
    found = copied_spans([torch.tensor(sample)], [torch.tensor(training)])
    assert found.tolist() == [brute_force(sample, [training])]


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    draws=st.integers(1, 4),
    batch=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_uniform_denoiser_costs_log_v_a_token_whatever_the_noise(
    lengths: list[int], draws: int, batch: int, seed: int
) -> None:
    v = 5
    log_p = torch.full((v + 2,), -np.log(v)).index_fill(0, torch.tensor([v, v + 1]), -torch.inf)
    value = nelbo(
        lambda x_t, t: log_p.expand(*x_t.shape, -1),
        [torch.arange(length) % v for length in lengths],
        Masking(mask_index=v, pad_index=v + 1, draws=draws, seed=seed, batch=batch),
    )
    assert torch.allclose(value.per_sequence, torch.tensor(lengths).double() * np.log(v), rtol=1e-5)


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=50))
def test_effective_share_lies_between_one_text_and_all(log_ratio: list[float]) -> None:
    share = effective_share(np.array(log_ratio))
    assert 1 / len(log_ratio) - 1e-12 <= share <= 1 + 1e-12


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=80))
def test_calibration_error_is_a_share(pairs: list[tuple[float, bool]]) -> None:
    probabilities, labels = (np.array(column) for column in zip(*pairs, strict=True))
    assume(labels.any() and not labels.all())
    for balanced in (False, True):
        assert 0 <= expected_calibration_error(probabilities, labels, balanced=balanced) <= 1 + 1e-12


@given(st.lists(st.text(alphabet="ab ", max_size=20), min_size=1, max_size=8))
def test_diversity_is_made_of_shares(texts: list[str]) -> None:
    result = diversity(texts)
    for value in (result.distinct_1, result.distinct_2, result.distinct_3, result.self_repetition, result.duplicates):
        assert 0 <= value <= 1
