"""Power of the paired t-test: its level, closed forms at the ends, scaling, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gtl_lightning.report.differences import comparisons, other_methods, paired, powers
from gtl_lightning.report.power import POWER, detectable, rejected
from gtl_lightning.report.tables import half_width


def rows(shift: float, seeds: int, generator: np.random.Generator, method: str = "gtl") -> list[dict[str, object]]:
    """Pairs whose NELBO differs by `shift` and unit noise, MAUVE by nothing."""
    noise = generator.normal(size=seeds)
    own = [
        {"method": method, "fraction": 1.0, "seed": s, "nelbo": 5 + shift + n, "mauve": 0.5}
        for s, n in enumerate(noise)
    ]
    return [
        *own,
        *({"method": "finetune", "fraction": 1.0, "seed": s, "nelbo": 5.0, "mauve": 0.5} for s in range(seeds)),
    ]


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_without_a_difference_the_chance_is_the_level(n: int) -> None:
    assert rejected(0.0, n) == pytest.approx(0.05, abs=1e-6)


def test_of_many_pairs_it_is_the_normal_answer() -> None:
    """z_0.975 + z_0.8 standard errors, where the t-distribution is the normal one."""
    n = 4000
    assert detectable(1.0, n) * 1.959964 == pytest.approx(1.959964 + 0.841621, rel=2e-3)


def test_it_scales_with_the_spread_and_falls_with_the_pairs() -> None:
    assert detectable(0.3, 5) == pytest.approx(3 * detectable(0.1, 5), rel=1e-12)
    assert detectable(0.0, 3) == 0.0, "pairs without spread see everything"
    values = [detectable(half_width([0.0, 1.0] * (n // 2)), n) for n in (2, 4, 8, 16)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("n", [3, 5])
def test_simulated_sweeps_see_it_as_often_as_is_said(n: int) -> None:
    """The verdict that a report would give, of pairs of known spread whose true difference is the detectable one."""
    generator, sweeps = np.random.default_rng(0), 4000
    critical = half_width([0.0] * (n - 1) + [math.sqrt(n)]) * math.sqrt(n)  # s = 1, so the half width is t / sqrt n
    true = detectable(critical / math.sqrt(n), n)
    drawn = generator.normal(size=(sweeps, n)) + true
    halves = critical * drawn.std(axis=1, ddof=1) / math.sqrt(n)
    seen = (np.abs(drawn.mean(axis=1)) > halves).mean()
    assert seen == pytest.approx(POWER, abs=4 * math.sqrt(POWER * (1 - POWER) / sweeps))
    told = [paired(rows(true, n, generator))[0]["verdict"] != "open" for _ in range(200)]
    assert np.mean(told) == pytest.approx(POWER, abs=4 * math.sqrt(POWER * (1 - POWER) / 200))


def test_a_difference_says_what_it_could_have_seen_and_one_seed_nothing() -> None:
    three = paired(rows(1.0, 3, np.random.default_rng(1)))[0]
    assert three["detectable"] == pytest.approx(1.31395 * three["half_width"], rel=1e-4)
    assert paired(rows(1.0, 1, np.random.default_rng(1)))[0]["detectable"] is None
    assert powers(comparisons(rows(1.0, 1, np.random.default_rng(1)))) == []
    (nelbo, mauve) = powers([three, {**three, "metric": "mauve"}, {**three, "detectable": 2 * three["detectable"]}])
    assert f"{three['detectable']:.3f} to {2 * three['detectable']:.3f}, by method and share nats/token" in nelbo
    assert mauve.startswith("MAUVE: with a chance of 80 %")


def test_other_denoisers_are_a_family_of_their_own() -> None:
    """What stands beside guidance makes no verdict on guidance less sure."""
    generator = np.random.default_rng(2)
    both = rows(1.0, 3, generator) + rows(0.5, 3, generator, "lora")[:3]
    alone = [row for row in both if row["method"] != "lora"]
    assert other_methods([*both, {"method": "source", "fraction": None, "seed": 0}]) == ["lora"]
    assert comparisons(both) == comparisons(alone)
    assert {row["method"] for row in comparisons(both, other_methods(both))} == {"lora"}
