"""The energy distance: its expectation by enumeration, its invariances, and what it refuses."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.energy import energy_distance

SUPPORT = np.array([0.0, 1.0, 3.0])
GAPS = np.abs(SUPPORT[:, None] - SUPPORT[None])


def clouds(seed: int, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(7, 3)), generator.normal(size=(5, 3)) + shift


@pytest.mark.parametrize(("p", "q"), [((0.2, 0.3, 0.5), (0.6, 0.3, 0.1)), ((0.2, 0.3, 0.5), (0.2, 0.3, 0.5))])
def test_its_expectation_over_all_samples_is_the_distance_of_the_laws(
    p: tuple[float, ...], q: tuple[float, ...]
) -> None:
    expected = 0.0
    for indices in product(range(3), repeat=5):
        of_p, of_q = indices[:2], indices[2:]
        weight = np.prod([p[i] for i in of_p]) * np.prod([q[i] for i in of_q])
        expected += weight * energy_distance(SUPPORT[list(of_p), None], SUPPORT[list(of_q), None])
    difference = np.array(p) - np.array(q)
    assert expected == pytest.approx(-difference @ GAPS @ difference, abs=1e-12)
    assert (expected > 0.1) == (p != q)


def test_of_two_points_it_is_twice_the_gap() -> None:
    assert energy_distance(np.zeros((3, 2)), np.tile([3.0, 4.0], (4, 1))) == pytest.approx(10.0)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), move=st.floats(-5, 5))
def test_rotations_and_shifts_leave_it_and_a_scale_goes_through(seed: int, scale: float, move: float) -> None:
    p, q = clouds(seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(3, 3)))
    moved = energy_distance(scale * p @ rotation + move, scale * q @ rotation + move)
    assert moved == pytest.approx(scale * energy_distance(p, q), rel=1e-6, abs=1e-9)
    assert energy_distance(q, p) == pytest.approx(energy_distance(p, q), abs=1e-12)


def test_equal_laws_are_nearer_than_shifted_ones() -> None:
    generator = np.random.default_rng(0)
    real, same = generator.normal(size=(2, 200, 4))
    distances = [energy_distance(same + shift, real) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert abs(distances[0]) < 0.05
    assert distances == sorted(distances)


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        (np.zeros((1, 2)), np.zeros((3, 2)), "features_p holds 1 texts; the energy distance needs at least 2"),
        (np.zeros((3, 2)), np.zeros(3), "features_q has shape"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "not finite"),
        (np.zeros((3, 2)), np.zeros((3, 4)), "2 and 4 dimensions"),
    ],
)
def test_what_it_refuses(p: np.ndarray, q: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        energy_distance(p, q)
