"""Every file that somebody else may have put there is opened here: once, a regular file, of a bounded size.

A pipe or a device in a file's place would be waited for, or read, without end. What is checked is what was opened, not
what bears the name a moment later.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from gtl_lightning.errors import UserError

REMEDY = "run the stage that makes it (`dvc repro`)"
LARGEST_TEXT = 1 << 26
"""Bytes of a text that is read whole; JSON takes some ten times as much memory."""
KINDS = {
    stat.S_IFDIR: os.strerror(errno.EISDIR),
    stat.S_IFIFO: "Is a pipe",
    stat.S_IFCHR: "Is a device",
    stat.S_IFBLK: "Is a device",
    stat.S_IFSOCK: "Is a socket",
}


@contextmanager
def reading(path: Path | str, remedy: str = REMEDY) -> Iterator[None]:
    """What the machine refuses inside is one line that names `path`.

    Raises:
        UserError: missing, a folder, no permission, a failing disk.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {remedy}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot read {path}: {reason}; it must be a readable file, {remedy}") from error


@contextmanager
def open_regular(path: Path | str, remedy: str = REMEDY) -> Iterator[BufferedReader]:
    """Open a regular file, without waiting for another process.

    Raises:
        UserError: missing, cannot be read, or a folder, a pipe, a device, a socket.
    """
    with reading(path, remedy), open(path, "rb", opener=regular) as file:
        yield file


@contextmanager
def named_regular(path: Path | str, remedy: str = REMEDY) -> Iterator[str]:
    """A name for what `open_regular` opened, for libraries that open by name themselves: the file that was looked at.

    Raises:
        UserError: as `open_regular`.
    """
    with open_regular(path, remedy) as file:
        yield f"/dev/fd/{file.fileno()}"


def read_text(path: Path | str, most: int = LARGEST_TEXT, remedy: str = REMEDY) -> str:
    """A regular file's UTF-8 text.

    Args:
        path: the file.
        most: bytes that it may have.
        remedy: what to do where it cannot be read.

    Raises:
        UserError: as `open_regular`; more than `most` bytes.
        UnicodeDecodeError: no UTF-8.
    """
    with open_regular(path, remedy) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} has more than {most >> 10} KiB, which no such file has; {remedy}")
    return content.decode("utf-8")


def check_regular(folder: Path) -> None:
    """Refuse a folder that holds anything but files and folders, before a library opens what is in it by name.

    Raises:
        UserError: naming it.
    """
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            with open_regular(path):
                pass


def regular(path: str, flags: int) -> int:
    """What `open` takes as its opener, for regular files alone.

    Raises:
        OSError: cannot be opened, or is something else.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer is opened, not awaited
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, KINDS.get(kind, "Is no regular file"), path)
    return descriptor
