"""Before sampling: do source and target overlap enough for guidance to work? (docs/method.md section 2.1)

GTL reweights source text. Where hardly any source text carries weight, the ratio is learned from almost nothing and
guidance fails; this is read from held-out log-ratios at several noise levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.calibration import expected_calibration_error, roc_auc

Verdict = Literal["go", "caution", "poor overlap"]

MASKED_SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)
"""Noise levels that held-out texts are looked at."""

# Clean texts of two domains are nearly always told apart, so their weights are the worst case; guidance acts while
# most of the text is still open. "poor overlap" is therefore judged where at least this share is masked.
OPEN_SHARE = 0.5
# Below 1 % one source text in a hundred carries the weight: the ratio's own training set is effectively 100 times
# smaller.
POOR_ESS_SHARE = 0.01
# Fewer effective texts than this leave an estimate with a relative error of about a half, whatever the share.
MIN_EFFECTIVE = 5.0
# E_p[q/p] = 1: if the weights average below a tenth, most of the target lies where the source sample has nothing.
POOR_MEAN_WEIGHT = 0.1
# At 10 % the weighted estimates have about three times the error of unweighted ones: usable, but to be watched.
GOOD_ESS_SHARE = 0.1
# A mean weight off by more than a factor of two says that the log-ratio is miscalibrated, so gamma = 1 is not gamma =
# 1.
GOOD_MEAN_WEIGHT = (0.5, 2.0)
# Probabilities wrong by more than a tenth on average: calibrate before trusting gamma.
GOOD_CALIBRATION_ERROR = 0.1
# A classifier this near chance sees no difference that guidance could act on.
MIN_AUC = 0.55
MAX_LOG_WEIGHT = 300.0  # keeps squares of weights finite in double precision


@dataclass(frozen=True)
class LevelDiagnostics:
    """Overlap at one noise level, on held-out data.

    Attributes:
        masked_share: share of masked tokens; 0 is clean text.
        auc: of the log-ratio as a classifier.
        calibration_error: expected calibration error of sigmoid(log_ratio), both domains weighing the same.
        mean_weight: mean of exp(log_ratio) over source texts; 1 if exact.
        ess_share: (sum w)^2 / (n sum w^2) over source texts, in [1/n, 1]: the share of source texts that counts.
        n_source: source texts.
        n_target: target texts.
    """

    masked_share: float
    auc: float
    calibration_error: float
    mean_weight: float
    ess_share: float
    n_source: int
    n_target: int


@dataclass(frozen=True)
class Advice:
    """The verdict, one plain sentence, and the numbers behind it."""

    verdict: Verdict
    sentence: str
    levels: tuple[LevelDiagnostics, ...]


def effective_share(log_ratio: np.ndarray) -> float:
    """(sum w)^2 / (n sum w^2) for w = exp(log_ratio), Float[n]; free of overflow."""
    w = np.exp(log_ratio - log_ratio.max())
    return float(w.sum() ** 2 / (len(w) * (w**2).sum()))


def diagnose(masked_share: float, log_ratio_source: np.ndarray, log_ratio_target: np.ndarray) -> LevelDiagnostics:
    """Diagnostics of one noise level from held-out log q/p estimates.

    Args:
        masked_share: the level, in [0, 1].
        log_ratio_source: Float[n] on source examples noised to the level.
        log_ratio_target: Float[m] on target examples noised to the level.

    Raises:
        UserError: an empty array, a value that is not finite, or a level outside [0, 1].
    """
    if not 0 <= masked_share <= 1:
        raise UserError(f"masked_share={masked_share}; a noise level lies in [0, 1]")
    source, target = (np.asarray(x, dtype=np.float64).ravel() for x in (log_ratio_source, log_ratio_target))
    if not len(source) or not len(target):
        raise UserError("the advisor needs held-out log-ratios of both domains; enlarge the validation splits")
    both = np.concatenate([source, target])
    is_target = np.repeat([False, True], [len(source), len(target)])
    posterior = 0.5 * (1 + np.tanh(both / 2))
    return LevelDiagnostics(
        masked_share=float(masked_share),
        auc=roc_auc(both, is_target),
        calibration_error=expected_calibration_error(posterior, is_target, balanced=True),
        mean_weight=float(np.exp(np.minimum(source, MAX_LOG_WEIGHT)).mean()),
        ess_share=effective_share(source),
        n_source=len(source),
        n_target=len(target),
    )


def advise(levels: Sequence[LevelDiagnostics], *, open_share: float = OPEN_SHARE) -> Advice:
    """Weigh the levels against the thresholds above. The worst finding makes the verdict and the sentence.

    Args:
        levels: diagnostics by noise level.
        open_share: share of masked tokens from which a level decides on poor overlap. 0 for an estimator that does
            nothing but reweight source text by r*(x_0) (docs/method.md eqs. 7a and 7b without 8): its weights are
            those of clean text at every level.

    Raises:
        UserError: no level was given.
    """
    if not levels:
        raise UserError("the advisor got no noise level; evaluate the ratio on at least one")
    ordered = tuple(sorted(levels, key=lambda level: level.masked_share))
    verdict, sentence = _judge(ordered, open_share)
    return Advice(verdict, sentence, ordered)


def _judge(levels: tuple[LevelDiagnostics, ...], open_share: float) -> tuple[Verdict, str]:
    # Without a level that is open enough the noisiest one stands in.
    open_levels = [level for level in levels if level.masked_share >= open_share] or [levels[-1]]
    worst = min(open_levels, key=lambda level: level.ess_share)
    missing = min(open_levels, key=lambda level: level.mean_weight)
    if worst.ess_share < POOR_ESS_SHARE or worst.ess_share * worst.n_source < MIN_EFFECTIVE:
        return "poor overlap", (
            f"Poor overlap: with {worst.masked_share:.0%} of the tokens masked only {worst.ess_share:.1%} of the "
            f"source texts resemble the target; add target text to the source model's data, or fine-tune."
        )
    if missing.mean_weight < POOR_MEAN_WEIGHT:
        return "poor overlap", (
            f"Poor overlap: the density ratio averages {missing.mean_weight:.2g} on source text where it should "
            f"average 1, so most target text is unlike any source text; add target text to the source model's data, or "
            f"fine-tune."
        )
    skewed = max(levels, key=lambda level: abs(np.log(max(level.mean_weight, 1e-300))))
    if not GOOD_MEAN_WEIGHT[0] <= skewed.mean_weight <= GOOD_MEAN_WEIGHT[1]:
        return "caution", (
            f"Caution: the density ratio averages {skewed.mean_weight:.2g} in place of 1 on source text with "
            f"{skewed.masked_share:.0%} masked, so calibrate it and select gamma on validation data."
        )
    uncalibrated = max(levels, key=lambda level: level.calibration_error)
    if uncalibrated.calibration_error > GOOD_CALIBRATION_ERROR:
        return "caution", (
            f"Caution: the domain probabilities are off by {uncalibrated.calibration_error:.0%} on average with "
            f"{uncalibrated.masked_share:.0%} masked, so calibrate the ratio and select gamma on validation data."
        )
    thinnest = min(levels, key=lambda level: level.ess_share)
    if thinnest.ess_share < GOOD_ESS_SHARE:
        return "caution", (
            f"Caution: with {thinnest.masked_share:.0%} of the tokens masked only {thinnest.ess_share:.1%} of the "
            f"source texts carry the weight, so keep gamma small and check it on validation data."
        )
    clearest = max(levels, key=lambda level: level.auc)
    if clearest.auc < MIN_AUC:
        return "caution", (
            f"Caution: the ratio can hardly tell the domains apart (AUC {clearest.auc:.2f}), so guidance will change "
            f"little; train the ratio longer, or use the source model as it is."
        )
    return "go", (
        f"Go: source and target overlap (at least {thinnest.ess_share:.0%} of the source texts count at every "
        f"noise level) and the ratio is calibrated."
    )
