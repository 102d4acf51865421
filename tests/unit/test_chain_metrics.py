"""Metrics of the Markov study against values known by hand or by the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gtl_lightning.errors import UserError
from gtl_lightning.laws.chain_metrics import measure_samples, row_kl, tilt_errors
from gtl_lightning.laws.chains import paper_chain
from gtl_lightning.laws.exact import ExactRatio

SOURCE, TARGET = paper_chain(0.1), paper_chain(0.8)
EXACT = ExactRatio(SOURCE, TARGET)


def test_row_kl_is_the_mean_over_rows() -> None:
    assert row_kl(TARGET, TARGET.transition) == pytest.approx(0, abs=1e-12)
    by_hand = 0.8 * math.log(0.8 / 0.1) + 0.2 * math.log(0.05 / 0.225)
    assert row_kl(TARGET, SOURCE.transition) == pytest.approx(by_hand)
    blocked = TARGET.transition.clone()
    blocked[0, 1] = 0
    assert row_kl(TARGET, blocked) == math.inf


def test_the_targets_own_samples_measure_as_the_target() -> None:
    found = measure_samples(TARGET.sample(4096, 20, torch.Generator().manual_seed(0)), TARGET)
    assert 0 < found.row_kl < 1e-3  # (V - 1) / (2 * 15,564 bigrams a row) is expected
    assert abs(found.diagonal - 0.8) < 0.01
    assert abs(found.nll - TARGET.entropy(20) / 20) < 0.02


def scores(strength: float, bump: float = 0.0) -> object:
    def read(x_t: Tensor, position: Tensor) -> Tensor:
        log_r = EXACT.token(x_t)[torch.arange(len(x_t)), position, :5]
        return strength * log_r + bump * torch.randn(len(x_t), 1, dtype=torch.float64)

    return read


def errors(read: object, levels: tuple[int, ...] = (1, 10)) -> list[object]:
    return tilt_errors(
        SOURCE, TARGET, read, length=20, levels=levels, rows=200, generator=torch.Generator().manual_seed(1)
    )


def test_the_exact_ratio_is_calibrated_whatever_is_added_to_all_tokens() -> None:
    for error in errors(scores(1.0, bump=3.0)):
        assert error.slope == pytest.approx(1, abs=1e-9) and error.rmse < 1e-9


def test_a_shrunk_ratio_has_a_slope_below_one() -> None:
    for error in errors(scores(0.5)):
        assert 0.3 < error.slope < 0.9 and error.rmse > 0.2


def test_where_the_exact_ratio_says_nothing_there_is_no_slope() -> None:
    """All masked, both chains start uniformly: log r is 0 for every token."""
    (error,) = errors(scores(1.0), levels=(20,))
    assert math.isnan(error.slope) and error.rmse < 1e-9


def test_a_level_beyond_the_length_is_named() -> None:
    with pytest.raises(UserError, match=r"calibration level 21: .* 1..20"):
        errors(scores(1.0), levels=(21,))
