"""YAML 1.2, as DVC reads params.yaml."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from gtl_lightning.errors import UserError, reason
from gtl_lightning.inputs import read_text

LARGEST = 1 << 18
"""Bytes of a file of parameters; the reader takes seconds for so many."""
_MOST_VALUES, _DEEPEST, _LARGEST_NUMBER = 10**5, 50, 10**300

WIDTH = 76
"""Columns from which on DVC breaks a list or mapping on one line."""


def read_values(path: Path | str, command: str = "gtl configure") -> dict[str, Any]:
    """The mapping that a YAML file holds, unchecked; `command` writes it.

    Raises:
        UserError: missing, unreadable, no UTF-8, no YAML, a key given twice, or no mapping.
    """
    try:
        text = read_text(path, LARGEST, f"write it with `{command}`")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it as UTF-8"
        ) from error
    values = parse(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of parameters; write it anew with `{command}`")
    return values


def parse(text: str, origin: str) -> Any:
    """YAML 1.2, as DVC reads params.yaml: 1e-3 is a number, 010 is ten, a key given twice is an error."""
    from ruamel.yaml import YAML, YAMLError
    from ruamel.yaml.constructor import DuplicateKeyError

    try:
        _check_depth(YAML(typ="safe").parse(text))
        value = YAML(typ="safe").load(text)
        _check(value, [_MOST_VALUES])
    except DuplicateKeyError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{origin} gives a key twice: {error.problem}{where}; remove one of them") from error
    except YAMLError as error:
        raise UserError(f"{origin} is not valid YAML ({' '.join(str(error).split())})") from error
    except (ValueError, RecursionError) as error:  # a 13th month; what is nested a hundred times
        raise UserError(f"{origin} holds what is no parameter ({reason(error)})") from error
    return value


def _check_depth(events: Iterable[object]) -> None:
    """Refuse deep nesting before anything is built of it: the reader, in C, recurses until its stack ends.

    Raises:
        ValueError: naming the bound.
    """
    from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")


def _check(value: Any, left: list[int], depth: int = 0) -> None:
    """Refuse what JSON has no word for, and what aliases make of a few lines.

    Raises:
        ValueError: naming it.
    """
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        raise ValueError(f"more than {_MOST_VALUES} values, or nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"a key that is no text: {str(key)[:50]}")
            _check(item, left, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, left, depth + 1)
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"a {type(value).__name__}, {str(value)[:50]}; put a text into quotes")
    elif isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
        raise ValueError("a number of more than 300 digits")


def flow(value: Any) -> str:
    """A value on one line, which `parse` reads as it was."""
    return _flow(value) if isinstance(value, list | dict) else _flow_of_one(value)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...")
    if parse(text, "YAML") != value:  # PyYAML knows YAML 1.1, to which 1e5 is a word
        text = json.dumps(value)
    return text


# The values of a file are few, and to read one back takes a millisecond.
_flow_of_one = lru_cache(maxsize=1 << 12, typed=True)(_flow)


def entry(key: str, value: Any, indent: str = "") -> list[str]:
    """The lines of a key, as DVC leaves them where it writes the file (`dvc exp run -S`).

    That is nothing for null, and no list or mapping on one line that it would break.
    """
    line = f"{indent}{key}: {flow(value)}"
    if value is None:
        return [f"{indent}{key}:"]
    if not isinstance(value, list | dict) or not value or (len(line) <= WIDTH and "null" not in line):
        return [line]
    if isinstance(value, list):
        return [f"{indent}{key}:", *(f"{indent}- {flow(item)}" for item in value)]
    return [f"{indent}{key}:", *(text for name, item in value.items() for text in entry(name, item, f"{indent}  "))]


def described(
    section: BaseModel, values: Mapping[str, Any], in_one_line: Collection[str] = (), depth: int = 0
) -> Iterator[str]:
    """The lines of a study's own file: every value of a section with its description, parts indented or in one line."""
    fields = type(section).model_fields
    # Single values first: what follows a part would seem to belong to it.
    for name in sorted(values, key=lambda name: isinstance(values[name], dict)):
        value, part, indent = values[name], getattr(section, name), "  " * depth
        said = fields[name].description or (type(part).__doc__ or "").splitlines()[0]
        if isinstance(value, dict) and name not in in_one_line:
            yield f"{indent}{name}:  # {said}"
            yield from described(part, value, in_one_line, depth + 1)
        else:
            first, *rest = entry(name, value, indent)
            yield f"{first}  # {said}"
            yield from rest
