"""Weights between those of two networks of one shape."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


def between(first: nn.Module, second: nn.Module, alpha: float) -> nn.Module:
    """A network of weights (1 - alpha) * first + alpha * second: the first's at 0 and the second's at 1, to the bit."""
    mixed = deepcopy(second)
    with torch.no_grad():
        for start, weight in zip(first.parameters(), mixed.parameters(), strict=True):
            weight.copy_(torch.lerp(start.to(weight), weight, alpha))
    return mixed
