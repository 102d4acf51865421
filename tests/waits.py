"""What would make the host wait for a GPU, counted on a CPU.

A GPU works through a queue that the host fills. The host waits where it needs a value, or a shape that depends on
values, and where it copies ordinary memory to the device: all of that has names among torch's operators, which are seen
on any device.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import gtl_lightning

PACKAGE = Path(gtl_lightning.__file__).parent
VALUES = frozenset(("_local_scalar_dense", "is_nonzero", "equal", "bincount", "_unique2", "unique_dim", "histc"))
"""Operators that hand a value to the host, or take a shape from one."""
SHAPES = frozenset(("nonzero", "nonzero_numpy", "masked_select", "unique_consecutive", "repeat_interleave"))
COPIES = frozenset(("lift_fresh", "lift_fresh_copy"))
"""A tensor of numbers that the host has."""
PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm"))
METHODS = frozenset(("tolist", "cpu", "numpy", "__array__"))
"""Of a tensor, what is no operator on a CPU."""


@dataclass
class Waits:
    """What was seen.

    Attributes:
        seen: `file:line operator` of the package's innermost line -> how often.
        late: those among them that came after a matrix product: the device was at work and is left without.
        filling: whether a number is written into a tensor just now.
        working: whether there was a product.
    """

    seen: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    filling: bool = False
    working: bool = False

    def add(self, what: str) -> None:
        """One more, at the line of the package that runs."""
        if not (self.filling and what in COPIES):
            where = f"{_line()} {what}"
            self.seen[where] += 1
            self.late[where] += self.working

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.seen.values())


@contextmanager
def waits() -> Iterator[Waits]:
    """Inside, every wait is noted."""
    found = Waits()
    with _Operators(found), _Methods(found):
        yield found


class _Operators(TorchDispatchMode):
    def __init__(self, found: Waits) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.partition("::")[2], kwargs or {}
        self._found.working = self._found.working or name in PRODUCTS
        sized = name == "repeat_interleave" and kwargs.get("output_size") is not None
        if name in VALUES | COPIES or (name in SHAPES and not sized) or _chooses(name, args):
            self._found.add(name)
        return func(*args, **kwargs)


class _Methods(TorchFunctionMode):
    def __init__(self, found: Waits) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in METHODS and isinstance(args[0], Tensor):
            self._found.add(name)
        # x[...] = number: torch makes a tensor of the number, on a GPU one of the host's, and fills with it.
        self._found.filling = name == "__setitem__" and not isinstance(args[2], Tensor)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._found.filling = False


def _chooses(name: str, args: Any) -> bool:
    """Whether an index is a mask, whose number of entries the host must know; one number is filled in without."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        return False
    masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
    filled = name != "index" and len(args[1]) == 1 and args[2].numel() == 1
    return bool(masks) and not filled


def _line() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
