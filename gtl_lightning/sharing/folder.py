"""A folder that appears whole, under a name that nothing had."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gtl_lightning.errors import UserError
from gtl_lightning.files import writing


def check_new(folder: Path) -> None:
    """Raise UserError unless a folder of that name can be made, or one is there and is empty."""
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        what = "a folder that is not empty" if folder.is_dir() else "no folder"
        raise UserError(f"{folder} is {what}; give the name of a new one")


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty folder that takes the name `path` on success; on any failure nothing is there.

    Raises:
        UserError: something that is not an empty folder has that name, or it cannot be written.
    """
    path = Path(path)
    check_new(path)
    with writing(path):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
        try:
            yield staged
            staged.chmod(0o777 & ~_umask())
            os.replace(staged, path)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _umask() -> int:
    os.umask(mask := os.umask(0o022))
    return mask
