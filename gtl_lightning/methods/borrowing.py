"""Source texts that stand in for target texts, as the ratio of the clean classifier has it (docs/method.md eq. 9'')."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gtl_lightning.methods.method import Context

if TYPE_CHECKING:
    from torch import Tensor

    from gtl_lightning.data.dataset import TokenDataset

POOL = 4000
"""Few target texts are repeated to about so many, so that more than `borrowed` different ones come beside them."""
WEIGHED = 64
"""Source texts per forward pass of the classifier."""


def with_borrowed(context: Context, count: int, clip: float) -> TokenDataset:
    """The target texts, and with the weight of `count` of them source texts drawn in proportion to the ratio.

    Log-ratios are clipped to [-clip, clip], as they are for a sequence-level loss.

    Raises:
        UserError: the classifier is missing, truncated or foreign.
    """
    import numpy as np
    import torch

    from gtl_lightning.papers.gtl import importance_draws

    target, source = context.target, context.source()
    log_r = log_ratios(context, source, clip)
    times = max(1, POOL // max(len(target), count))
    drawn = importance_draws(log_r, times * count, torch.Generator().manual_seed(context.seed))
    own = np.tile(np.arange(len(target)), times)
    return target.take(own).joined(source.take(drawn.numpy()))


def log_ratios(context: Context, texts: TokenDataset, clip: float) -> Tensor:
    """Float[n] log q/p of every text."""
    import torch

    from gtl_lightning.modules.classifier import frozen_log_ratio

    classifier, smoothing = context.frozen("clean").to(context.device), context.smoothing()
    found = []
    with context.progress("weighing source texts") as report:
        for start in range(0, len(texts), WEIGHED):
            x_0 = texts.batch(range(start, min(start + WEIGHED, len(texts)))).to(context.device)
            clean = torch.zeros(len(x_0), device=context.device)
            found.append(frozen_log_ratio(classifier, x_0, clean, smoothing, clip).cpu())
            report(start + len(x_0), len(texts))
    return torch.cat(found)
