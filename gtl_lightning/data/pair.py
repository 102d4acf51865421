"""Texts of one's own: two tables, of the source domain and of the target, with nothing but texts in them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gtl_lightning.data.lines import Display, Progress, no_display, open_gzip, read_lines
from gtl_lightning.data.origin import PAIR, SNAPSHOT, SOURCE, TARGET, write_provenance
from gtl_lightning.data.snapshot import survey
from gtl_lightning.data.tables import FORMS, TEXT, form_of, object_of, rows
from gtl_lightning.errors import UserError
from gtl_lightning.files import atomic_path, replacing

_COLUMNS = (TEXT, "abstract")  # taken where none is named
_SHOWN = 12  # columns that a message names
_NO_NAME = re.compile(r"[\s,;|]")


def import_pair(
    source: str, target: str, folder: Path | str, *, text: str | None = None, display: Display = no_display
) -> dict[str, Any]:
    """Write `folder`/snapshot.jsonl.gz and its provenance from two tables of texts.

    A row without an id gets one made of its text, so that the splits do not depend on the order of rows, and equal
    texts of a domain count once. An id at which different texts stand, as of a document in passages, is each time made
    one of its own by the text, whatever the order. What has no text is kept for the quarantine, as any damaged record.

    Args:
        source: the source domain's table, as `tables.rows` takes it.
        target: the target domain's.
        folder: where the pipeline looks for data.
        text: column of the texts; None takes `text`, `abstract`, or the only one. `id` and `date` are taken too.
        display: of the progress.

    Returns:
        The provenance.

    Raises:
        UserError: what `rows` refuses, a table without texts, no such column, or twice the same texts.
    """
    check_pair(source, target)
    with replacing(folder) as staged:
        texts, shared = [], set[str]()
        with open_gzip(staged / SNAPSHOT) as out:
            for domain, where in ((SOURCE, source), (TARGET, target)):
                with display(f"reading {where}") as progress:
                    taken = _Taken(domain, where, text)
                    for row in rows(where, progress):
                        out.write(taken.line(row))
                texts.append(taken.checked())
                shared |= taken.shared
        if texts[0] == texts[1]:
            raise UserError(f"{source} and {target} hold the same texts; give the texts of two domains")
        if shared:
            with display("telling texts of one id apart") as progress:
                _tell_apart(staged / SNAPSHOT, shared, progress)
        with display("checking") as progress:
            found = survey(staged / SNAPSHOT, None, f"{source} and {target}", progress)
        return write_provenance(staged, kind=PAIR, found=found, source=source, target=target)


def check_pair(source: str, target: str) -> None:
    """What can be said of two tables before either is read.

    Raises:
        UserError: a file that is not there, or one table given twice.
    """
    for where in (source, target):
        if form_of(where) in FORMS and not Path(where).exists():
            raise UserError(f"{where} does not exist; give a file, or the name of a data set")
    if source == target or (Path(source).exists() and Path(target).exists() and Path(source).samefile(target)):
        raise UserError(f"{source} is given as source and as target; give the texts of two domains")


def _tell_apart(snapshot: Path, shared: Collection[str], progress: Progress) -> None:
    """Give each record of these ids the hash of its text as an ending of its id."""
    with atomic_path(snapshot) as temporary, open_gzip(temporary) as out:
        for _, line in read_lines(snapshot, progress=progress):
            record = object_of(line)
            if isinstance(record, dict) and record["id"] in shared:
                record["id"] += f"-{_key(record['abstract']).hexdigest()}"
                line = json.dumps(record).encode() + b"\n"
            out.write(line)


def _key(words: str) -> hashlib.blake2b:
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=12)


class _Taken:
    """The rows of one table as lines of a snapshot, and what identifies its texts, whatever their order."""

    def __init__(self, domain: str, where: str, asked: str | None) -> None:
        self._domain, self._where, self._asked = domain, where, asked
        self._column: str | None = None
        self._count, self._sum = 0, 0
        self._texts: dict[str, bytes] = {}
        self.shared: set[str] = set()
        """Ids at which different texts stand."""

    def line(self, row: Mapping[str, Any] | bytes) -> bytes:
        """The row as a record; bytes that are no object stay what they are."""
        if isinstance(row, bytes):
            return row.rstrip(b"\r\n") + b"\n"
        self._column = self._column or self._find(row)
        text = row.get(self._column)
        words = " ".join(text.split()) if isinstance(text, str) else ""
        key = _key(words)
        if words:
            self._count += 1
            self._sum += int.from_bytes(key.digest(), "big")
        own = row.get("id")
        if isinstance(own, str | int) and not isinstance(own, bool) and own != "":
            name = f"{self._domain}-{own}"
            if words and self._texts.setdefault(name, key.digest()) != key.digest():
                self.shared.add(name)
        else:
            name = f"{self._domain}-{key.hexdigest()}"
        record = {"id": name, "categories": self._domain, "abstract": words}
        if row.get("date") is not None:
            record["date"] = str(row["date"])
        # Generated data stays marked wherever it goes.
        marked = {**record, "generated": True} if row.get("generated") is True else record
        return json.dumps(marked).encode() + b"\n"

    def checked(self) -> tuple[int, int]:
        """Number of texts, and the sum of their hashes.

        Raises:
            UserError: there is none.
        """
        if not self._count:
            column = f" in its column {self._column}" if self._column else ""
            raise UserError(f"{self._where} holds no text{column}; give the texts of the {self._domain} domain")
        return self._count, self._sum

    def _find(self, row: Mapping[str, Any]) -> str:
        # One "column" that is named by words or separators is a first text, or a line that other separators part.
        only = [name for name in row if len(row) == 1 and not _NO_NAME.search(str(name))]
        wanted = [self._asked] if self._asked else [*_COLUMNS, *only]
        for column in wanted:
            if column in row:
                return column
        names = [str(name) for name in row]
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise UserError(f"{self._where} has no column {wanted[0]!r}; it has {shown or 'none'}: name one with --text")
