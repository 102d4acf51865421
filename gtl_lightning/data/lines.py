"""A file, a pipe or standard input, opened once -> lines, in constant memory."""

from __future__ import annotations

import gzip
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO

from gtl_lightning.data.packed import BUFFER, STANDARD_INPUT, shown, tapped, unpacked
from gtl_lightning.errors import UserError
from gtl_lightning.inputs import regular

Progress = Callable[[int, int], object]
"""Told how much of something is done, and of how much."""
Display = Callable[[str], AbstractContextManager[Progress]]
"""Shows the progress of what it is given the name of."""

LONGEST_LINE = 1 << 24
LONGEST_PASSED_OVER = 1 << 28
"""Bytes of a line from which on a source is none of lines: a device that gives zeros has no end."""


def unseen(done: int, total: int) -> None:
    """The progress of what nobody watches."""


def no_display(what: str) -> AbstractContextManager[Progress]:
    """Shows nothing."""
    return nullcontext(unseen)


def read_lines(path: Path | str, name: str | None = None, progress: Progress = unseen) -> Iterator[tuple[int, bytes]]:
    """Stream (line number from 1, bytes) of a plain or compressed file; see `lines_of`.

    Args:
        path: the file.
        name: what messages call it, where it is a copy.
        progress: told the bytes read and the file's size.

    Raises:
        UserError: missing or unreadable file, truncated or damaged compression.
    """
    with open_source(path, progress, awaits=False) as raw, unpacked(raw, name or path) as file:
        yield from lines_of(file, name or path)


def lines_of(file: IO[bytes], path: Path | str) -> Iterator[tuple[int, bytes]]:
    """Stream (line number from 1, bytes); a line beyond 16 MiB comes as its first part, the rest is passed over.

    Raises:
        UserError: a line without an end in sight, naming `path`.
    """
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        yield number, line
        passed = len(line)
        while not line.endswith(b"\n") and line:
            line = file.readline(LONGEST_LINE)
            passed += len(line)
            if passed > LONGEST_PASSED_OVER:
                raise UserError(
                    f"{shown(path)}, line {number} has more than {LONGEST_PASSED_OVER >> 20} MiB; give JSON lines, one "
                    "record each"
                )


@contextmanager
def open_source(path: Path | str, progress: Progress = unseen, *, awaits: bool = True) -> Iterator[IO[bytes]]:
    """Open a file, a named pipe or, for "-", standard input: once, so that a pipe loses nothing.

    Args:
        path: of the source.
        progress: told the bytes read and the size, where there is one.
        awaits: what another process writes, too; else regular files alone are opened.

    Raises:
        UserError: missing, unreadable, or a file that something else was writing while it was read.
    """
    name = shown(path)
    try:
        if str(path) == STANDARD_INPUT:  # its own object on the same descriptor: standard input itself stays open
            raw = open(sys.stdin.fileno(), "rb", BUFFER, closefd=False)  # noqa: SIM115 - closed below
        else:
            raw = open(path, "rb", BUFFER, opener=None if awaits else regular)  # noqa: SIM115
        before = os.fstat(raw.fileno())
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; get data first: `gtl data sample`, `gtl data import PATH` or `gtl data download`"
        ) from error
    except (AttributeError, ValueError) as error:  # closed
        raise UserError(f"{name} is closed; give a file") from error
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}; give a readable file") from error
    with raw:
        size = before.st_size if stat.S_ISREG(before.st_mode) else 0
        yield tapped(raw, path, passed=(lambda: progress(raw.tell(), size)) if size else None)
        after = os.fstat(raw.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) and size:
            raise UserError(f"{name} changed while it was read; run the command again once it is whole")


def drain(file: IO[bytes]) -> None:
    """Read to the end."""
    while file.read(BUFFER):
        pass


@contextmanager
def open_gzip(path: Path | str, level: int = 6) -> Iterator[gzip.GzipFile]:
    """Open a gzip file for writing whose bytes depend on the content alone: no name and no time in its header."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", level, raw, mtime=0) as file:
        yield file
