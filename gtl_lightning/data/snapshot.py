"""Raw records: a stream of JSON lines, plain or gzipped, in constant memory; nothing is dropped silently."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from gtl_lightning.errors import UserError
from gtl_lightning.files import atomic_path, sha256_file, write_json

SNAPSHOT = "snapshot.jsonl.gz"
PROVENANCE = "provenance.json"

#: Our name -> the file's name for every field that is read.
FIELDS: Mapping[str, str] = {"id": "id", "title": "title", "categories": "categories", "abstract": "abstract"}

#: Causes that count as damage (duplicates do not).
MALFORMED, MISSING_FIELD, EMPTY_ABSTRACT = DAMAGE = ("malformed", "missing-field", "empty-abstract")

_BUFFER = 1 << 20
_decode = json.JSONDecoder().decode
_LONGEST_LINE = 1 << 24
_HOPELESS_LINES = 1000
_PEEK = 100


class Record(NamedTuple):
    """One abstract. `line` counts from 1; runs of blanks in `abstract` are one blank."""

    line: int
    id: str
    title: str
    categories: str
    abstract: str

    @property
    def archive(self) -> str:
        """Archive of the primary category: "cs" for "cs.LG stat.ML"."""
        return archive(self.categories)


class Problem(NamedTuple):
    """A line that is no usable record, why, and its id where one could be read."""

    line: int
    cause: str
    id: str | None


def archive(categories: str) -> str:
    """Archive of the first category: the text before its dot ("" when there is none)."""
    return categories.partition(" ")[0].partition(".")[0]


def check_fields(fields: Mapping[str, str] | None) -> dict[str, str]:
    """Complete a field mapping with the defaults.

    Raises:
        UserError: a key that is none of ours.
    """
    given = dict(fields or {})
    if unknown := sorted(set(given) - set(FIELDS)):
        raise UserError(f"unknown field {unknown[0]!r} in the field mapping; its keys are {', '.join(FIELDS)}")
    return {**FIELDS, **given}


def read_records(path: Path | str, fields: Mapping[str, str] | None = None) -> Iterator[Record | Problem]:
    """Stream a snapshot: a `Record` per usable line, a `Problem` per other line; blank lines are skipped.

    Args:
        path: JSON lines, plain or gzipped (told by content, not by name).
        fields: our field name -> the file's; `title` is optional in the file, the others are not.

    Raises:
        UserError: missing, unreadable or empty file, truncated gzip, or no JSON line in it.
    """
    names = check_fields(fields)
    hopeless: list[Problem] | None = []
    for number, line in read_lines(path):
        if not line.strip():
            continue
        record = _parse(number, line, names)
        if hopeless is not None:
            if isinstance(record, Problem) and record.cause == MALFORMED:
                hopeless.append(record)
                if len(hopeless) >= _HOPELESS_LINES:
                    break
                continue
            yield from hopeless
            hopeless = None
        yield record
    if hopeless:
        raise UserError(
            f"{path} is not JSON: none of its first {len(hopeless)} lines is a JSON object; give JSON lines"
        )
    if hopeless is not None:
        raise UserError(f"{path} is empty; give a snapshot with one JSON object a line")


def read_lines(path: Path | str) -> Iterator[tuple[int, bytes]]:
    """Stream (line number from 1, bytes) of a plain or gzipped file; a line beyond 16 MiB comes as its first part.

    Raises:
        UserError: missing or unreadable file, truncated or damaged gzip.
    """
    with _open(path) as file:
        number, partial = 0, False
        while True:
            try:
                line = file.readline(_LONGEST_LINE)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(f"{path} is a truncated or damaged gzip file ({error}); fetch it again") from error
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror or error}") from error
            if not line:
                return
            if not partial:
                number += 1
                yield number, line
            partial = not line.endswith(b"\n")


def import_snapshot(path: Path | str, folder: Path | str, fields: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Copy a snapshot to `folder`/snapshot.jsonl.gz (atomically; gzipped reproducibly if plain), with its provenance.

    The first records are checked before anything is copied, the rest for a whole gzip stream while it is.

    Returns:
        The provenance: kind, records (non-blank lines), sha256, generated, fields, name.

    Raises:
        UserError: a file that `read_records` refuses, or none of whose first records is usable; an unwritable folder.
    """
    names = check_fields(fields)
    first = list(islice(read_records(path, names), _PEEK))
    problems = [record for record in first if isinstance(record, Problem)]
    if len(problems) == len(first):
        raise UserError(
            f"{path}: none of the first {len(first)} records is usable (line {problems[0].line}: "
            f"{problems[0].cause}); map its field names to {', '.join(FIELDS)}"
        )
    target = Path(folder) / SNAPSHOT
    compressed = _is_gzip(path)
    lines = 0
    with atomic_path(target) as temporary:
        if compressed:
            lines = sum(1 for _, line in read_lines(path) if line.strip())
            _copy(path, temporary)
        else:
            with open_gzip(temporary) as out:
                for _, line in read_lines(path):
                    out.write(line)
                    lines += bool(line.strip())
    return write_provenance(
        folder,
        kind="import",
        records=lines,
        generated=any(_is_generated(line) for _, line in islice(read_lines(target), _PEEK)),
        name=Path(path).name,
        fields=names,
    )


@contextmanager
def open_gzip(path: Path | str, level: int = 6) -> Iterator[gzip.GzipFile]:
    """Open a gzip file for writing whose bytes depend on the content alone: no name and no time in its header."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", level, raw, mtime=0) as file:
        yield file


def write_provenance(
    folder: Path | str, *, kind: str, records: int, generated: bool = False, **more: Any
) -> dict[str, Any]:
    """Write provenance.json beside the snapshot: where it came from, how many records, its sha256."""
    provenance = {
        "kind": kind,
        "records": records,
        "sha256": sha256_file(Path(folder) / SNAPSHOT),
        "generated": generated,
        **more,
    }
    write_json(Path(folder) / PROVENANCE, provenance)
    return provenance


def _parse(number: int, line: bytes, names: Mapping[str, str]) -> Record | Problem:
    try:
        # A brace before anything but a zero byte can only be UTF-8; `json.loads` would look for other encodings.
        plain = line[:1] == b"{" and line[1:2] != b"\0"
        value = _decode(line.decode("utf-8", "surrogatepass")) if plain else json.loads(line)
    except (ValueError, RecursionError):
        return Problem(number, MALFORMED, None)
    if not isinstance(value, dict):
        return Problem(number, MALFORMED, None)
    identity, categories, abstract = (
        value.get(names["id"]),
        value.get(names["categories"]),
        value.get(names["abstract"]),
    )
    if isinstance(identity, int | float) and not isinstance(identity, bool):
        identity = str(identity)
    if not isinstance(identity, str) or not identity:
        return Problem(number, MISSING_FIELD, None)
    if isinstance(categories, list) and all(isinstance(category, str) for category in categories):
        categories = " ".join(categories)
    if not isinstance(categories, str) or not isinstance(abstract, str) or not categories.strip():
        return Problem(number, MISSING_FIELD, identity if identity.isprintable() else None)
    if not (abstract.isascii() and identity.isascii() and categories.isascii()) and not _encodable(
        abstract + identity + categories
    ):
        return Problem(number, MALFORMED, None)
    if not abstract.isprintable() or "  " in abstract or abstract[:1] == " " or abstract[-1:] == " ":
        abstract = " ".join(abstract.split())
    if not abstract:
        return Problem(number, EMPTY_ABSTRACT, identity)
    title = value.get(names["title"])
    return Record(number, identity, title if isinstance(title, str) else "", categories.strip(), abstract)


def _is_generated(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("generated") is True


def _encodable(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which no UTF-8 file can hold
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _open(path: Path | str) -> Iterator[IO[bytes]]:
    path = Path(path)
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{path} is empty; give a snapshot with one JSON object a line")
        raw = path.open("rb")
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; get data first: `gtl data sample`, `gtl data import PATH` or `gtl data download`"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give a readable file") from error
    with raw:
        if raw.peek(2)[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=raw, mode="rb") as unzipped:
                yield io.BufferedReader(unzipped, _BUFFER)
        else:
            yield raw


def _is_gzip(path: Path | str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _copy(path: Path | str, target: Path) -> None:
    with open(path, "rb") as source, open(target, "wb") as out:
        while chunk := source.read(_BUFFER):
            out.write(chunk)
