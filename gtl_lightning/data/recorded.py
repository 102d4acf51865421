"""Files of data/ and tokens/ against the hashes that were recorded when they were written.

Told is what changed afterwards: a bit on a disk, an object that was overwritten in a store, a file in place of another.
Who writes the record anew is not told.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gtl_lightning.data.origin import PROVENANCE, SNAPSHOT
from gtl_lightning.errors import UserError
from gtl_lightning.files import sha256_file
from gtl_lightning.records import Values, read_record

META = "meta.json"


def hashes(folder: Path) -> dict[str, str]:
    """Path within `folder` -> sha256, of every file below it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def check_snapshot(folder: Path | str) -> None:
    """Refuse records that are not those that were taken in.

    Raises:
        UserError: no provenance, one without a hash, or records of another hash.
    """
    snapshot, record = Path(folder) / SNAPSHOT, Path(folder) / PROVENANCE
    if snapshot.is_file():  # whoever reads it says what else it is
        wanted = read_record(record, {"sha256": str})["sha256"]
        _check(snapshot, wanted, record, "fetch it again (`dvc pull data`), or take it in again (`gtl data import`)")


def check_tokens(folder: Path | str, names: Iterable[str]) -> None:
    """Refuse files of tokens/ that are not what the tokeniser wrote; one that is missing is its reader's affair.

    Raises:
        UserError: no meta.json, one without hashes, or a file of another hash.
    """
    record = Path(folder) / META
    files = read_record(record, {"files": Values(str)})["files"]
    for name in names:
        if (path := Path(folder) / name).is_file():
            _check(path, files.get(name), record, "fetch it again (`dvc pull tokens`), or run `gtl tokenize` again")


def _check(path: Path, wanted: object, record: Path, remedy: str) -> None:
    if sha256_file(path) != wanted:
        raise UserError(f"{path} is not what was written: its sha256 is not the one in {record}; {remedy}")
