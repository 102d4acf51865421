"""Every file is read and written here: whole or absent, checked when read, one line when the machine refuses.

Written to a temporary name and renamed. Weights travel as safetensors only, with a hash of their own content; JSON that
a run is continued from carries one too (records.py). The hashes detect damage. They are no signature: whoever can write
a file can also write its hash.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.errors import UserError
from gtl_lightning.inputs import named_regular, open_regular, read_text

if TYPE_CHECKING:
    from torch import Tensor

HEADER, SEAL = "gtl", "sha256"


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """What the machine refuses inside is one line that names `path`.

    Raises:
        UserError: full disk, read-only folder, a file in place of a folder, no permission.
        MemoryError: there is no memory, which no other folder mends.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; choose a writable folder with free space") from error


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any failure it is removed.

    Raises:
        UserError: the folder cannot be written, or the path ends in no name.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{str(path)!r} names no file; add a file's name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # a folder that cannot be made has no temporary file either
            temporary.unlink()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards.

    Raises:
        UserError: the system's folder for temporary files cannot be written, before or inside.
    """
    with writing("the folder for temporary files (TMPDIR)"), tempfile.TemporaryDirectory(prefix="gtl-") as folder:
        yield Path(folder)


def make_folder(path: Path | str) -> None:
    """Make a folder and those around it, if they are missing.

    Raises:
        UserError: it cannot be made.
    """
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def remove(*paths: Path) -> None:
    """Remove files, those that exist.

    Raises:
        UserError: the folder cannot be written.
    """
    for path in paths:
        with writing(path):
            path.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, atomically.

    Raises:
        UserError: it cannot be read, or the target not be written.
    """
    with open_regular(source) as file, atomic_path(target) as temporary, open(temporary, "wb") as out:
        shutil.copyfileobj(file, out)


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


def check_place(folder: Path | str) -> None:
    """Refuse a folder that could not be written, before the work whose result goes there; nothing is left of it.

    Raises:
        UserError: naming the folder.
    """
    folder = Path(folder)
    with writing(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        finally:
            with suppress(OSError):
                for path in made:
                    path.rmdir()


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


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity become null, which every JSON reader accepts."""
    write_text(path, json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing, cannot be read, or is not JSON: NaN and infinity are none.
    """
    try:
        return decoded(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run its stage again") from error


def decoded(text: str) -> Any:
    """The value of a JSON text, in which a key stands once and every number is one.

    Raises:
        ValueError: no JSON, NaN, infinity, a number beyond those of the machine, a key twice.
        RecursionError: too deeply nested.
    """
    return json.loads(text, parse_constant=_no_number, parse_float=_finite_number, object_pairs_hook=_unique)


def save_tensors(path: Path | str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors as safetensors with `meta` (JSON-able) and the hash of both in the header, atomically.

    Raises:
        UserError: the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = json.loads(json.dumps(meta))
    # one entry: safetensors writes several in any order, and equal weights are to make equal files
    header = {HEADER: json.dumps({**content, SEAL: _tensor_hash(contiguous, content)}, sort_keys=True)}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=header)
        except SafetensorError as error:  # its own name for what the machine refuses
            raise OSError(re.sub(r".*error: | \(os error \d+\)", "", str(error))) from error


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Nothing in the file is executed.

    Raises:
        UserError: missing, truncated, damaged, not written by this project, or numbers that are not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with named_regular(path, "train it first (`dvc repro`)") as name, safe_open(name, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error}); delete it and train again") from error
    meta: Any = None
    with suppress(KeyError, ValueError, RecursionError):
        meta = decoded(header[HEADER])
    if not isinstance(meta, dict) or SEAL not in meta:
        raise UserError(
            f"{path} was not written by this project (no `gtl` header with a hash); give a checkpoint made by `gtl`"
        )
    if meta.pop(SEAL) != _tensor_hash(tensors, meta):
        raise UserError(f"{path} is damaged: its content does not fit its hash; delete it and train again")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {name} holds NaN or infinite numbers; delete it and train again")
    return tensors, meta


def sha256_file(path: Path | str) -> str:
    """Hex digest of a file, read in chunks.

    Raises:
        UserError: missing, or cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any, length: int = 12) -> str:
    """Short stable hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


def _tensor_hash(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Of names, types, shapes and bytes of contiguous tensors on the CPU, and of what describes them."""
    import torch

    found = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite_number(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _no_number(text[:20])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:100]!r} is given twice")
    return found


def finite(value: Any) -> Any:
    """The value as JSON keeps it: NaN and infinity become null, tuples lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
