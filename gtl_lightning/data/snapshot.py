"""Raw records: a stream of JSON lines, plain or compressed, in constant memory; nothing is dropped silently."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from gtl_lightning.data.lines import (
    LONGEST_LINE,
    Display,
    Progress,
    drain,
    lines_of,
    no_display,
    open_gzip,
    open_source,
    read_lines,
    unseen,
)
from gtl_lightning.data.origin import FIELDS, SNAPSHOT, Survey, check_fields, write_provenance
from gtl_lightning.data.packed import STANDARD_INPUT, is_gzip, shown, tapped, unpacked
from gtl_lightning.data.quarantine import Problem
from gtl_lightning.errors import UserError
from gtl_lightning.files import replacing

#: Causes that count as damage (duplicates do not).
MALFORMED, MISSING_FIELD, EMPTY_ABSTRACT = ("malformed", "missing-field", "empty-abstract")

_decode = json.JSONDecoder().decode
_HOPELESS_LINES = 1000
_PEEK = 100
_BETWEEN = re.compile(r"[\s,;]+")


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


def archive(categories: str) -> str:
    """Archive of the first category: the text before its dot ("" when there is none); commas part them too."""
    return _BETWEEN.split(categories.strip(), maxsplit=1)[0].partition(".")[0]


def read_records(
    path: Path | str, fields: Mapping[str, str] | None = None, progress: Progress = unseen
) -> Iterator[Record | Problem]:
    """Stream a snapshot: a `Record` per usable line, a `Problem` per other line; blank lines are skipped.

    Args:
        path: JSON lines, plain or compressed (told by content, not by name).
        fields: our field name -> the file's; `title` is optional in the file, the others are not.
        progress: told the bytes read and the file's size.

    Raises:
        UserError: missing, unreadable or empty file, truncated compression, or no JSON line in it.
    """
    yield from _records(read_lines(path, progress=progress), check_fields(fields), shown(path))


def import_snapshot(
    path: Path | str,
    folder: Path | str,
    fields: Mapping[str, str] | None = None,
    display: Display = no_display,
) -> dict[str, Any]:
    """Copy a snapshot to `folder`/snapshot.jsonl.gz (a gzip as it is, all else gzipped reproducibly), with provenance.

    The source is opened once and read in one pass. The first records are checked before the rest is copied; the copy
    is checked as a whole before it takes the place of what `folder` held.

    Args:
        path: a file, a named pipe or, as "-", standard input: JSON lines, plain or in gzip, xz, bzip2 or zip.
        folder: where the pipeline looks for data.
        fields: our field name -> the file's.
        display: of the progress.

    Returns:
        The provenance: kind, records (non-blank lines), sha256, generated, fields, name; damaged, cause -> lines, where
        there are such.

    Raises:
        UserError: a file that `read_records` refuses, none of whose first records is usable, or that breaks off in the
            middle; an unwritable folder.
    """
    names, name = check_fields(fields), shown(path)
    with replacing(folder) as staged:
        with display(f"reading {name}") as progress:
            _copy(path, staged, names, progress)
        with display("checking") as progress:
            found = survey(staged / SNAPSHOT, names, name, progress)
        called = name if str(path) == STANDARD_INPUT else Path(path).name
        return write_provenance(staged, kind="import", found=found, name=called, fields=names)


def survey(
    snapshot: Path,
    fields: Mapping[str, str] | None = None,
    name: str | None = None,
    progress: Progress = unseen,
) -> Survey:
    """Read a whole snapshot before it replaces another.

    Args:
        snapshot: the file.
        fields: our field name -> the file's.
        name: what messages call it, where it is a copy.
        progress: told the bytes read and the file's size.

    Raises:
        UserError: what `read_records` refuses, no usable record, or an end within a record.
    """
    names, name = check_fields(fields), name or str(snapshot)
    causes: Counter[str] = Counter()
    usable, generated = 0, False
    number, line = 0, b""

    def lines() -> Iterator[tuple[int, bytes]]:
        nonlocal number, line, generated
        for number, line in read_lines(snapshot, name, progress):
            generated = generated or (b'"generated"' in line and _is_generated(line))
            yield number, line

    last: Record | Problem | None = None
    for last in _records(lines(), names, name):
        if isinstance(last, Problem):
            causes[last.cause] += 1
        else:
            usable += 1
    cut = not line.endswith(b"\n") and len(line) < LONGEST_LINE
    if cut and isinstance(last, Problem) and (last.line, last.cause) == (number, MALFORMED):
        raise UserError(f"{name} breaks off within a record (line {number}); fetch it again, or end its last line")
    if not usable:
        counts = ", ".join(f"{cause} {n}" for cause, n in sorted(causes.items()))
        raise UserError(
            f"{name}: none of its {causes.total()} records is usable ({counts}); map its field names to "
            f"{', '.join(FIELDS)}"
        )
    return Survey(usable + causes.total(), usable, causes, generated)


def _records(
    lines: Iterable[tuple[int, bytes]], names: Mapping[str, str], shown_name: str
) -> Iterator[Record | Problem]:
    hopeless: list[Problem] | None = []
    for number, line in lines:
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
            f"{shown_name} is not JSON: none of its first {len(hopeless)} lines is a JSON object; give JSON lines"
        )
    if hopeless is not None:
        raise UserError(f"{shown_name} is empty; give a snapshot with one JSON object a line")


def _copy(path: Path | str, staged: Path, names: Mapping[str, str], progress: Progress) -> None:
    """One pass over the source: its first records are checked, all its bytes arrive."""
    target = staged / SNAPSHOT
    with open_source(path, progress) as source:
        if is_gzip(source):
            with open(target, "wb") as out:
                copied = tapped(source, path, copy=out.write)
                with unpacked(copied, path) as text:
                    _check_first(text, names, shown(path))
                drain(copied)
        else:
            with open_gzip(target) as out, unpacked(source, path, staged) as text:
                copied = tapped(text, path, copy=out.write)
                _check_first(copied, names, shown(path))
                for _ in lines_of(copied, path):  # to the end, if there is one
                    pass


def _check_first(text: IO[bytes], names: Mapping[str, str], shown_name: str) -> None:
    lines = lines_of(text, shown_name)
    number, begins = next(((number, line) for number, line in lines if line.strip()), (0, b""))
    first = list(islice(_records(chain([(number, begins)], lines), names, shown_name), _PEEK))
    problems = [record for record in first if isinstance(record, Problem)]
    if len(problems) == len(first):
        cause = problems[0].cause
        said = f"{cause} {', '.join(_lacking(begins, names))}".strip() if cause == MISSING_FIELD else cause
        raise UserError(
            f"{shown_name}: none of the first {len(first)} records is usable (line {number}: {said}); map its field "
            f"names to {', '.join(FIELDS)} (--field), or give texts that have no categories as --source and --target"
        )


def _lacking(line: bytes, names: Mapping[str, str]) -> list[str]:
    """The file's names of the fields of which this record has nothing that could be one."""
    value = json.loads(line)
    kinds = {"id": (str, int, float), "categories": (str, list), "abstract": (str,)}
    return [names[field] for field, kind in kinds.items() if not isinstance(value.get(names[field]), kind)]


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
