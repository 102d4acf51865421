"""Projections to the vocabulary in parts, so that no loss or score holds a tensor of all positions by all tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ELEMENTS = 1 << 24
"""Numbers, positions times tokens, that one part holds: 64 MB in fp32."""
ON_GPU = 16
"""Times as many on a GPU, 1 GB: a part among several is computed twice, and a small one leaves the device idle."""


def in_parts(f: Callable[..., Tensor], vocab_size: int, *rows: Tensor) -> Tensor:
    """f(*rows) where f reduces a projection of each row; with gradients every part is computed again on the way back.

    Args:
        f: maps tensors of m rows to one of m rows, each row for itself.
        vocab_size: tokens that f holds for a row.
        rows: tensors with the same number of rows.
    """
    size = rows_of_part(vocab_size, rows[0].device)
    if len(rows[0]) <= size:
        return f(*rows)
    parts = zip(*(tensor.split(size) for tensor in rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([f(*part) for part in parts])
    return torch.cat([checkpoint(f, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def rows_of_part(vocab_size: int, device: torch.device) -> int:
    """How many rows `in_parts` takes at a time."""
    return max(1, ELEMENTS * (ON_GPU if device.type == "cuda" else 1) // vocab_size)
