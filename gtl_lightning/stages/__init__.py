"""One function per stage: `gtl COMMAND`, the `cmd` in dvc.yaml and the flows' tasks all end here.

A stage's module is imported when it is first asked for: what a stage runs is what its own module imports, and a change
elsewhere makes nothing of it stale.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gtl_lightning.stages.bench import bench
    from gtl_lightning.stages.data import data_download, data_import, data_sample, split, tokenize
    from gtl_lightning.stages.evaluate import ablation, evaluate
    from gtl_lightning.stages.markov import markov_cells, markov_report, markov_source
    from gtl_lightning.stages.markov_overlap import markov_overlap
    from gtl_lightning.stages.register import load_model, register
    from gtl_lightning.stages.report import report
    from gtl_lightning.stages.sample import sample_cell, sample_model
    from gtl_lightning.stages.tradeoff import tradeoff
    from gtl_lightning.stages.train import train_cell, train_classifier, train_judge, train_planner, train_source

__all__ = [
    "ablation",
    "bench",
    "data_download",
    "data_import",
    "data_sample",
    "evaluate",
    "load_model",
    "markov_cells",
    "markov_overlap",
    "markov_report",
    "markov_source",
    "register",
    "report",
    "sample_cell",
    "sample_model",
    "split",
    "tokenize",
    "tradeoff",
    "train_cell",
    "train_classifier",
    "train_judge",
    "train_planner",
    "train_source",
]

HOMES = {
    "bench": ("bench",),
    "data": ("data_download", "data_import", "data_sample", "split", "tokenize"),
    "evaluate": ("ablation", "evaluate"),
    "markov": ("markov_cells", "markov_report", "markov_source"),
    "markov_overlap": ("markov_overlap",),
    "register": ("load_model", "register"),
    "report": ("report",),
    "sample": ("sample_cell", "sample_model"),
    "tradeoff": ("tradeoff",),
    "train": ("train_cell", "train_classifier", "train_judge", "train_planner", "train_source"),
}


def __getattr__(name: str) -> Any:
    """Import a stage's module, light as it is, when the stage is first asked for."""
    home = next((home for home, names in HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
