from __future__ import annotations

import numpy as np
import pytest

from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.mauve import _area, default_buckets, mauve_score


def cloud(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    sample = np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)
    sample[:, 0] += shift
    return sample


def test_equal_laws_score_high_disjoint_ones_low_and_order_is_kept() -> None:
    real = cloud(300, 0, shift=4)
    same, near, far = (mauve_score(cloud(300, 1, shift=4 - gap), real) for gap in (0, 2, 40))
    assert same.mean > 0.9
    assert 0.2 < near.mean < 0.85
    assert far.mean < 0.05
    assert same.low > near.high
    assert near.low > far.high


def test_result_says_what_was_computed() -> None:
    result = mauve_score(cloud(150, 0), cloud(220, 1), seeds=(3, 4))
    assert (result.n, result.buckets, len(result.values)) == (150, 15, 2)
    assert result.mean == pytest.approx(np.mean(result.values))
    assert 0 <= result.low <= result.mean <= result.high <= 1
    assert mauve_score(cloud(150, 0), cloud(220, 1), seeds=(3, 4)) == result
    assert [default_buckets(n) for n in (20, 1000, 99_999)] == [5, 100, 500]


def test_larger_sample_is_cut_to_the_smaller() -> None:
    larger = cloud(400, 1)
    assert mauve_score(cloud(100, 0), larger) == mauve_score(cloud(100, 0), larger[:100])


def test_score_is_that_of_the_mauve_package() -> None:
    import mauve

    p, q = cloud(120, 0), cloud(120, 1, shift=2)
    theirs = mauve.compute_mauve(p_features=p, q_features=q, num_buckets=10, seed=7, verbose=False).mauve
    assert mauve_score(p, q, buckets=10, seeds=(7,)).values[0] == pytest.approx(theirs, abs=1e-9)


def test_an_area_is_to_the_last_digit_that_under_the_package_s_curve() -> None:
    from mauve.compute_mauve import get_divergence_curve_for_multinomials

    generator = np.random.default_rng(0)
    for buckets in (2, 5, 16, 17, 100, 500):
        for n in (20, 256):
            p, q = (generator.multinomial(n, generator.dirichlet(np.full(buckets, 0.5))) / n for _ in range(2))
            x, y = get_divergence_curve_for_multinomials(p, q, np.linspace(1e-6, 1 - 1e-6, 25), 5.0).T
            by_x, by_y = np.argsort(x), np.argsort(y)
            theirs = 0.5 * (np.trapezoid(y[by_x], x[by_x]) + np.trapezoid(x[by_y], y[by_y]))
            assert _area(p, q, 5.0) == theirs


def test_interval_has_the_width_of_the_scatter_over_fresh_texts() -> None:
    results = [mauve_score(cloud(200, seed), cloud(200, 1000 + seed, shift=2), seeds=(0,)) for seed in range(20)]
    scatter = np.std([result.mean for result in results])
    stated = np.mean([(result.high - result.low) / 2 / 1.96 for result in results])
    assert 0.6 < stated / scatter < 1.7


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    mauve_score(cloud(100, 0), cloud(100, 1), buckets=50)  # k-means would warn of too few points a bucket
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("p", "arguments", "message"),
    [
        (cloud(10, 0), {}, "at least 20"),
        (cloud(100, 0)[:, :5], {}, "dimensions"),
        (cloud(100, 0)[0], {}, "shape"),
        (np.full((100, 12), np.nan), {}, "not finite"),
        (cloud(100, 0), {"seeds": ()}, "seeds is empty"),
        (cloud(100, 0), {"buckets": 101}, "buckets=101"),
        (cloud(100, 0), {"buckets": 1}, "buckets=1"),
    ],
)
def test_bad_input_is_one_clear_line(p: np.ndarray, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mauve_score(p, cloud(100, 1), **arguments)
