"""params.yaml as text, and every value that holds with its meaning and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gtl_lightning.errors import UserError
from gtl_lightning.fields import Section
from gtl_lightning.methods import METHODS
from gtl_lightning.workspace.stated import DEFAULTS, HEIRS, stated
from gtl_lightning.workspace.yamlfile import entry

HEADER = """\
# A default and what differs from it. Edit it, or gtl configure --set KEY=VALUE; --profile NAME writes it anew.
# gtl configure --show prints every value that holds, with its meaning; a method's own stand in gtl_lightning/methods/.
"""
METHOD_KEYS = frozenset(f"methods.{name}" for name in METHODS)


def params_text(params: Section) -> str:
    """All of params.yaml: what it states, each with its description."""
    lines = _lines(type(params), stated(params.model_dump(mode="json")), "")
    return HEADER + "\n".join(lines) + "\n"


def _lines(model: type[BaseModel], tree: dict[str, Any], prefix: str) -> Iterator[str]:
    # Single values first: what follows a part would seem to belong to it.
    for name, field in sorted(_fields(model), key=lambda item: _part(item[1]) is not None):
        if name not in tree:
            continue
        key, part, indent = f"{prefix}{name}", _part(field), "  " * prefix.count(".")
        if part is None or key in HEIRS or key in METHOD_KEYS:
            first, *rest = entry(name, tree[name], indent)
            yield f"{first}  # {_meaning(field)}"
            yield from rest
        else:
            yield f"{indent}{name}:  # {_meaning(field)}".removesuffix("  # ")
            yield from _lines(part, tree[name], f"{key}.")


@dataclass(frozen=True)
class Shown:
    """One value that holds.

    Attributes:
        key: dotted.
        value: as in params.yaml.
        origin: what it comes from: `default`, `method` (the method's own file) or `params.yaml`.
        differs: whether there is a default, and it is another.
        meaning: one line.
    """

    key: str
    value: Any
    origin: str
    differs: bool
    meaning: str

    def __str__(self) -> str:
        return f"{'*' if self.differs else ' '} {self.key}: {json.dumps(self.value)}  # {self.origin}: {self.meaning}"


DEFAULT, FILE, METHOD = "default", "params.yaml", "method"


def shown(params: Section, prefix: str | None = None) -> list[Shown]:
    """Every value that holds, or those at and below a dotted key.

    Raises:
        UserError: no such key.
    """
    values = params.model_dump(mode="json")
    usual = type(params)().model_dump(mode="json")
    found = [
        one
        for one in _shown(type(params), values, stated(values), usual, "")
        if prefix is None or one.key == prefix or one.key.startswith(f"{prefix}.")
    ]
    if not found:
        raise UserError(f"--show {prefix}: there is no such parameter; --show alone prints all of them")
    return found


def _shown(
    model: type[BaseModel], values: dict[str, Any], said: dict[str, Any], usual: dict[str, Any], prefix: str
) -> Iterator[Shown]:
    section = prefix.removesuffix(".")
    for name, field in _fields(model):
        key, part = f"{prefix}{name}", _part(field)
        if part is not None:
            yield from _shown(part, values[name], said.get(name, {}), usual[name], f"{key}.")
            continue
        if section in HEIRS:
            origin = FILE if name in said else METHOD if name in HEIRS[section].own else DEFAULT
        elif section in METHOD_KEYS:
            origin = FILE if name in said else METHOD
        else:
            origin = DEFAULT if values[name] == usual[name] else FILE
        own = origin == METHOD and section in METHOD_KEYS  # a knob that is nobody else's has no other default
        yield Shown(key, values[name], origin, origin != DEFAULT and not own, str(field.description))


def _fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """Name in params.yaml -> field."""
    return [(field.alias or name, field) for name, field in model.model_fields.items()]


def _part(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _meaning(field: FieldInfo) -> str:
    """A value's description; of a part, the first line of what it says of itself, unless that says what many are."""
    part = _part(field)
    title = "" if part is None or part in DEFAULTS else part.__doc__ or ""
    return field.description or title.strip().partition("\n")[0]
