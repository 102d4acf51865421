"""One function per stage: `gtl COMMAND`, the `cmd` in dvc.yaml and the flows' tasks all end here.

A stage's module is imported when it is first asked for: what a stage runs is what its own module imports, and a change
elsewhere makes nothing of it stale.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gtl_lightning.resources import check_address_space

if TYPE_CHECKING:
    from gtl_lightning.stages.asked import Draw
    from gtl_lightning.stages.bench import run_bench
    from gtl_lightning.stages.data import data_download, data_import, data_sample, split, tokenize
    from gtl_lightning.stages.evaluate import ablation, evaluate_cell
    from gtl_lightning.stages.markov import markov_cells, markov_source
    from gtl_lightning.stages.markov_overlap import measure_overlap
    from gtl_lightning.stages.markov_page import markov_report
    from gtl_lightning.stages.real import measure_real
    from gtl_lightning.stages.register import load_model, register_best
    from gtl_lightning.stages.report import make_report
    from gtl_lightning.stages.sample import sample_cell, sample_model
    from gtl_lightning.stages.tradeoff import measure_tradeoff
    from gtl_lightning.stages.train import train_cell, train_classifier, train_judge, train_planner, train_source

__all__ = [
    "Draw",
    "ablation",
    "data_download",
    "data_import",
    "data_sample",
    "evaluate_cell",
    "load_model",
    "make_report",
    "markov_cells",
    "markov_report",
    "markov_source",
    "measure_overlap",
    "measure_real",
    "measure_tradeoff",
    "register_best",
    "run_bench",
    "sample_cell",
    "sample_model",
    "split",
    "tokenize",
    "train_cell",
    "train_classifier",
    "train_judge",
    "train_planner",
    "train_source",
]

WITHOUT_TORCH = ("data",)
HOMES = {
    "asked": ("Draw",),
    "bench": ("run_bench",),
    "data": ("data_download", "data_import", "data_sample", "split", "tokenize"),
    "evaluate": ("ablation", "evaluate_cell"),
    "markov": ("markov_cells", "markov_source"),
    "markov_overlap": ("measure_overlap",),
    "markov_page": ("markov_report",),
    "real": ("measure_real",),
    "register": ("load_model", "register_best"),
    "report": ("make_report",),
    "sample": ("sample_cell", "sample_model"),
    "tradeoff": ("measure_tradeoff",),
    "train": ("train_cell", "train_classifier", "train_judge", "train_planner", "train_source"),
}


def __getattr__(name: str) -> Any:
    """Import a stage's module, light as it is, when the stage is first asked for."""
    home = next((home for home, names in HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home not in WITHOUT_TORCH:
        check_address_space()
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
