"""What a classifier of noised text says of two domains, by noise level: the advisor weighs it (docs/method.md 2.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gtl_lightning.core.forward import absorbing_sample
from gtl_lightning.core.guard import tensor_of, wide
from gtl_lightning.core.protocols import RatioNetwork, untouched
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.evaluation.overlap import MASKED_SHARES, LevelDiagnostics, diagnose

if TYPE_CHECKING:
    import numpy as np

SOURCE_TEXTS = 512
"""Held-out source texts that are weighed; held-out target is as scarce as the target's share makes it."""
WEIGHED = 64
"""Texts per forward pass."""


def diagnose_levels(
    log_ratio: RatioNetwork,
    source: TokenDataset,
    target: TokenDataset,
    mask_index: int,
    schedule: NoiseSchedule,
    device: torch.device,
) -> list[LevelDiagnostics]:
    """Diagnostics at every masked share, from held-out texts: `SOURCE_TEXTS` of the source, all of the target.

    Raises:
        UserError: a log-ratio that is not finite.
    """
    source = source.subset(min(len(source), SOURCE_TEXTS))
    return [
        diagnose(
            share, *(log_ratios(log_ratio, texts, share, mask_index, schedule, device) for texts in (source, target))
        )
        for share in MASKED_SHARES
    ]


def log_ratios(
    log_ratio: RatioNetwork,
    texts: TokenDataset,
    share: float,
    mask_index: int,
    schedule: NoiseSchedule,
    device: torch.device,
) -> np.ndarray:
    """log q/p of every text with this share of its tokens masked; the masks come from one fixed generator.

    Raises:
        UserError: the network gives another shape than one number a text.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), WEIGHED):
            x_0 = texts.batch(range(start, min(start + WEIGHED, len(texts))))
            t = schedule.inverse(torch.full((len(x_0),), 1.0 - share))
            x_t = absorbing_sample(x_0, t, schedule, mask_index, generator, frozen=x_0 == texts.pad_index)
            given = untouched(log_ratio, x_t.to(device), t.to(device))
            found.append(wide(tensor_of(given, (len(x_0),), log_ratio, "classifier")).cpu())
    return torch.cat(found).numpy()
