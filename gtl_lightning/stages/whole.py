"""The pipeline in its order, one step after another in one process: what `gtl demo` and `gtl scale` run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path

from gtl_lightning.stages.data import split, tokenize
from gtl_lightning.stages.evaluate import ablation, evaluate_cell
from gtl_lightning.stages.real import measure_real
from gtl_lightning.stages.report import make_report
from gtl_lightning.stages.train import (
    train_causal,
    train_cell,
    train_classifier,
    train_judge,
    train_planner,
    train_source,
)
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import Cell

Step = tuple[str, Callable[[], object]]
"""In words, none as another, and what is run."""


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Inside, everything lies in `folder`, tracked runs too."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with chdir(folder):
        yield


def whole(params: Params, *records: Step) -> list[Step]:
    """All that the pipeline does with a grid, behind the steps that bring the records."""
    sweep = params.sweep
    learned = params.sampling.planner == "learned"
    return [
        *records,
        ("disjoint splits", partial(split, params)),
        ("tokens", partial(tokenize, params)),
        ("the causal model, where the source denoiser starts from one", partial(train_causal, params)),
        ("the source denoiser, which all that follows starts from", partial(train_source, params)),
        ("judge and reference model", partial(train_judge, params)),
        *([("the learned reveal order", partial(train_planner, params))] if learned else []),
        ("what real target texts measure", partial(measure_real, params)),
        *((f"domain classifiers at {100 * f:g} %, seed {s}", partial(train_classifier, params, f, s))
          for f, s in sweep.points),
        *(_measured(params, Cell("source", None, seed)) for seed in sweep.seeds),
        *(step for f, s in sweep.points for method in sweep.methods for step in _made(params, Cell(method, f, s))),
        ("the ratio at other strengths", partial(ablation, params, sweep.seeds[0])),
        ("the report", partial(make_report, params)),
    ]  # fmt: skip


def _made(params: Params, cell: Cell) -> Iterator[Step]:
    assert cell.fraction is not None
    yield f"{cell}: train", partial(train_cell, params, cell.method, cell.fraction, cell.seed)
    yield _measured(params, cell)


def _measured(params: Params, cell: Cell) -> Step:
    return f"{cell}: sample, measure", partial(evaluate_cell, params, cell.method, cell.fraction, cell.seed)
