"""Bytes, unpacked by what they hold: gzip, xz, bzip2 and zip, one within another too; what has no bound is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from gtl_lightning.errors import UserError
from gtl_lightning.files import writing

STANDARD_INPUT = "-"
BUFFER = 1 << 20
EXPANSION, FREE_EXPANSION = 200, 1 << 26
"""What is packed may become so many times as large, and so many bytes beyond. Abstracts become 3 to 6 times larger."""
LARGEST_TABLE = 1 << 20
"""Bytes of a zip archive's table of files: some ten thousand of them."""

_SNIFFED = 512
_TAR, _TAR_AT = b"ustar", 257
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_OPENING = b'{[" \t\r\n'  # what JSON may begin with; in UTF-16 a zero byte lies beside it
_APPLE = "__MACOSX/"  # what macOS adds to an archive beside each file
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_OPENERS: dict[bytes, tuple[str, Callable[[Any], Any]]] = {
    _GZIP: ("gzip", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    b"\xfd7zXZ\0": ("xz", lambda file: _Streams(file, lzma.LZMADecompressor)),
    b"BZh": ("bzip2", lambda file: _Streams(file, bz2.BZ2Decompressor)),
}
_FOREIGN = {b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"), b"7z\xbc\xaf": ("7z", "7z x -so")}
_DAMAGE = (EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


def shown(path: Path | str) -> str:
    """What messages call a source."""
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


@contextmanager
def unpacked(raw: IO[bytes], path: Path | str, room: Path | None = None) -> Iterator[IO[bytes]]:
    """The text in a stream: gzip, xz, bzip2 and zip are told by content, one within another too; `raw` stays open.

    Args:
        raw: buffered, at its beginning.
        path: what messages name.
        room: folder for a copy of a zip archive that comes through a pipe, since its table lies at the end.

    Raises:
        UserError: a format that is not read here, or an archive that does not say which of its files is meant. Reading
            raises it too, for what is truncated or damaged, and what becomes too large (`EXPANSION`).
    """
    with _unpacked(raw, shown(path), room, lambda: raw.raw.passed) as file:  # type: ignore[attr-defined]
        yield file


@contextmanager
def _unpacked(raw: IO[bytes], name: str, room: Path | None, packed: Callable[[], int]) -> Iterator[IO[bytes]]:
    head = raw.peek(_SNIFFED)[:_SNIFFED]  # type: ignore[attr-defined]  # every stream here is buffered
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
        with (
            _member(raw, name, room) as member,
            _unpacked(_bounded(member, name, "zip", packed), name, room, packed) as file,
        ):
            yield file
        return
    for magic, (kind, opener) in _OPENERS.items():
        if head.startswith(magic):
            with (
                opener(raw) as inner,
                _unpacked(_bounded(inner, name, kind, packed), name, room, packed) as file,
            ):
                yield file
            return
    yield raw


def _bounded(inner: IO[bytes], name: str, kind: str, packed: Callable[[], int]) -> IO[bytes]:
    """What `inner` unpacks, refused once it is far larger than what it is unpacked from, through all layers."""

    def check() -> None:
        if tap.passed > FREE_EXPANSION + EXPANSION * packed():
            raise UserError(
                f"{name} becomes more than {EXPANSION} times as large when it is unpacked, which no records do; "
                "unpack it yourself and look"
            )

    tap = _Tap(inner, name, kind, None, check)
    return io.BufferedReader(tap, BUFFER)


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
    return io.BufferedReader(_Tap(inner, shown(path), kind, copy, passed), BUFFER)


def is_gzip(raw: IO[bytes]) -> bool:
    """Whether a buffered stream goes on with gzip."""
    return bool(raw.peek(_SNIFFED)[:2] == _GZIP)  # type: ignore[attr-defined]


class _Tap(io.RawIOBase):
    def __init__(
        self,
        inner: IO[bytes],
        name: str,
        kind: str,
        copy: Callable[[Any], object] | None,
        passed: Callable[[], object] | None,
    ) -> None:
        self._inner, self._name, self._kind, self._copy, self._told = inner, name, kind, copy, passed
        self.passed = 0

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
        self.passed += count
        if self._told is not None:
            self._told()
        return count


class _Streams(io.RawIOBase):
    """Streams one behind the other, unpacked; what follows the first and is none is damage.

    `lzma.LZMAFile` and `bz2.BZ2File` take that for the end, and all records behind it would be missing unseen.
    """

    def __init__(self, packed: IO[bytes], begin: Callable[[], Any]) -> None:
        self._packed, self._begin = packed, begin
        self._stream = begin()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            fresh = b""
            if self._stream.eof:
                left = self._stream.unused_data.lstrip(b"\0")  # padding
                while not left:
                    if not (read := self._packed.read(BUFFER)):
                        return 0
                    left = read.lstrip(b"\0")
                self._stream, fresh = self._begin(), left
            elif self._stream.needs_input and not (fresh := self._packed.read(BUFFER)):
                raise EOFError("it ends within a stream")
            data = self._stream.decompress(fresh, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)


class _SmallPieces:
    """A file as zipfile reads it, whose table of files, which it takes in one piece, has to be small."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """A piece."""
        if size > LARGEST_TABLE:
            raise zipfile.BadZipFile("it lists too many files")
        return self._file.read(size)


@contextmanager
def _member(raw: IO[bytes], name: str, room: Path | None) -> Iterator[IO[bytes]]:
    """The one file of a zip archive, or the one among several that ends in .json or .jsonl."""
    if raw.seekable():
        with _opened_member(raw, name) as member:
            yield member
        return
    with tempfile.TemporaryFile(dir=room) as copy:
        with writing(room or tempfile.gettempdir()):
            shutil.copyfileobj(tapped(raw, name), copy, BUFFER)
        with _opened_member(copy, name) as member:
            yield member


@contextmanager
def _opened_member(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    try:
        archive = zipfile.ZipFile(cast("IO[bytes]", _SmallPieces(file)))
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
