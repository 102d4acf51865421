"""Calibration and the advisor against laws whose log-ratio is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.calibration import expected_calibration_error, roc_auc
from gtl_lightning.evaluation.overlap import LevelDiagnostics, advise, diagnose, effective_share


def gaussians(distance: float, n: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Exact log q/p on samples of p = N(0, 1) and q = N(distance, 1)."""
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=n), generator.normal(distance, size=m)
    return distance * x - distance**2 / 2, distance * y - distance**2 / 2


def joined(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([source, target]), np.repeat([False, True], [len(source), len(target)])


def test_auc_of_known_cases() -> None:
    assert roc_auc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])) == 1.0
    assert roc_auc(np.array([0.9, 0.2, 0.8, 0.1]), np.array([0, 0, 1, 1])) == 0.25
    assert roc_auc(np.ones(4), np.array([0, 1, 0, 1])) == 0.5
    scores, labels = joined(*gaussians(1.5, 20_000, 20_000))
    assert roc_auc(scores, labels) == pytest.approx(0.5 * (1 + math.erf(1.5 / 2)), abs=0.01)


def test_calibration_error_of_known_cases() -> None:
    labels = np.repeat([False, True], 500)
    assert expected_calibration_error(np.full(1000, 0.5), labels) < 1e-12  # ties, not the order of rows
    assert expected_calibration_error(np.full(1000, 0.9), labels) == pytest.approx(0.4)
    assert expected_calibration_error(labels.astype(float), labels) == 0
    assert expected_calibration_error(1.0 - labels, labels) == pytest.approx(1)


def test_calibration_error_is_small_for_the_posterior_and_grows_with_overconfidence() -> None:
    scores, labels = joined(*gaussians(1.5, 20_000, 5_000))
    balanced = [
        expected_calibration_error(1 / (1 + np.exp(-factor * scores)), labels, balanced=True) for factor in (1, 1.5, 3)
    ]
    assert balanced[0] < 0.02 < balanced[1] < balanced[2]
    # The same probabilities are wrong for the raw mixture, in which the source is four times as frequent.
    assert expected_calibration_error(1 / (1 + np.exp(-scores)), labels) > 0.1


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros(3), np.array([0, 1]), "do not match"),
        (np.zeros(3), np.ones(3), "one domain only"),
        (np.array([0.0, np.nan]), np.array([0, 1]), "not finite"),
    ],
)
def test_bad_classifier_output_is_one_clear_line(scores: np.ndarray, labels: np.ndarray, message: str) -> None:
    for function in (roc_auc, expected_calibration_error):
        with pytest.raises(UserError, match=message):
            function(scores, labels)


def test_effective_share_of_a_table_and_of_gaussians() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    rows = np.repeat(np.log(q / p), [500, 300, 200])
    assert effective_share(rows) == pytest.approx(1 / (q**2 / p).sum())
    assert effective_share(rows + 900.0) == pytest.approx(effective_share(rows))  # no overflow
    level = diagnose(0.5, *gaussians(0.8, 100_000, 1_000))
    assert level.ess_share == pytest.approx(math.exp(-(0.8**2)), rel=0.05)
    assert level.mean_weight == pytest.approx(1, abs=0.03)
    one_hot = np.array([50.0, *[0.0] * 99])
    assert effective_share(one_hot) == pytest.approx(1 / 100)


GO = LevelDiagnostics(0.5, 0.8, 0.02, 1.0, 0.5, 1000, 1000)


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({}, "go", "overlap"),
        ({"ess_share": 0.05}, "caution", "5.0%"),
        ({"ess_share": 0.005}, "poor overlap", "0.5%"),
        ({"ess_share": 0.05, "n_source": 60}, "poor overlap", "5.0%"),  # three effective texts
        ({"mean_weight": 0.01}, "poor overlap", "0.01"),
        ({"mean_weight": 3.0}, "caution", "averages 3"),
        ({"calibration_error": 0.2}, "caution", "20%"),
        ({"auc": 0.52}, "caution", "AUC 0.52"),
        ({"masked_share": 0.0, "ess_share": 0.005}, "caution", "0%"),  # clean text alone is no reason to stop
    ],
)
def test_verdicts(change: dict[str, float], verdict: str, words: str) -> None:
    levels = [replace(GO, **change)] if "masked_share" not in change else [replace(GO, **change), GO]
    advice = advise(levels)
    assert advice.verdict == verdict
    assert words in advice.sentence
    assert advice.sentence.count(". ") == 0
    assert advice.sentence.endswith(".")


def test_noise_turns_poor_overlap_into_go_and_levels_are_sorted() -> None:
    near = diagnose(0.9, *gaussians(0.7, 2_000, 2_000))
    far = diagnose(0.6, *gaussians(5.0, 2_000, 2_000))
    assert advise([near]).verdict == "go"
    assert advise([far]).verdict == "poor overlap"
    both = advise([near, far])
    assert both.verdict == "poor overlap"
    assert both.levels == (far, near)


def test_advisor_refuses_nothing_to_judge() -> None:
    with pytest.raises(UserError, match="no noise level"):
        advise([])
    with pytest.raises(UserError, match="both domains"):
        diagnose(0.5, np.zeros(0), np.zeros(3))
    with pytest.raises(UserError, match="masked_share=2"):
        diagnose(2, np.zeros(3), np.zeros(3))
    with pytest.raises(UserError, match="not finite"):
        diagnose(0.5, np.array([0.0, np.inf]), np.zeros(3))
