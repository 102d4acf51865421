"""Power: the smallest difference that a sweep of so many pairs, scattered as they are, was likely to see."""

from __future__ import annotations

import math
from functools import cache

from gtl_lightning.report.tables import LEVEL

POWER = 0.8
"""Chance of an interval that excludes 0, where the true difference is the smallest that is said to be seen."""


def detectable(half: float, n: int) -> float:
    """The true difference that n pairs tell from 0 with chance `POWER`, in the units of `half`.

    The paired t-test of level 5 %, two-sided, rejects where |t| > t_{0.975, n-1}; with a true difference d and a
    standard error e of the mean, t has the noncentral t-distribution of noncentrality d / e. The answer is 1.31 half
    widths for three pairs, 1.35 for five.

    Args:
        half: half width of the 95 % t-interval over the pairs, t_{0.975, n-1} e; the spread stands for the true one.
        n: pairs, at least two.
    """
    return half * _shift(n) / _critical(n)


def _critical(n: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1))


def rejected(shift: float, n: int) -> float:
    """Chance that the t-test of n pairs rejects 0 where the true mean is `shift` standard errors away from it.

    The noncentral t-distribution as the mean over its denominator, a chi of n - 1 degrees: scipy's own gives NaN where
    few pairs need a large shift.
    """
    from scipy import integrate, special

    limit, freedom = _critical(n), n - 1

    def accepted(share: float) -> float:
        wide = limit * math.sqrt(special.gammaincinv(freedom / 2, share) / (freedom / 2))
        return float(special.ndtr(wide - shift) - special.ndtr(-wide - shift))

    return 1 - float(integrate.quad(accepted, 0.0, 1.0, limit=200)[0])


@cache
def _shift(n: int) -> float:
    """True differences over standard errors at which the chance is `POWER`."""
    from scipy.optimize import brentq

    return float(brentq(lambda shift: rejected(shift, n) - POWER, 0.0, 4 * _critical(n)))
