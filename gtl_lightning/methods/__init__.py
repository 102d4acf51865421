"""The methods that are compared. To add one, add a file with `METHOD`, or `METHODS` for a family; nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from gtl_lightning.methods.method import FINETUNED, Denoiser, Kind, Method


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


def names(kind: Kind | None = None, guided: Denoiser | None = None) -> tuple[str, ...]:
    """Names of the methods, of one kind or of all; with `guided` those alone that guide this denoiser."""
    return tuple(
        name for name, method in METHODS.items() if kind in (None, method.kind) and guided in (None, method.guides)
    )


def guides(name: str) -> Denoiser | None:
    """The frozen denoiser that a method guides; None for a denoiser, the untouched source too."""
    return METHODS[name].guides if name in METHODS else None


__all__ = ["FINETUNED", "METHODS", "Denoiser", "Kind", "Method", "guides", "names"]
