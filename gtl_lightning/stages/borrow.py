"""Source texts that stand in for target texts, as the ratio of the clean classifier has it (docs/method.md eq. 9'')."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gtl_lightning.config import Params
from gtl_lightning.stages.common import MODELS, Cell
from gtl_lightning.stages.corpus import Corpus, device_of
from gtl_lightning.stages.progress import progress_bar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gtl_lightning.data.dataset import TokenDataset


POOL = 4000
"""Few target texts are repeated to about so many, so that more than `borrowed` different ones come beside them."""
WEIGHED = 64
"""Source texts per forward pass of the classifier."""


def clean_classifier(cell: Cell) -> Path:
    """The classifier of clean text that was trained on this cell's target texts."""
    return MODELS / Cell("classifier", cell.fraction, cell.seed).name / "clean.safetensors"


def undone_smoothing(params: Params) -> float:
    """Label smoothing that is undone when the clean classifier's logit is read as a log-ratio."""
    return params.classifier.label_smoothing if params.classifier.unsmooth else 0.0


def with_borrowed(
    params: Params, corpus: Corpus, cell: Cell, target: TokenDataset, count: int, clip: float
) -> TokenDataset:
    """The target texts, and with the weight of `count` of them source texts drawn in proportion to the ratio.

    Log-ratios are clipped to [-clip, clip], as they are for a sequence-level loss.

    Raises:
        UserError: the classifier is missing, truncated or foreign.
    """
    import numpy as np
    import torch

    from gtl_lightning.gtl import importance_draws
    from gtl_lightning.networks import load_network

    source = corpus.dataset("source_train")
    device = device_of(params)
    log_r = _log_ratios(load_network(clean_classifier(cell)).to(device), source, undone_smoothing(params), clip, device)
    times = max(1, POOL // max(len(target), count))
    drawn = importance_draws(log_r, times * count, torch.Generator().manual_seed(cell.seed))
    own = np.tile(np.arange(len(target)), times)
    return target.take(own).joined(source.take(drawn.numpy()))


def _log_ratios(
    classifier: nn.Module, texts: TokenDataset, smoothing: float, clip: float, device: torch.device
) -> Tensor:
    """Float[n] log q/p of every text."""
    import torch

    from gtl_lightning.modules.classifier import frozen_log_ratio

    found = []
    with progress_bar("weighing source texts") as progress:
        for start in range(0, len(texts), WEIGHED):
            x_0 = texts.batch(range(start, min(start + WEIGHED, len(texts)))).to(device)
            clean = torch.zeros(len(x_0), device=device)
            found.append(frozen_log_ratio(classifier, x_0, clean, smoothing, 0.5, clip).cpu())
            progress(start + len(x_0), len(texts))
    return torch.cat(found)
