"""The kinds of source. To add one, add a file with `SOURCE`, or `SOURCES` for a family; nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from gtl_lightning.sources.kind import SourceKind


def _found() -> Iterator[SourceKind]:
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        if hasattr(loaded, "SOURCE"):
            yield loaded.SOURCE
        yield from getattr(loaded, "SOURCES", ())


SOURCES: dict[str, SourceKind] = {kind.name: kind for kind in sorted(_found(), key=lambda kind: kind.name)}
"""Name -> kind."""

__all__ = ["SOURCES", "SourceKind"]
