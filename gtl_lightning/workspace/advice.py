"""The advisor's word on a cell, before anything is sampled: do source and target overlap enough to be guided?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from gtl_lightning.files import write_json
from gtl_lightning.workspace.corpus import Corpus, device_of
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import MODELS, Cell, log
from gtl_lightning.workspace.provenance import made_with

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from gtl_lightning.data.dataset import TokenDataset

MASKED_SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)
SOURCE_TEXTS = 512
"""Held-out source texts that are weighed; held-out target is as scarce as the fraction makes it."""
WEIGHED = 64
"""Texts per forward pass."""


def advise_cell(params: Params, corpus: Corpus, cell: Cell, target_val: TokenDataset) -> None:
    """Diagnose the noised classifier's log-ratio by noise level; writes models/NAME/advisor.json, says the verdict."""
    from gtl_lightning.evaluation.overlap import advise, diagnose
    from gtl_lightning.networks import load_network

    device = device_of(params)
    network = load_network(MODELS / cell.name / "noised.safetensors").to(device)
    source_val = corpus.dataset("source_val")
    source_val = source_val.subset(min(len(source_val), SOURCE_TEXTS))
    levels = [
        diagnose(
            share,
            _log_ratios(params, corpus, network, source_val, share, device),
            _log_ratios(params, corpus, network, target_val, share, device),
        )
        for share in MASKED_SHARES
    ]
    advice = advise(levels)
    rows = [
        {
            "fraction": cell.fraction,
            "seed": cell.seed,
            "level": level.masked_share,
            "auc": level.auc,
            "ece": level.calibration_error,
            "ess_share": level.ess_share,
            "mean_weight": level.mean_weight,
            "verdict": advice.verdict,
            "sentence": advice.sentence,
        }
        for level in advice.levels
    ]
    write_json(
        MODELS / cell.name / "advisor.json",
        {
            "verdict": advice.verdict,
            "sentence": advice.sentence,
            "made_with": made_with(device.type, "32-true"),
            "levels": [asdict(level) for level in levels],
            "rows": rows,
        },
    )
    log.info("advisor (%s): %s", cell.name, advice.sentence)


def _log_ratios(
    params: Params, corpus: Corpus, network: nn.Module, texts: TokenDataset, share: float, device: torch.device
) -> np.ndarray:
    """log q/p of every text with this share of its tokens masked; the masks come from one fixed generator."""
    import torch

    from gtl_lightning.core.forward import absorbing_sample
    from gtl_lightning.core.schedule import schedule

    alpha = schedule(params.schedule)
    generator = torch.Generator().manual_seed(0)
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), WEIGHED):
            x_0 = texts.batch(range(start, min(start + WEIGHED, len(texts))))
            t = alpha.inverse(torch.full((len(x_0),), 1.0 - share))
            x_t = absorbing_sample(x_0, t, alpha, corpus.mask_index, generator, frozen=x_0 == corpus.pad_index)
            found.append(network(x_t.to(device), t.to(device)).cpu())
    return torch.cat(found).numpy()
