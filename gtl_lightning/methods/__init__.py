"""The methods that are compared. To add one, add a file with `METHOD`, or `METHODS` for a family; nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from gtl_lightning.methods.method import Kind, Method


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


def names(kind: Kind | None = None) -> tuple[str, ...]:
    """Names of the methods, of one kind or of all."""
    return tuple(name for name, method in METHODS.items() if kind in (None, method.kind))


def guides(name: str) -> bool:
    """Whether a method guides the frozen source denoiser; the untouched source itself does not."""
    return name in METHODS and METHODS[name].guides


__all__ = ["METHODS", "Kind", "Method", "guides", "names"]
