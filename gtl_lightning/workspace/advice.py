"""The advisor's word on a cell, before anything is sampled: do source and target overlap enough to be guided?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from gtl_lightning.files import write_json
from gtl_lightning.workspace.corpus import Corpus, device_of, open_network
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import MODELS, Cell, log
from gtl_lightning.workspace.provenance import made_with

if TYPE_CHECKING:
    from gtl_lightning.data.dataset import TokenDataset


def advise_cell(params: Params, corpus: Corpus, cell: Cell, target_val: TokenDataset) -> None:
    """Diagnose the noised classifier's log-ratio by noise level; writes models/NAME/advisor.json, says the verdict."""
    from gtl_lightning.core.schedule import schedule
    from gtl_lightning.evaluation.noised_ratio import diagnose_levels
    from gtl_lightning.evaluation.overlap import advise

    device = device_of(params)
    network = open_network(MODELS / cell.name / "noised.safetensors").to(device)
    source_val = corpus.dataset("source_val")
    levels = diagnose_levels(network, source_val, target_val, corpus.mask_index, schedule(params.schedule), device)
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
