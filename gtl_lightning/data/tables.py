"""Rows of a table in a file of any common form, told by its name, or of a hub data set: one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from gtl_lightning.data.download import open_stream
from gtl_lightning.data.lines import LONGEST_LINE, Progress, read_lines, unseen
from gtl_lightning.errors import UserError, reason
from gtl_lightning.inputs import open_regular

Row = dict[str, Any]
TEXT = "text"
PACKED = (".gz", ".xz", ".bz2", ".zip")
LINES, TEXTS, COMMAS, PARQUET = (".jsonl", ".ndjson", ".json"), (".txt",), (".csv", ".tsv"), (".parquet",)
FORMS = (*LINES, *TEXTS, *COMMAS, *PARQUET)
_BATCH = 1000


def rows(where: str, progress: Progress = unseen) -> Iterator[Row | bytes]:
    """Stream rows, as column -> value; of JSON lines, what is no object comes as it stands there.

    Args:
        where: a file, its form told by its name: `.jsonl` (an object a line), `.txt` (a text a line, its column is
            `text`), `.csv` and `.tsv` (with a line of column names), each packed or not, `.parquet`; or a hub data set,
            NAME or NAME:SPLIT, or a folder of data files.
        progress: told the bytes read and the file's size.

    Raises:
        UserError: no such file or data set, a file of another form, or damage.
    """
    form = form_of(where)
    if form is None and (Path(where).is_dir() or not Path(where).exists()):
        yield from _streamed(where)
    elif form in PARQUET:
        yield from _parquet(where)
    elif form in LINES:
        yield from (object_of(line) for _, line in read_lines(where, progress=progress) if line.strip())
    elif form in TEXTS:
        yield from _texts(where, progress)
    elif form in COMMAS:
        yield from _separated(where, "\t" if form == ".tsv" else ",", progress)
    else:
        raise UserError(f"{where} is none of {', '.join(FORMS)}, by which its form is told; give it such a name")


def form_of(where: str) -> str | None:
    """The ending that tells a file's form, packed or not; None for a name without one."""
    endings = [ending.lower() for ending in PurePath(where).suffixes]
    if endings and endings[-1] in PACKED:
        endings.pop()
    return endings[-1] if endings and endings[-1] in FORMS else None


def object_of(line: bytes) -> Row | bytes:
    """The JSON object that a line is; the line where it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return value if isinstance(value, dict) else line


def _decoded(where: str, progress: Progress) -> Iterator[str]:
    for number, line in read_lines(where, progress=progress):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}, line {number} is not UTF-8; convert it: `iconv -t UTF-8`") from error


def _texts(where: str, progress: Progress) -> Iterator[Row]:
    for line in _decoded(where, progress):
        if "\r" in line.rstrip("\r\n"):
            raise UserError(f"{where} has carriage returns within a line, as old line ends are; use `tr '\\r' '\\n'`")
        if line.strip():
            yield {TEXT: line}


def _separated(where: str, delimiter: str, progress: Progress) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)
    lines: Iterable[str] = _decoded(where, progress)
    table = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        for row in table:
            surplus = row.pop(None, [])
            if any(cell.strip() for cell in surplus):  # of an unquoted text with the delimiter, all but its front part
                columns, cells = len(table.fieldnames or ()), len(row) + len(surplus)
                raise UserError(
                    f"{where}, line {table.line_num} has {cells} cells under {columns} column(s); put texts that hold "
                    f"{delimiter!r} in quotes"
                )
            yield row
    except csv.Error as error:
        raise UserError(f"{where} is no table after line {table.line_num} ({error}); mend it") from error


def _parquet(where: str) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with open_regular(Path(where)) as file:
        try:
            for batch in ParquetFile(file).iter_batches(_BATCH):
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            raise UserError(f"{where} cannot be read as parquet ({reason(error)}); write it anew") from error


def _streamed(where: str) -> Iterator[Row]:
    name, _, split = where.partition(":")
    stream = open_stream(name, split or "train")
    try:
        for row in stream:
            yield dict(row)
    except Exception as error:  # whatever the reader of that format or the network raises
        raise UserError(f"data set {where!r} broke off ({reason(error)}); run the same command again") from error
