"""Schedules against their definition: end points, derivative, weight and inverse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gtl_lightning.core.schedule import SCHEDULES, Cosine, Geometric, LogLinear, NoiseSchedule, Polynomial, schedule
from gtl_lightning.errors import UserError

ALL = [LogLinear(), Polynomial(2.0), Polynomial(0.5), Cosine(), Geometric(), Geometric(0.1, 5.0)]
each = pytest.mark.parametrize("noise", ALL, ids=lambda s: type(s).__name__)


def double(t: float) -> torch.Tensor:
    return torch.tensor([t], dtype=torch.float64)


@each
def test_alpha_falls_from_one_to_zero(noise: NoiseSchedule) -> None:
    alpha = noise.alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert alpha[0].item() == pytest.approx(1, abs=1e-12)
    assert alpha[-1].item() == pytest.approx(0, abs=1e-12)
    assert (alpha.diff() < 0).all()


@each
@given(t=st.floats(1e-3, 0.999))
def test_dalpha_is_the_derivative_and_weight_its_quotient(noise: NoiseSchedule, t: float) -> None:
    time = double(t).requires_grad_()
    alpha = noise.alpha(time)
    (slope,) = torch.autograd.grad(alpha.sum(), time)
    torch.testing.assert_close(noise.dalpha(time), slope, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(noise.weight(time), -slope / (1 - alpha), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(noise.weight(time), NoiseSchedule.weight(noise, time), rtol=1e-8, atol=1e-12)


@each
@given(alpha=st.floats(0.0, 0.999))
def test_inverse_is_the_inverse(noise: NoiseSchedule, alpha: float) -> None:
    time = noise.inverse(double(alpha))
    assert -1e-9 <= time.item() <= 1 + 1e-9
    assert noise.alpha(time).item() == pytest.approx(alpha, abs=1e-9)


@each
def test_weight_integrates_to_log_share_of_noise(noise: NoiseSchedule) -> None:
    """The weight is the derivative of log(1 - alpha): its integral over [a, b] is a difference of logs."""
    grid = torch.linspace(0.05, 0.95, 20001, dtype=torch.float64)
    noised = 1 - noise.alpha(grid)
    integral = torch.trapezoid(noise.weight(grid), grid).item()
    assert integral == pytest.approx((noised[-1] / noised[0]).log().item(), rel=1e-6)


def test_single_precision_weight_is_accurate_near_zero() -> None:
    time = torch.tensor([1e-3])
    for noise in ALL:
        torch.testing.assert_close(noise.weight(time).double(), noise.weight(time.double()), rtol=1e-5, atol=0.0)


def test_lookup_by_name() -> None:
    assert {name: type(schedule(name)) for name in SCHEDULES} == SCHEDULES
    with pytest.raises(UserError, match="'sigmoid' is unknown; choose one of loglinear"):
        schedule("sigmoid")


@pytest.mark.parametrize("build", [lambda: Polynomial(0.0), lambda: Geometric(2.0, 1.0)])
def test_bad_parameters(build: object) -> None:
    assert callable(build)
    with pytest.raises(UserError, match="schedule"):
        build()
