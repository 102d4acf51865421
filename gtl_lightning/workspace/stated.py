"""params.yaml states a default and what differs from it; this is what then holds, and back.

`train.default` and `networks.default` stand whole in the file. A training or a network says what differs: params.yaml
says it of what stages share; of a method its own file says it (a dependency of every training), then params.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from gtl_lightning.fields import Network, Training, set_fields
from gtl_lightning.methods import METHODS
from gtl_lightning.sources import SOURCES
from gtl_lightning.workspace.settings import Bench, Machine, Networks, Sweep, Tracking, Train

Tree = dict[str, Any]
DEFAULTS: dict[type[BaseModel], str] = {Training: "train.default", Network: "networks.default"}
SELDOM: dict[str, tuple[BaseModel, frozenset[str]]] = {
    "bench": (Bench(), frozenset()),
    "machine": (Machine(), frozenset({"threads"})),
    "tracking": (Tracking(), frozenset({"uri", "experiment"})),
    "sweep": (Sweep(), frozenset(Sweep.model_fields) - {"repeats"}),
}
"""Section -> its defaults, and what is written even so. No training is made stale by the rest: it may stand in code."""

GONE: Tree = {"train.val_draws": 2, "evaluation.seed": 0, "machine.strategy": "auto"}
"""Parameters of older files that nobody set, and the value that they have come to stand for."""


@dataclass(frozen=True)
class Heir:
    """A training or a network that takes from a default what it does not say itself.

    Attributes:
        default: key of the default.
        own: what differs because a method's file says so; params.yaml need not.
        shipped: what params.yaml says in the profile `default`.
    """

    default: str
    own: Tree = field(default_factory=dict)
    shipped: Tree = field(default_factory=dict)


def _heirs() -> Iterator[tuple[str, Heir]]:
    for section, shared in (("networks", Networks()), ("train", Train())):
        for name, part in shared:
            if type(part) in DEFAULTS and name != "default":
                yield f"{section}.{name}", Heir(DEFAULTS[type(part)], shipped=set_fields(part))
    for method in METHODS.values():
        for name, part in method.settings:
            if type(part) in DEFAULTS:
                yield f"methods.{method.name}.{name}", Heir(DEFAULTS[type(part)], own=set_fields(part))


HEIRS: dict[str, Heir] = dict(_heirs())
"""Dotted key -> whose heir it is."""


def complete(values: Tree) -> Tree:
    """Defaults and heirs that a file leaves out, as in the profile `default`; a part that it has is left as it is.

    What an older file says of parameters that are gone is left out, where it is what holds.
    """
    whole = deepcopy(values)
    for key, value in GONE.items():
        parent, _, name = key.rpartition(".")
        inner = _at(whole, parent)
        if inner is not None and name in inner and inner[name] == value:
            del inner[name]
    parts: Tree = {default: kind().model_dump(mode="json") for kind, default in DEFAULTS.items()}
    parts |= {f"methods.{name}": {} for name in METHODS} | {key: dict(heir.shipped) for key, heir in HEIRS.items()}
    for key, part in parts.items():
        parent, _, name = key.rpartition(".")
        inner = _at(whole, parent, make=True)
        if inner is not None:
            inner.setdefault(name, part)
    return whole


def effective(values: Tree) -> Tree:
    """What a file states -> what holds; what it leaves out of other sections stays out, and wrong values stay."""
    whole = complete(values)
    for name, method in METHODS.items():
        stated = _at(whole, f"methods.{name}")
        if stated is not None:
            whole["methods"][name] = _own(method.settings) | stated
    for key, heir in HEIRS.items():
        parent, _, name = key.rpartition(".")
        default, stated = _at(whole, heir.default), _at(whole, key)
        if default is not None and stated is not None:
            inner = _at(whole, parent)
            assert inner is not None
            inner[name] = default | heir.own | stated
    return whole


def stated(values: Tree) -> Tree:
    """What holds, whole -> what params.yaml states of it: each of the two follows from the other."""
    said = deepcopy(values)
    for name, method in METHODS.items():
        own = _own(method.settings)
        said["methods"][name] = {key: value for key, value in values["methods"][name].items() if own.get(key) != value}
    for key, heir in HEIRS.items():
        parent, _, name = key.rpartition(".")
        base, whole, inner = _at(values, heir.default), _at(values, key), _at(said, parent)
        assert base is not None and whole is not None and inner is not None
        base = base | heir.own
        inner[name] = {key: value for key, value in whole.items() if base[key] != value}
        if not inner[name] and key.startswith("methods."):
            del inner[name]
    for section, (defaults, always) in SELDOM.items():
        plain = defaults.model_dump(mode="json")
        said[section] = {key: value for key, value in values[section].items() if key in always or plain[key] != value}
        if not said[section]:
            del said[section]
    for name, kind in SOURCES.items():  # one that names a model says nothing before there is one
        if kind.needs and said["source"].get(name) == kind.settings.model_dump(mode="json"):
            del said["source"][name]
    return said


def unstated(values: Tree) -> list[str]:
    """Defaults that an older file lacks, which wrote every training and every network out; DVC wants them there."""
    return sorted(
        {
            heir.default
            for key, heir in HEIRS.items()
            if _at(values, key) is not None and _at(values, heir.default) is None
        }
    )


def inherited(values: Tree, key: str) -> dict[str, str]:
    """Names of the values that the heir at `key` takes from its default -> the default's key."""
    heir, said = HEIRS.get(key), _at(values, key) or {}
    base = _at(values, heir.default) if heir else None
    return {} if heir is None else {name: heir.default for name in base or {} if name not in {*heir.own, *said}}


def missing(values: Tree) -> list[str]:
    """Keys that a default lacks, which has to stand whole."""
    parts = {default: (kind, _at(values, default)) for kind, default in DEFAULTS.items()}
    return [
        f"{default}.{name}"
        for default, (kind, part) in parts.items()
        for name in kind.model_fields
        if part is not None and name not in part
    ]


def _own(settings: BaseModel) -> Tree:
    """A method's knobs as its file has them, without what it takes from a default."""
    return {name: value for name, value in settings.model_dump(mode="json").items() if not _inherits(settings, name)}


def _inherits(settings: BaseModel, name: str) -> bool:
    return type(getattr(settings, name, None)) in DEFAULTS


def _at(values: Tree, key: str, *, make: bool = False) -> Tree | None:
    """The part at a dotted key; None where there is none, or something else than a part."""
    for name in key.split("."):
        inner = values.setdefault(name, {}) if make else values.get(name)
        if not isinstance(inner, dict):
            return None
        values = inner
    return values
