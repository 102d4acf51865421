"""Noise schedules: alpha_t, the probability that a token is clean at time t, falls from alpha_0 = 1 to alpha_1 = 0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gtl_lightning.errors import UserError


class NoiseSchedule(ABC):
    """A decreasing function alpha on [0, 1] with alpha_0 = 1 and alpha_1 = 0 (docs/method.md section 1).

    All methods act element by element on tensors of any shape.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is clean at time t."""

    @abstractmethod
    def dalpha(self, t: Tensor) -> Tensor:
        """Derivative of alpha with respect to t; never positive."""

    @abstractmethod
    def inverse(self, alpha: Tensor) -> Tensor:
        """The time t at which `alpha(t)` has the given value."""

    def weight(self, t: Tensor) -> Tensor:
        """Weight -alpha'_t / (1 - alpha_t) of the loss in the NELBO (docs/method.md eq. 1); infinite at t = 0."""
        return -self.dalpha(t) / (1 - self.alpha(t))


class LogLinear(NoiseSchedule):
    """alpha_t = 1 - t, so that the weight is 1 / t (MDLM, arXiv 2406.07524: -log alpha_t is "log-linear")."""

    def alpha(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.alpha`."""
        return 1 - t

    def dalpha(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.dalpha`."""
        return -torch.ones_like(t)

    def inverse(self, alpha: Tensor) -> Tensor:
        """See `NoiseSchedule.inverse`."""
        return 1 - alpha

    def weight(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.weight`; 1 / t, without the rounding of 1 - (1 - t)."""
        return 1 / t


class Polynomial(NoiseSchedule):
    """alpha_t = 1 - t ** power; masks late for power > 1.

    Raises:
        UserError: `power` is not positive.
    """

    def __init__(self, power: float = 2.0) -> None:
        if not (power > 0 and math.isfinite(power)):
            raise UserError(f"schedule power must be positive, got {power}")
        self.power = power

    def alpha(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.alpha`."""
        return 1 - t**self.power

    def dalpha(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.dalpha`."""
        return -self.power * t ** (self.power - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        """See `NoiseSchedule.inverse`."""
        return (1 - alpha) ** (1 / self.power)

    def weight(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.weight`; power / t."""
        return self.power / t


class Cosine(NoiseSchedule):
    """alpha_t = 1 - sin(pi t / 2): masks fast at first, slowly towards t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.alpha`."""
        return 1 - torch.sin(t * (math.pi / 2))

    def dalpha(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.dalpha`."""
        return -(math.pi / 2) * torch.cos(t * (math.pi / 2))

    def inverse(self, alpha: Tensor) -> Tensor:
        """See `NoiseSchedule.inverse`."""
        return torch.asin(1 - alpha) * (2 / math.pi)

    def weight(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.weight`; (pi / 2) / tan(pi t / 2)."""
        return (math.pi / 2) / torch.tan(t * (math.pi / 2))


class Geometric(NoiseSchedule):
    """alpha_t proportional to exp(-sigma_t) - exp(-sigma_1) with sigma_t = sigma_min^(1-t) sigma_max^t.

    The geometric noise of SEDD (arXiv 2310.16834), shifted and scaled so that both ends are reached exactly.

    Raises:
        UserError: not 0 < sigma_min < sigma_max.
    """

    def __init__(self, sigma_min: float = 1e-3, sigma_max: float = 20.0) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise UserError(f"the geometric schedule needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._rate = math.log(sigma_max / sigma_min)
        self._span = -math.expm1(sigma_min - sigma_max)

    def _noised(self, t: Tensor) -> Tensor:
        """1 - alpha_t without cancellation near t = 0."""
        return -torch.expm1(-self.sigma_min * torch.expm1(self._rate * t)) / self._span

    def alpha(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.alpha`."""
        return 1 - self._noised(t)

    def dalpha(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.dalpha`."""
        sigma = self.sigma_min * torch.exp(self._rate * t)
        return -self._rate * sigma * torch.exp(self.sigma_min - sigma) / self._span

    def inverse(self, alpha: Tensor) -> Tensor:
        """See `NoiseSchedule.inverse`."""
        excess = -torch.log1p(-(1 - alpha) * self._span)  # sigma_t - sigma_min
        return torch.log1p(excess / self.sigma_min) / self._rate

    def weight(self, t: Tensor) -> Tensor:
        """See `NoiseSchedule.weight`."""
        return -self.dalpha(t) / self._noised(t)


LOG_LINEAR = "loglinear"
SCHEDULES: dict[str, type[NoiseSchedule]] = {
    LOG_LINEAR: LogLinear,
    "polynomial": Polynomial,
    "cosine": Cosine,
    "geometric": Geometric,
}


def schedule(name: str) -> NoiseSchedule:
    """The schedule of that name, with its default parameters.

    Raises:
        UserError: no schedule has this name.
    """
    if name not in SCHEDULES:
        raise UserError(f"schedule '{name}' is unknown; choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]()


def course(schedule: NoiseSchedule) -> list[float]:
    """alpha at nine times: what tells one schedule from another, whatever object it is."""
    return [float(alpha) for alpha in schedule.alpha(torch.linspace(0, 1, 9, dtype=torch.float64))]


def name_of(wanted: NoiseSchedule) -> str | None:
    """The name by which `schedule` gives the same one; None where there is none."""
    return next((name for name in SCHEDULES if course(schedule(name)) == course(wanted)), None)
