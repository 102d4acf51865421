"""The methods that are compared. To add one, add a file with `METHOD`, or `METHODS` for a family; nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import get_args

from gtl_lightning.methods.method import FINETUNED, Denoiser, Kind, Method, Roll


def _found() -> Iterator[Method]:
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        if hasattr(loaded, "METHOD"):
            yield loaded.METHOD
        yield from getattr(loaded, "METHODS", ())


METHODS: dict[str, Method] = {
    method.name: method for method in sorted(_found(), key=lambda method: (method.place, method.name))
}
"""Name -> method, in the order of tables and figures."""


ROLLS: dict[Roll, tuple[str, ...]] = {
    roll: tuple(name for name, method in METHODS.items() if method.roll == roll) for roll in get_args(Roll)
}
"""List under `sweep` -> names of the methods that may stand in it."""


def names(kind: Kind | None = None) -> tuple[str, ...]:
    """Names of the methods, of one kind or of all."""
    return tuple(name for name, method in METHODS.items() if kind in (None, method.kind))


def guides(name: str) -> Denoiser | None:
    """The frozen denoiser that a method guides; None for a denoiser, the untouched source too."""
    return METHODS[name].guides if name in METHODS else None


def is_guidance(name: str) -> bool:
    """Whether a method is one of those that are held against fine-tuning, and no way of fine-tuning itself."""
    return name in METHODS and METHODS[name].kind == "ratio" and not METHODS[name].rival


__all__ = ["FINETUNED", "METHODS", "ROLLS", "Denoiser", "Kind", "Method", "Roll", "guides", "is_guidance", "names"]
