"""Where the frozen networks of a cell lie: those that its recipe reads, and the denoiser that it samples from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gtl_lightning.methods import FINETUNED, guides
from gtl_lightning.methods.method import Role
from gtl_lightning.records import read_record
from gtl_lightning.workspace.paths import MODELS, NETWORK, RESULT, SOURCE, Cell

if TYPE_CHECKING:
    from gtl_lightning.networks.adapters.origin import Origin

OF_OTHERS = "of_others"
"""In the result of the source: the model of other people that it is."""


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


def of_others() -> Origin | None:
    """The model of other people that the source is, as it was imported; None for one that was trained here.

    Raises:
        UserError: no source was made yet, or its result is damaged.
    """
    from gtl_lightning.networks.adapters.origin import ORIGIN, Origin

    said = read_record(SOURCE.parent / RESULT, {f"{OF_OTHERS}?": ORIGIN}).get(OF_OTHERS)
    return Origin(**said) if said else None
