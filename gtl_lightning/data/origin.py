"""Where the records in data/ came from: provenance.json beside the snapshot, and what its fields are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gtl_lightning.errors import UserError
from gtl_lightning.files import sha256_file, write_json
from gtl_lightning.records import COUNT, Shape, Values, read_record

SNAPSHOT = "snapshot.jsonl.gz"
PROVENANCE = "provenance.json"
PAIR, SOURCE, TARGET = "pair", "source", "target"
"""Kind of an import of two tables, and the categories of its records."""
SHAPE: Shape = {
    "sha256": str,
    "kind?": str,
    "records?": COUNT,
    "generated?": bool,
    "fields?": Values(str),
    "damaged?": Values(COUNT),
}

#: Our name -> the file's name for every field that is read.
FIELDS: Mapping[str, str] = {"id": "id", "title": "title", "categories": "categories", "abstract": "abstract"}


def check_fields(fields: Mapping[str, str] | None) -> dict[str, str]:
    """Complete a field mapping with the defaults.

    Raises:
        UserError: a key that is none of ours.
    """
    given = dict(fields or {})
    if unknown := sorted(set(given) - set(FIELDS)):
        raise UserError(f"unknown field {unknown[0]!r} in the field mapping; its keys are {', '.join(FIELDS)}")
    return {**FIELDS, **given}


class Survey(NamedTuple):
    """What a whole snapshot holds: `records` non-blank lines, those usable, the others by cause."""

    records: int
    usable: int
    causes: Counter[str]
    generated: bool


def write_provenance(folder: Path | str, *, kind: str, found: Survey, **more: Any) -> dict[str, Any]:
    """Write provenance.json beside the snapshot: where it came from, how many records, its sha256; damage by cause."""
    provenance = {
        "kind": kind,
        "records": found.records,
        "sha256": sha256_file(Path(folder) / SNAPSHOT),
        "generated": found.generated,
        **({"damaged": dict(sorted(found.causes.items()))} if found.causes else {}),
        **more,
    }
    write_json(Path(folder) / PROVENANCE, provenance)
    return provenance


def recorded_fields(folder: Path | str) -> dict[str, str] | None:
    """The field names of the snapshot in `folder`, where an import recorded others than ours.

    A download is stored under our names; what it records are the names at its source.
    """
    if not (Path(folder) / PROVENANCE).exists():
        return None
    provenance = read_provenance(folder)
    return check_fields(provenance.get("fields")) if provenance.get("kind") == "import" else None


def domains(folder: Path | str, source: Sequence[str], target: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The categories of the two domains: those given, but of an import of two tables the tables."""
    path = Path(folder) / PROVENANCE
    paired = path.exists() and read_provenance(folder).get("kind") == PAIR
    return ((SOURCE,), (TARGET,)) if paired else (source, target)


def read_provenance(folder: Path | str) -> dict[str, Any]:
    """What `write_provenance` left.

    Raises:
        UserError: missing, or of another shape.
    """
    return read_record(Path(folder) / PROVENANCE, SHAPE)
