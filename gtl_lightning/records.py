"""JSON of a known shape: what is missing or of another type is one line that names file and key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from gtl_lightning.errors import UserError
from gtl_lightning.files import SEAL, decoded, digest, finite, read_json
from gtl_lightning.inputs import read_text

T = TypeVar("T")


@dataclass(frozen=True)
class Within:
    """A number of bounds, both included; whole, or null, where it is said."""

    low: float
    high: float
    whole: bool = False
    null: bool = False


@dataclass(frozen=True)
class Each:
    """A list, every entry of which is of one kind."""

    kind: Kind


@dataclass(frozen=True)
class Values:
    """An object, every value of which is of one kind."""

    kind: Kind


@dataclass(frozen=True)
class Row:
    """A flat row of a table: `needs` are there, `texts` are texts or null, `free` anything, all else numbers or null.

    True and False count as numbers here, as they do in a table.
    """

    needs: Shape = field(default_factory=dict)
    texts: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()


Kind: TypeAlias = "type | tuple[type, ...] | Within | Each | Values | Row | Shape"
Shape: TypeAlias = Mapping[str, Kind]
"""Keys that an object must have (may have: `key?`), and of what kind each is; True and False are no numbers."""
ANY: Shape = {}
NUMBER = (int, float)
COUNT = Within(0, 10**12, whole=True)
AMOUNT = Within(0, 1e12)
"""Seconds, shares, bytes."""
NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number with a point",
    type(None): "null",
}


def read_record(path: Path | str, required: Shape | Row = ANY) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        required: keys and types that it must have.

    Raises:
        UserError: as `read_json`; another shape.
    """
    return record(read_json(path), path, required)


def record(value: Any, path: Path | str, required: Shape | Row) -> dict[str, Any]:
    """`value`, if it is an object with the keys and types of `read_record`.

    Raises:
        UserError: naming `path` and the key at fault.
    """
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {_kind(value)} where an object belongs; delete it and run its stage again")
    _check(value, required, path, "")
    return value


def read_list(path: Path | str, kind: type[T]) -> list[T]:
    """Read a JSON list of texts, of numbers, of objects.

    Raises:
        UserError: as `read_json`; another shape.
    """
    items = _items(path)
    for number, item in enumerate(items):
        if type(item) is not kind:
            raise UserError(
                f"{path}, entry {number}: {_kind(item)}, not {_names([kind])}; delete it and run its stage again"
            )
    return items


def read_records(path: Path | str, required: Shape | Row = ANY) -> list[dict[str, Any]]:
    """Read a JSON list of objects, each with the keys and types of `read_record`.

    Raises:
        UserError: as `read_record`.
    """
    return [record(row, f"{path}, entry {number}", required) for number, row in enumerate(_items(path))]


def read_lines(path: Path | str, required: Shape = ANY) -> list[dict[str, Any]]:
    """Read JSON lines, each an object with the keys and types of `read_record`.

    Raises:
        UserError: missing, cannot be read, or a line that is no such object: cut off, for example.
    """
    rows: list[dict[str, Any]] = []
    try:
        for number, line in enumerate(StringIO(read_text(path)), start=1):
            rows.append(record(decoded(line), f"{path}, line {number}", required))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, line {len(rows) + 1} is not valid JSON ({error}); delete the file and run its stage again"
        ) from error
    return rows


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with a hash of its content, to be written by `write_json` and checked by `read_sealed`."""
    content = finite(dict(value))
    return {**content, SEAL: digest(content, 64)}


def read_sealed(path: Path | str, required: Shape = ANY) -> dict[str, Any]:
    """Read what `sealed` gave.

    Raises:
        UserError: as `read_record`; content that does not fit its hash.
    """
    content = read_record(path, {**required, SEAL: str})
    seal = content.pop(SEAL)
    if digest(content, 64) != seal:
        raise UserError(f"{path} is damaged: its content does not fit its hash; delete it and run its stage again")
    return content


def _check_shape(value: Mapping[str, Any], required: Shape, path: Path | str, where: str) -> None:
    for key, wanted in required.items():
        name = key.removesuffix("?")
        if name in value:
            _check(value[name], wanted, path, f"{where}{name}")
        elif name == key:
            raise UserError(f"{path} has no {where + name!r}; delete it and run its stage again")


def _check(value: Any, wanted: Kind, path: Path | str, where: str) -> None:
    """Raise UserError, naming `path` and `where` in it, for a value of another kind."""
    if isinstance(wanted, Within):
        kinds = ((int,) if wanted.whole else NUMBER) + ((type(None),) if wanted.null else ())
        _check(value, kinds, path, where)
        if value is not None and not wanted.low <= value <= wanted.high:
            raise UserError(
                f"{path}: {where!r} is {str(value)[:30]}, not from {wanted.low:g} to {wanted.high:g}; "
                "delete it and run its stage again"
            )
    elif isinstance(wanted, Each):
        _check(value, list, path, where)
        for number, item in enumerate(value):
            _check(item, wanted.kind, path, f"{where}.{number}")
    elif isinstance(wanted, Values):
        _check(value, dict, path, where)
        for key, item in value.items():
            _check(item, wanted.kind, path, f"{where}.{key[:100]}")
    elif isinstance(wanted, Row):
        _check(value, {**wanted.needs, **{f"{name}?": _TEXT for name in wanted.texts}}, path, where)
        for key in value.keys() - wanted.needs.keys() - wanted.texts - wanted.free:
            _check(value[key], _CELL, path, f"{where}.{key[:100]}".removeprefix("."))
    elif isinstance(wanted, Mapping):
        _check(value, dict, path, where)
        _check_shape(value, wanted, path, f"{where}." if where else "")
    else:
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(
                f"{path}: {where!r} is {_kind(value)}, not {_names(kinds)}; delete it and run its stage again"
            )


_TEXT, _CELL = (str, type(None)), (int, float, bool, type(None))


def _items(path: Path | str) -> list[Any]:
    items = read_json(path)
    if not isinstance(items, list):
        raise UserError(f"{path} holds {_kind(items)} where a list belongs; delete it and run its stage again")
    return items


def _kind(value: Any) -> str:
    return NAMES[type(value)]


def _names(kinds: Iterable[type]) -> str:
    names = dict.fromkeys(NAMES[kind] for kind in kinds)
    if {NAMES[int], NAMES[float]} <= names.keys():
        del names[NAMES[float]]
    return " or ".join(names)
