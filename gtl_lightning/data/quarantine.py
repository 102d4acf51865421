"""Lines that a snapshot loses, and why: kept in a file, so that any number of them takes no memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from heapq import merge
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from gtl_lightning.files import atomic_path


class Problem(NamedTuple):
    """A line that is no usable record, why, and its id where one could be read."""

    line: int
    cause: str
    id: str | None


class Quarantine:
    """Problems in the order of their lines, with their causes counted; use `quarantine`."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.causes: Counter[str] = Counter()

    def add(self, problem: Problem) -> None:
        """Keep a problem whose line is behind those before."""
        self.causes[problem.cause] += 1
        self._file.write(_row(problem))

    def write(self, path: Path, others: Iterable[Problem] = ()) -> None:
        """Write what was kept, and `others` in any order, as JSON lines by line."""
        self._file.seek(0)
        rows = merge(self._file, map(_row, sorted(others)), key=_line)
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
            out.writelines(rows)


@contextmanager
def quarantine(folder: Path) -> Iterator[Quarantine]:
    """A quarantine in a file of `folder` that has no name and is gone afterwards."""
    with TemporaryFile("w+", dir=folder, encoding="utf-8") as file:
        yield Quarantine(file)


_HEAD = '{"line": '


def _row(problem: Problem) -> str:
    named = "null" if problem.id is None else json.dumps(problem.id)
    return f'{_HEAD}{problem.line}, "cause": "{problem.cause}", "id": {named}}}\n'


def _line(row: str) -> int:
    return int(row[len(_HEAD) : row.index(",")])
