"""What is known of a callable that somebody gives: its name, what it takes, and the modules behind it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, MethodWrapperType, ModuleType

import torch
from torch import nn

from gtl_lightning.errors import UserError

_OF_A_MODULE = frozenset(vars(nn.Module()))
"""Where a module keeps its parts, which it is asked for otherwise, and its hooks."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.Tensor, type, ModuleType)
_CONTAINERS = (list, tuple, set, frozenset, dict)
_MANY = 1000
"""A container of more is data, a vocabulary or texts, unless it begins with a module."""


def called(network: object, role: str) -> str:
    """`role` and the name of a callable, for messages."""
    return f"{role} ({getattr(network, '__name__', None) or type(network).__name__})"


@contextmanager
def taking(network: object, *inputs: object, **options: object) -> Iterator[None]:
    """Around a call: that a callable takes other arguments is a fault of who gave it, an error in it is its own.

    Raises:
        UserError: it takes other arguments. Only a call that failed is asked, so that the others cost nothing.
    """
    try:
        yield
    except TypeError as error:
        why = _mismatch(network, inputs, options)
        if why is None:
            raise
        given = "one argument" if len(inputs) == 1 else f"{len(inputs)} arguments"
        raise UserError(f"the {called(network, 'callable')} is called with {given}; {why}") from error


def _mismatch(network: object, inputs: tuple[object, ...], options: dict[str, object]) -> str | None:
    """How the parameters of a callable differ from what it is given; None where they fit, or nothing tells them."""
    # A module's own call takes anything and hands it to `forward`.
    taken: object = network.forward if isinstance(network, nn.Module) else network
    try:
        signature = inspect.signature(taken)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*inputs, **options)
    except TypeError as error:
        return f"it takes {signature} ({error})"
    return None


def second_input(network: object) -> str | None:
    """The name of what a module takes second; None for another callable, or where nothing tells it."""
    if not isinstance(network, nn.Module):
        return None
    try:
        names = list(inspect.signature(network.forward).parameters)
    except (TypeError, ValueError):
        return None
    return names[1] if len(names) > 1 else None


def held(network: object, deep: int = 3, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The modules behind a callable: itself, or what it reaches.

    That is what it is bound to, closes over, applies partially, has as attributes, takes as defaults or names globally,
    and what lies in containers of these. `lambda x, t: model(x)` in a script reaches its model by a global name.
    """
    seen = set() if seen is None else seen
    if id(network) in seen:
        return
    seen.add(id(network))
    if isinstance(network, nn.Module):
        yield network
        # What it keeps elsewhere than among its parts: a list, an object.
        inner = [getattr(network, "denoiser", None)]
        inner += [value for name, value in vars(network).items() if name not in _OF_A_MODULE]
    else:
        inner = list(_reached(network))
    for part in inner:
        if deep and _may_hold(part):
            yield from held(part, deep - 1, seen)


def _may_hold(part: object) -> bool:
    """Whether modules may be reached from it: no number, text, tensor, class or module of Python's."""
    if isinstance(part, _PLAIN):
        return False
    if isinstance(part, _CONTAINERS):
        first = next(iter(part.values() if isinstance(part, dict) else part), None)
        return len(part) <= _MANY or isinstance(first, nn.Module)
    return callable(part) or bool(_own(part)) or bool(_slots(part))


def _reached(holder: object) -> Iterator[object]:
    """What a callable, an object or a container has at hand."""
    if isinstance(holder, dict):
        yield from holder.values()
    elif isinstance(holder, _CONTAINERS):
        yield from holder
    if isinstance(holder, partial):
        yield from (holder.func, *holder.args, *holder.keywords.values())
    # Of Python's own kinds alone: what answers to any name, or raises, is not asked.
    if isinstance(holder, MethodType):
        yield from (holder.__self__, holder.__func__)
    elif isinstance(holder, BuiltinFunctionType | MethodWrapperType):
        yield holder.__self__
    yield from _own(holder).values()
    if isinstance(holder, FunctionType):
        yield from (cell.cell_contents for cell in holder.__closure__ or () if cell != type(cell)())
        yield from (*(holder.__defaults__ or ()), *(holder.__kwdefaults__ or {}).values())
        yield from (holder.__globals__.get(name) for name in holder.__code__.co_names)
    else:
        yield next((vars(kind)["__call__"] for kind in type(holder).__mro__ if "__call__" in vars(kind)), None)
        yield from _slots(holder)


def _own(holder: object) -> dict[str, object]:
    """The attributes that an object keeps itself, whatever it answers to other names."""
    try:
        return dict(object.__getattribute__(holder, "__dict__"))
    except AttributeError:
        return {}


def _slots(holder: object) -> list[object]:
    """What lies in the slots of an object."""
    found = []
    for kind in type(holder).__mro__:
        for slot in vars(kind).values() if "__slots__" in vars(kind) else ():
            if isinstance(slot, MemberDescriptorType):
                with suppress(AttributeError):  # nothing was put there
                    found.append(slot.__get__(holder))
    return found


@contextmanager
def evaluating(*networks: object) -> Iterator[None]:
    """Inside, modules among the networks are in eval mode, so that no dropout samples; afterwards as they were.

    So are those that a partial, a bound method, a function or an object holds (`held`).
    """
    before: list[tuple[nn.Module, bool]] = []
    for root in (root for network in networks for root in held(network)):
        modes = [(module, module.training) for module in root.modules()]
        if any(training for _, training in modes):
            before += modes
            root.eval()
    try:
        yield
    finally:
        for module, training in reversed(before):
            module.training = training
