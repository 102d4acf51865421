"""What a cell's training took: its own fits, what its recipe prepared, and the networks of the cell that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gtl_lightning.records import Values, read_record
from gtl_lightning.workspace.frozen import guided_files
from gtl_lightning.workspace.paths import MODELS, RESULT, Cell, run_of


def training_costs(cell: Cell) -> dict[str, Any]:
    """Columns of reports/transfer.json; None where one is unknown, all of them for the untouched source.

    Of the cell's own fits: `fit_seconds`, of the processor, all learning rates and members that were tried, and
    `peak_bytes`, by which they raised the memory in use. `prepare_seconds`: what its recipe did before, texts weighed
    or drawn. `needs_seconds`: what trained the networks that it reads and that are of this cell alone, a classifier
    for borrowed texts, a fine-tuned denoiser to be guided; methods that read the same one are each charged for it, as
    whoever runs one method alone is. `cost_seconds` is the sum of the three. `train_seconds` is by the clock, of the
    cell's own fits and of a fine-tuned denoiser.
    """
    if cell.fraction is None:
        return dict.fromkeys(COLUMNS)
    own = run_of(MODELS / cell.name / RESULT)
    needed = _sum([run_of(path).get("compute_seconds") for path in _needed(cell)])
    parts = [own.get("compute_seconds"), own.get("prepare_seconds"), needed]
    return dict(zip(COLUMNS, (_by_clock(cell), *parts, _sum(parts), own.get("peak_bytes")), strict=True))


COLUMNS = ("train_seconds", "fit_seconds", "prepare_seconds", "needs_seconds", "cost_seconds", "peak_bytes")


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return round(sum(known), 2) if len(known) == len(parts) else None


def _needed(cell: Cell) -> list[Path]:
    """Results of the trained networks that the cell reads and that were trained for its share and seed."""
    read = read_record(MODELS / cell.name / RESULT, {"read?": Values(str)}).get("read", {})
    shared = f"-{cell.fraction}-{cell.seed}"
    files = [Path(name) for name in sorted(read) if Path(name).parent.name.endswith(shared)]
    return [path.with_name(RESULT if path.stem == "network" else f"{path.stem}.json") for path in files]


def _by_clock(cell: Cell) -> float | None:
    trained = [MODELS / cell.name / RESULT, *(path for path in guided_files(cell) if path.name == RESULT)]
    return _sum([run_of(path).get("seconds") for path in trained])
