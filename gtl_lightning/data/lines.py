"""Bytes of a file, a pipe or standard input, opened once, unpacked by what they hold -> lines, in constant memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from gtl_lightning.errors import UserError
from gtl_lightning.files import writing

Progress = Callable[[int, int], object]
"""Told how much of something is done, and of how much."""
Display = Callable[[str], AbstractContextManager[Progress]]
"""Shows the progress of what it is given the name of."""

LONGEST_LINE = 1 << 24
STANDARD_INPUT = "-"

_BUFFER = 1 << 20
_SNIFFED = 512
_TAR, _TAR_AT = b"ustar", 257
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_OPENING = b'{[" \t\r\n'  # what JSON may begin with; in UTF-16 a zero byte lies beside it
_APPLE = "__MACOSX/"  # what macOS adds to an archive beside each file
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_OPENERS: dict[bytes, tuple[str, Callable[[Any], Any]]] = {
    _GZIP: ("gzip", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    b"\xfd7zXZ\0": ("xz", lzma.LZMAFile),
    b"BZh": ("bzip2", bz2.BZ2File),
}
_FOREIGN = {b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"), b"7z\xbc\xaf": ("7z", "7z x -so")}
_DAMAGE = (EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


def unseen(done: int, total: int) -> None:
    """The progress of what nobody watches."""


def no_display(what: str) -> AbstractContextManager[Progress]:
    """Shows nothing."""
    return nullcontext(unseen)


def shown(path: Path | str) -> str:
    """What messages call a source."""
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def read_lines(path: Path | str, name: str | None = None, progress: Progress = unseen) -> Iterator[tuple[int, bytes]]:
    """Stream (line number from 1, bytes) of a plain or compressed file; see `lines_of`.

    Args:
        path: the file.
        name: what messages call it, where it is a copy.
        progress: told the bytes read and the file's size.

    Raises:
        UserError: missing or unreadable file, truncated or damaged compression.
    """
    with open_source(path, progress) as raw, unpacked(raw, name or path) as file:
        yield from lines_of(file)


def lines_of(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Stream (line number from 1, bytes); a line beyond 16 MiB comes as its first part, the rest is passed over."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        yield number, line
        while not line.endswith(b"\n") and line:
            line = file.readline(LONGEST_LINE)


@contextmanager
def open_source(path: Path | str, progress: Progress = unseen) -> Iterator[IO[bytes]]:
    """Open a file, a named pipe or, for "-", standard input: once, so that a pipe loses nothing.

    Args:
        path: of the source.
        progress: told the bytes read and the size, where there is one.

    Raises:
        UserError: missing, unreadable, or a file that something else was writing while it was read.
    """
    name = shown(path)
    try:
        if str(path) == STANDARD_INPUT:  # its own object on the same descriptor: standard input itself stays open
            raw = open(sys.stdin.fileno(), "rb", _BUFFER, closefd=False)  # noqa: SIM115 - closed below
        else:
            raw = open(path, "rb", _BUFFER)  # noqa: SIM115
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


@contextmanager
def unpacked(raw: IO[bytes], path: Path | str, room: Path | None = None) -> Iterator[IO[bytes]]:
    """The text in a stream: gzip, xz, bzip2 and zip are told by content, one within another too; `raw` stays open.

    Args:
        raw: buffered, at its beginning.
        path: what messages name.
        room: folder for a copy of a zip archive that comes through a pipe, since its table lies at the end.

    Raises:
        UserError: a format that is not read here, or an archive that does not say which of its files is meant. Reading
            raises it too, for what is truncated or damaged.
    """
    head = raw.peek(_SNIFFED)[:_SNIFFED]  # type: ignore[attr-defined]  # every stream here is buffered
    name = shown(path)
    if head[_TAR_AT:].startswith(_TAR):
        raise UserError(f"{name} is a tar archive; unpack it first, or use `tar -xOf FILE MEMBER | gtl data import -`")
    if _is_utf16(head):
        raise UserError(f"{name} is UTF-16 and must be UTF-8; use `iconv -f UTF-16 -t UTF-8 FILE | gtl data import -`")
    for magic, (kind, program) in _FOREIGN.items():
        if head.startswith(magic):
            raise UserError(
                f"{name} is packed with {kind}, which is not read here; use `{program} FILE | gtl data import -`"
            )
    if head.startswith(_ZIP):
        with _member(raw, name, room) as packed, unpacked(tapped(packed, name, "zip"), path, room) as file:
            yield file
        return
    for magic, (kind, opener) in _OPENERS.items():
        if head.startswith(magic):
            with opener(raw) as packed, unpacked(tapped(packed, name, kind), path, room) as file:
                yield file
            return
    yield raw


def _is_utf16(head: bytes) -> bool:
    """By its byte order mark, or by the zero byte before or after the first character of JSON."""
    first = head[:2]
    return first in _UTF16 or (len(text := first.strip(b"\0")) == 1 and 0 in first and text in _OPENING)


def tapped(
    inner: IO[bytes],
    path: Path | str,
    kind: str = "",
    *,
    copy: Callable[[Any], object] | None = None,
    passed: Callable[[], object] | None = None,
) -> IO[bytes]:
    """A stream that reads `inner`: `copy` gets every byte, `passed` is called after each read, errors name `path`."""
    return io.BufferedReader(_Tap(inner, shown(path), kind, copy, passed), _BUFFER)


def is_gzip(raw: IO[bytes]) -> bool:
    """Whether a buffered stream goes on with gzip."""
    return bool(raw.peek(_SNIFFED)[:2] == _GZIP)  # type: ignore[attr-defined]


def drain(file: IO[bytes]) -> None:
    """Read to the end."""
    while file.read(_BUFFER):
        pass


@contextmanager
def open_gzip(path: Path | str, level: int = 6) -> Iterator[gzip.GzipFile]:
    """Open a gzip file for writing whose bytes depend on the content alone: no name and no time in its header."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", level, raw, mtime=0) as file:
        yield file


class _Tap(io.RawIOBase):
    def __init__(
        self,
        inner: IO[bytes],
        name: str,
        kind: str,
        copy: Callable[[Any], object] | None,
        passed: Callable[[], object] | None,
    ) -> None:
        self._inner, self._name, self._kind, self._copy, self._passed = inner, name, kind, copy, passed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._copy is None and self._inner.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._inner.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        try:
            count = int(self._inner.readinto(buffer))  # type: ignore[attr-defined]
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the system's; the unpackers give no number
                raise UserError(f"cannot read {self._name}: {error.strerror or error}") from error
            raise UserError(
                f"{self._name} is a truncated or damaged {self._kind} file ({error}); fetch it again"
            ) from error
        if self._copy is not None and count:
            self._copy(memoryview(buffer)[:count])
        if self._passed is not None:
            self._passed()
        return count


@contextmanager
def _member(raw: IO[bytes], name: str, room: Path | None) -> Iterator[IO[bytes]]:
    """The one file of a zip archive, or the one among several that ends in .json or .jsonl."""
    if raw.seekable():
        with _opened_member(raw, name) as member:
            yield member
        return
    with tempfile.TemporaryFile(dir=room) as copy:
        with writing(room or tempfile.gettempdir()):
            shutil.copyfileobj(tapped(raw, name), copy, _BUFFER)
        with _opened_member(copy, name) as member:
            yield member


@contextmanager
def _opened_member(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    try:
        archive = zipfile.ZipFile(file)
        members = [
            member for member in archive.infolist() if not member.is_dir() and not member.filename.startswith(_APPLE)
        ]
        if len(members) != 1:
            named = [member for member in members if member.filename.endswith((".json", ".jsonl"))]
            if len(named) != 1:
                found = ", ".join(member.filename for member in members[:10]) or "none"
                raise UserError(f"{name} holds {len(members)} files ({found}); import one of them, unpacked")
            members = named
        member = archive.open(members[0])
    except (*_DAMAGE, NotImplementedError, RuntimeError) as error:  # the latter two: a method or a password
        raise UserError(f"{name} is a zip file that cannot be unpacked ({error}); unpack it yourself") from error
    with archive, member:
        yield member
