"""What `fit` keeps in its state folder, and reads back only if it is what was written.

`best.safetensors` and `result.json` carry hashes of their own content, checkpoints the checksums of their archive. What
is damaged is said and not used: the fit goes on from what is intact.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from gtl_lightning.errors import UserError, lacks_memory
from gtl_lightning.files import load_tensors, make_folder, read_json, remove, sha256_file, write_json, writing
from gtl_lightning.inputs import named_regular
from gtl_lightning.modules.base import TrainedModule
from gtl_lightning.modules.callbacks import BEST, LAST, PREVIOUS, Keeper
from gtl_lightning.networks.store import unshared
from gtl_lightning.records import read_sealed

log = logging.getLogger(__name__)
RESULT, SETTINGS = "result.json", "settings.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The state folder, made if need be, for this process alone.

    Raises:
        UserError: another process has it, or it cannot be written.
    """
    make_folder(folder)
    lock = FileLock(folder / "lock", timeout=0)
    with writing(folder):
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"{folder} is in use by another process; wait for it or stop it") from error
    try:
        remove(*folder.glob(".*.tmp"))  # of a process that was killed while it wrote
        yield
    finally:
        lock.release()


def finished(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """A finished fit's result and its best weights; None if there is none that is whole.

    Raises:
        UserError: it is of other settings.
    """
    if not (folder / RESULT).exists():
        return None
    try:
        stored = read_sealed(folder / RESULT, {"settings": dict, "result": dict, "best": str})
        check_settings(folder, stored["settings"], settings)
        if sha256_file(folder / BEST) != stored["best"]:
            raise UserError(f"{folder / BEST} is not what was written")
        return stored["result"], load_tensors(folder / BEST)[0]
    except ForeignStateError:
        raise
    except UserError as error:
        log.warning("%s: this fit had ended, and is made again", _fault(error))
        return None


def resumable(folder: Path, settings: dict[str, Any], keeper: Keeper, module: TrainedModule) -> Path | None:
    """The newest checkpoint that is whole, its numbers put into `keeper`; None to start from the beginning.

    Without whole best weights no checkpoint is of use: what they were best at cannot be had again from later ones.

    Raises:
        UserError: there are checkpoints and none can be read, or they belong to other settings or another network.
    """
    note = folder / SETTINGS
    if note.exists():
        check_settings(folder, read_json(note), settings)
    else:
        write_json(note, settings)
    candidates = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in candidates:
        try:
            checkpoint = _read_checkpoint(path)
            numbers = checkpoint["callbacks"][keeper.state_key]
            keeper.load_state_dict(numbers)
        except Exception as error:  # a damaged pickle or zip raises nearly anything
            if lacks_memory(error):
                raise
            log.warning("%s cannot be read (%s); trying the one before it", path, type(error).__name__)
            continue
        check_fits(folder, path.name, module.state_dict(), checkpoint["state_dict"])
        try:
            _check_best(folder, keeper.best_step, checkpoint["global_step"])
        except UserError as error:
            log.warning("%s: training starts from the beginning", _fault(error))
            remove(*candidates)
            keeper.forget()
            return None
        log.info("resuming from %s, step %d", path, checkpoint["global_step"])
        return path
    if candidates:
        raise UserError(f"no checkpoint in {folder} can be read; delete the folder to train from the start")
    return None


def restore_best(module: TrainedModule, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Put kept weights into the module's network.

    Raises:
        UserError: they do not fit.
    """
    check_fits(folder, BEST, unshared(module.network.state_dict()), tensors)
    with torch.no_grad():
        module.network.load_state_dict(tensors, strict=False)


def kept_best(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights that were best, at `step`.

    Raises:
        UserError: damaged, or of another step.
    """
    tensors, meta = load_tensors(folder / BEST)
    if meta.get("step") != step:
        raise UserError(f"{folder / BEST} is of step {meta.get('step')}, not {step}; delete {folder} and train again")
    return tensors


def check_settings(folder: Path, stored: Any, wanted: dict[str, Any]) -> None:
    """Refuse a state of other settings.

    Raises:
        UserError: naming them.
    """
    if stored != wanted:
        keys = [key for key in wanted if not isinstance(stored, dict) or stored.get(key) != wanted[key]]
        raise ForeignStateError(
            f"{folder} holds a fit with other settings ({', '.join(keys)}); delete it or use another folder"
        )


def check_fits(folder: Path, name: str, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Refuse weights of another network.

    Raises:
        UserError: other names or shapes.
    """
    if own.keys() != tensors.keys() or any(own[key].shape != tensors[key].shape for key in own):
        raise ForeignStateError(f"{folder / name} belongs to another network; delete {folder} and train again")


class ForeignStateError(UserError):
    """State that is whole, and of something else."""


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint whose archive fits its checksums: torch itself does not look at them. Nothing in it is executed."""
    with named_regular(path) as name:
        with zipfile.ZipFile(name) as archive:
            if entry := archive.testzip():
                raise zipfile.BadZipFile(entry)
        checkpoint: dict[str, Any] = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint


def _check_best(folder: Path, best_step: int, step: int) -> None:
    """The best weights are those of the checkpoint, or of a check after it: killed in between, it is repeated."""
    _, meta = load_tensors(folder / BEST)
    if meta.get("step") != best_step and not meta.get("step", 0) > step:
        raise UserError(f"{folder / BEST} is of step {meta.get('step')}, not {best_step}")


def _fault(error: UserError) -> str:
    """What is wrong, without what to do."""
    return str(error).partition(";")[0]
