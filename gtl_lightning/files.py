"""Files that are either whole or absent: temporary name, then rename. Weights travel as safetensors only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any failure it is removed.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; choose a writable folder with free space") from error
    finally:
        with suppress(OSError):  # a folder that cannot be made has no temporary file either
            temporary.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity become null, which every JSON reader accepts."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run the stage that makes it (`dvc repro`)") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run its stage again") from error


def save_tensors(path: Path | str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors as safetensors with `meta` (JSON-able) in the header, atomically."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={"gtl": json.dumps(meta, sort_keys=True)})


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Nothing in the file is executed.

    Raises:
        UserError: missing, truncated, or not written by this project.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; train it first (`dvc repro`)")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error}); delete it and train again") from error
    if "gtl" not in header:
        raise UserError(f"{path} was not written by this project (no `gtl` header); give a checkpoint made by `gtl`")
    return tensors, json.loads(header["gtl"])


def sha256_file(path: Path | str) -> str:
    """Hex digest of a file, read in chunks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any, length: int = 12) -> str:
    """Short stable hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """What writes below `path`: a full disk, a folder that cannot be written and the like become one line.

    Raises:
        UserError: any OSError but the one that says there is no memory.
        MemoryError: that one.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; choose a writable folder with free space") from error


_STAGED, _READY = ".incoming", ".ready"


@contextmanager
def replacing(folder: Path | str) -> Iterator[Path]:
    """Yield an empty folder within `folder`; on success all that it holds takes the place of its namesakes, together.

    On any failure `folder` stays as it was. One rename decides: a crash before it leaves the old files, one after it
    the new ones, as soon as `settle` has run. Other files in `folder` are left alone. One process at a time.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        settle(folder)
        staged = folder / _STAGED
        staged.mkdir()
        try:
            yield staged
            for path in staged.rglob("*"):
                _to_disk(path)
            staged.rename(folder / _READY)
        finally:
            settle(folder)


def settle(folder: Path | str) -> None:
    """Finish what a crash left of `replacing`: files that were complete take their places, others are removed."""
    ready = Path(folder) / _READY
    if ready.is_dir():
        for path in ready.iterdir():
            target = Path(folder) / path.name
            if path.is_dir() and target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        ready.rmdir()
    shutil.rmtree(Path(folder) / _STAGED, ignore_errors=True)


def _to_disk(path: Path) -> None:
    # otherwise a power cut could keep the rename and lose the bytes
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
