"""MAUVE (Pillutla et al., 2021) on given features, with an interval.

MAUVE depends on the number of k-means buckets, on the k-means seed and on the sample size. So the bucket number is
fixed by a stated rule, several seeds are averaged, both samples are cut to one size, and every score is shown beside
that of real text against real text (`workspace/real.py`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.features import check_pair

MIN_TEXTS = 20  # fewer texts a side fill no histogram
MIN_BUCKETS, MAX_BUCKETS = 5, 500
RESAMPLES = 200
NORMAL_95 = 1.96


@dataclass(frozen=True)
class MauveResult:
    """MAUVE in [0, 1], higher is nearer.

    Attributes:
        mean: average over the k-means seeds.
        low, high: approximate 95 % interval for the noise of both text samples and of k-means.
        values: the score of each seed.
        buckets: k-means clusters used.
        n: texts on each side.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    buckets: int
    n: int


def default_buckets(n: int) -> int:
    """A tenth of the texts of one side (the rule of MAUVE's authors), between 5 and 500."""
    return max(MIN_BUCKETS, min(MAX_BUCKETS, n // 10))


def mauve_score(
    features_p: np.ndarray,
    features_q: np.ndarray,
    *,
    buckets: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    scaling: float = 5.0,
) -> MauveResult:
    """MAUVE between two samples of texts.

    The larger sample is cut to the size of the smaller (its first rows: shuffle before), because the score falls with
    unequal or smaller samples; compare only scores of the same n and buckets.

    The interval is mean +- 1.96 standard errors, clipped to [0, 1], with variance = (a) the delete-half jackknife over
    texts, each side halved without replacement within its k-means histogram, averaged over seeds, plus (b) the variance
    between seeds over their number. Halving in place of the bootstrap, because repeated texts would lower MAUVE itself.

    Args:
        features_p: Float[n, d], usually the generated texts.
        features_q: Float[m, d], usually the real texts.
        buckets: k-means clusters; default `default_buckets(min(n, m))`.
        seeds: k-means seeds, one score each.
        scaling: the constant c of the divergence curve.

    Raises:
        UserError: wrong shapes, too few texts, values that are not finite, no seed, or more buckets than texts.
    """
    p, q = (np.asarray(features, dtype=np.float32) for features in (features_p, features_q))
    check_pair(p, q, score="MAUVE", least=MIN_TEXTS)
    if not seeds:
        raise UserError("mauve seeds is empty; give at least one k-means seed")
    n = min(len(p), len(q))
    p, q = p[:n], q[:n]
    buckets = default_buckets(n) if buckets is None else buckets
    if not 2 <= buckets <= n:
        raise UserError(f"mauve buckets={buckets} with {n} texts a side; choose between 2 and {n}")
    values, variances = [], []
    for seed in seeds:
        histogram_p, histogram_q = _histograms(p, q, buckets, seed, scaling)
        values.append(_area(histogram_p / n, histogram_q / n, scaling))
        variances.append(_halving_variance(histogram_p, histogram_q, scaling, np.random.default_rng(seed)))
    mean = float(np.mean(values))
    between = float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
    half_width = NORMAL_95 * float(np.sqrt(np.mean(variances) + between))
    return MauveResult(mean, max(0.0, mean - half_width), min(1.0, mean + half_width), tuple(values), buckets, n)


def _histograms(p: np.ndarray, q: np.ndarray, buckets: int, seed: int, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """Texts a bucket on either side, Long[buckets] each, by mauve-text's PCA and k-means."""
    logging.getLogger("faiss").setLevel(logging.ERROR)  # it announces its instruction set on import
    import mauve

    with _quiet():
        result = mauve.compute_mauve(
            p_features=p, q_features=q, num_buckets=buckets, seed=seed, mauve_scaling_factor=scaling, verbose=False
        )
    return np.rint(result.p_hist * len(p)).astype(np.int64), np.rint(result.q_hist * len(q)).astype(np.int64)


@contextmanager
def _quiet() -> Iterator[None]:
    """Close both output streams at the level of the process: k-means warns from C++, past Python's own streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def _area(p: np.ndarray, q: np.ndarray, scaling: float) -> float:
    """Area under mauve-text's divergence curve of two histograms: what `compute_mauve` does after k-means.

    To the last digit its `get_divergence_curve_for_multinomials`, which takes the mixtures one by one: an interval
    needs a thousand areas.
    """
    weights = np.linspace(1e-6, 1 - 1e-6, 25)[:, None]
    mixtures = weights * p + (1 - weights) * q
    x, y = (
        np.exp(-scaling * np.array([first, *_divergences(histogram, mixtures), last]))
        for histogram, first, last in ((q, 0.0, np.inf), (p, np.inf, 0.0))
    )
    by_x, by_y = np.argsort(x), np.argsort(y)
    return 0.5 * float(np.trapezoid(y[by_x], x[by_x]) + np.trapezoid(x[by_y], y[by_y]))


def _divergences(p: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """KL(p || r) of each row r of `mixtures`, none of which is zero where p is not: Float[rows]."""
    held = p != 0
    # Rows without gaps: each is then summed as a row of its own would be.
    return np.sum(p[held] * np.log(p[held] / np.ascontiguousarray(mixtures[:, held])), axis=1)


def _halving_variance(
    histogram_p: np.ndarray, histogram_q: np.ndarray, scaling: float, generator: np.random.Generator
) -> float:
    """Delete-half jackknife: the variance over random halves is that over full samples, at first order."""
    half = int(histogram_p.sum()) // 2
    halves_p = generator.multivariate_hypergeometric(histogram_p, half, size=RESAMPLES, method="marginals")
    halves_q = generator.multivariate_hypergeometric(histogram_q, half, size=RESAMPLES, method="marginals")
    return float(np.var([_area(p / half, q / half, scaling) for p, q in zip(halves_p, halves_q, strict=True)], ddof=1))
