"""Source texts that stand in for target texts, as the ratio of the clean classifier has it (docs/method.md eq. 9'')."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gtl_lightning.config import Params
from gtl_lightning.stages.common import MODELS, Cell, Corpus, device_of
from gtl_lightning.stages.progress import progress_bar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gtl_lightning.data.dataset import TokenDataset


POOL = 4000
"""Few target texts are repeated to about so many, so that more than `borrowed` different ones come beside them."""


def clean_classifier(cell: Cell) -> Path:
    """The classifier of clean text that was trained on this cell's target texts."""
    return MODELS / Cell("classifier", cell.fraction, cell.seed).name / "clean.safetensors"


def with_borrowed(params: Params, corpus: Corpus, cell: Cell, target: TokenDataset, count: int) -> TokenDataset:
    """The target texts, and with the weight of `count` of them source texts drawn in proportion to the ratio.

    Raises:
        UserError: the classifier is missing, truncated or foreign.
    """
    import numpy as np
    import torch

    from gtl_lightning.gtl import importance_draws
    from gtl_lightning.networks import load_network

    source = corpus.dataset("source_train")
    device = device_of(params)
    log_r = _log_ratios(params, load_network(clean_classifier(cell)).to(device), source, device)
    times = max(1, POOL // max(len(target), count))
    drawn = importance_draws(log_r, times * count, torch.Generator().manual_seed(cell.seed))
    own = np.tile(np.arange(len(target)), times)
    return target.take(own).joined(source.take(drawn.numpy()))


def _log_ratios(params: Params, classifier: nn.Module, texts: TokenDataset, device: torch.device) -> Tensor:
    """Float[n] log q/p of every text, clipped as it is for a sequence-level loss."""
    import torch

    from gtl_lightning.modules.classifier import frozen_log_ratio

    ratio, size = params.ratio, params.evaluation.batch
    found = []
    with progress_bar("weighing source texts") as progress:
        for start in range(0, len(texts), size):
            x_0 = texts.batch(range(start, min(start + size, len(texts)))).to(device)
            clean = torch.zeros(len(x_0), device=device)
            found.append(frozen_log_ratio(classifier, x_0, clean, ratio.undone_smoothing, 0.5, ratio.clip).cpu())
            progress(start + len(x_0), len(texts))
    return torch.cat(found)
