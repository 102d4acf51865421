"""One function per stage: `gtl COMMAND`, the `cmd` in dvc.yaml and the flows' tasks all end here."""

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
