"""Where the frozen networks of a cell lie: those that its recipe reads, and the denoiser that it samples from."""

from __future__ import annotations

from pathlib import Path

from gtl_lightning.methods import FINETUNED, guides
from gtl_lightning.methods.method import Role
from gtl_lightning.workspace.paths import MODELS, NETWORK, RESULT, SOURCE, Cell


def frozen_path(role: Role, cell: Cell) -> Path:
    """The file of a network that the cell reads and does not train; classifiers are those of its own target texts."""
    if role == "source":
        return SOURCE
    method, part = (FINETUNED, NETWORK) if role == "finetuned" else ("classifier", f"{role}.safetensors")
    return MODELS / Cell(method, cell.fraction, cell.seed).name / part


def denoiser_path(cell: Cell) -> Path:
    """The file of the denoiser that the cell samples from: the one that it guides, or its own."""
    guided = guides(cell.method)
    if guided or cell.fraction is None:
        return frozen_path(guided or "source", cell)
    return MODELS / cell.name / NETWORK


def guided_files(cell: Cell) -> list[Path]:
    """Files of the frozen denoiser that the cell guides; with what it came to, where it was trained for this cell."""
    if not guides(cell.method):
        return []
    network = denoiser_path(cell)
    return [network] if network == SOURCE else [network, network.parent / RESULT]
