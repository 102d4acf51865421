"""`gtl export` and `gtl push`: a finished cell as a folder that stands alone, here or in a repository of a hub."""

from __future__ import annotations

from pathlib import Path

from gtl_lightning.data.origin import read_provenance
from gtl_lightning.errors import UserError
from gtl_lightning.files import load_tensors, make_folder
from gtl_lightning.records import read_record
from gtl_lightning.sharing.card import Card
from gtl_lightning.sharing.folder import check_new, new_folder
from gtl_lightning.sharing.hub import check_repository, licence_of, push
from gtl_lightning.workspace.bundle import bundle_files, write_bundle
from gtl_lightning.workspace.card import model_card
from gtl_lightning.workspace.frozen import denoiser_path, of_others
from gtl_lightning.workspace.options import SOURCE_METHOD
from gtl_lightning.workspace.origin import origin
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import CELLS, DATA, ROW, Cell, log


def export_cell(params: Params, cell: Cell, folder: Path, licence: str | None = None) -> None:
    """Write a finished cell into a new folder: what the registry holds of it, with its card.

    Args:
        params: of the workspace.
        cell: evaluated.
        folder: not there yet, or empty.
        licence: of what the source was made from; None takes what the data say of themselves.

    Raises:
        UserError: the cell is not finished or damaged, or the folder is not new or cannot be written.
    """
    check_new(folder)
    card = _card(params, cell, "FOLDER", licence)
    with new_folder(folder) as staged:
        write_bundle(params, cell, staged, card)
    log.info("%s: %s", folder, cell)


def push_cell(params: Params, cell: Cell, name: str, *, private: bool = False, licence: str | None = None) -> None:
    """Put a finished cell into the repository OWNER/NAME of a hub, by one commit.

    Args:
        params: of the workspace.
        cell: evaluated.
        name: OWNER/NAME; made if it is not there.
        private: whether its owner alone sees it.
        licence: as in `export_cell`.

    Raises:
        UserError: no such name, a cell that is not finished or damaged; as `sharing.hub.push`.
    """
    check_repository(name)
    card = _card(params, cell, name, licence)

    def make(folder: Path) -> None:
        make_folder(folder)
        write_bundle(params, cell, folder, card)

    log.info("%s", push(make, name, private=private, message=str(cell)))


def _card(params: Params, cell: Cell, name: str, licence: str | None) -> Card:
    """What is said of a finished cell, all of whose files were read.

    Raises:
        UserError: it is none, or a file of it is missing or damaged.
    """
    if licence is not None and not licence.strip():
        raise UserError(f"--license {licence!r} names no licence; write it as its owner does, or leave it out")
    if cell.method == SOURCE_METHOD:
        raise UserError(f"{cell.name} is the untouched source, no trained cell; give one of the others below {CELLS}/")
    if not (CELLS / cell.name / ROW).is_file():
        raise UserError(f"cell {cell.name} is not finished: {CELLS / cell.name / ROW} is missing; `dvc repro` makes it")
    bundle_files(params, cell)
    row, data = read_record(CELLS / cell.name / ROW), read_provenance(DATA)
    _check_whole(cell)
    others = of_others()
    return model_card(
        cell,
        row,
        data,
        name=name,
        commit=origin()["git_commit"],
        licence=licence or (licence_of(others.name) if others else None),
        base=others,
    )


def _check_whole(cell: Cell) -> None:
    """Refuse a cell whose frozen denoiser lies in a folder of this machine, where nobody else finds it.

    Raises:
        UserError: naming the folder.
    """
    path = denoiser_path(cell)
    named = load_tensors(path)[1].get("network", {}).get("origin")
    if isinstance(named, dict) and named.get("revision") is None:
        raise UserError(
            f"{path} names weights in {named.get('name')}, which this machine alone has; keep them in the project: "
            f"gtl source import {named.get('name')} --copy, then gtl sweep"
        )
