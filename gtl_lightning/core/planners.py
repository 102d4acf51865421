"""What the sampler reads off a token distribution: the certainty of a position and the nucleus of its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _confidence(log_p: Tensor) -> Tensor:
    return log_p.amax(-1)


def _margin(log_p: Tensor) -> Tensor:
    first, second = log_p.topk(2, -1).values.exp().unbind(-1)
    return first - second


def _negative_entropy(log_p: Tensor) -> Tensor:
    # What is excluded has probability 0, so that any finite logarithm will do.
    return torch.linalg.vecdot(log_p.exp(), log_p.clamp(min=torch.finfo(log_p.dtype).min))


# Float[...,v] -> Float[...]: how sure the denoiser is of a position; the surest is revealed first.
CERTAINTY: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence": _confidence,
    "margin": _margin,
    "entropy": _negative_entropy,
}


def nucleus(log_w: Tensor, top_p: float) -> Tensor:
    """Keep the least set of most likely tokens whose probability reaches top_p, the others get -inf."""
    values, ids = log_w.sort(-1, descending=True)
    probability = torch.softmax(values, -1)
    beyond = probability.cumsum(-1) - probability >= top_p
    beyond[..., 0] = False
    return log_w.masked_fill(torch.zeros_like(beyond).scatter(-1, ids, beyond), -math.inf)
