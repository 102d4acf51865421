"""A result is of the inputs that it is filed under: what a stage reads is noted at its start and compared at its end.

DVC hashes code, data and parameters when a command has ended, and files the result under what stands there then. A
command whose inputs were edited meanwhile fails instead, so that nothing is filed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.files import sha256_file
from gtl_lightning.workspace.closure import ROOT
from gtl_lightning.workspace.declared import Declared, at, declared, values_of

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Inputs:
    """What a command reads, as it was when it was noted.

    Attributes:
        command: what was started.
        root: where.
        reads: what it reads.
        values: (file of parameters, key) -> value.
        code: file of the package -> hash.
        data: file -> time of its last change, size and number; contents may be large.
    """

    command: str
    root: Path
    reads: Declared
    values: dict[tuple[str, str], Any]
    code: dict[str, str]
    data: dict[str, Stamp]

    @classmethod
    def noted(cls, command: str, root: Path, reads: Declared) -> Inputs:
        """What stands there now."""
        files = {file: values_of(root / file) for file in reads.params}
        return cls(
            command,
            root,
            reads,
            {(file, key): at(files[file], key) for file, keys in reads.params.items() for key in keys},
            {name: sha256_file(path) for name, path in _files(ROOT, reads.code)},
            {name: _stamp(path) for name, path in _files(root, reads.data)},
        )

    def check(self) -> None:
        """Refuse what is no longer as it was noted.

        Raises:
            UserError: naming the first key or file, and how many more there are.
        """
        now = Inputs.noted(self.command, self.root, self.reads)
        changed = [
            f"{file} ({said})"
            for (file, key), before in self.values.items()
            for said in differing(before, now.values[file, key], key)
        ]
        for before, after in ((self.code, now.code), (self.data, now.data)):
            changed += sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise UserError(
                f"{changed[0]}{more} changed while `{self.command}` ran: its result is of what was there before and is "
                "not recorded; run it again"
            )


_current: Inputs | None = None
_imported: Mapping[str, str] = {}


def begin_with(code: Mapping[str, str]) -> None:
    """Say that this process has imported files of these hashes before it notes what its command reads."""
    global _imported
    _imported = code


@contextmanager
def watched(arguments: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Note what the command line `gtl ARGUMENTS` reads; yields `check_inputs`, to be called when it has ended well.

    Raises:
        UserError: code is no longer what was imported before.
    """
    reads = declared(arguments)
    inputs = Inputs.noted(" ".join(("gtl", *arguments)), Path.cwd(), reads) if reads else None
    code = inputs.code if inputs else {}
    if edited := [name for name in code if _imported.get(name, code[name]) != code[name]]:
        raise UserError(f"{edited[0]} was edited while `gtl {' '.join(arguments)}` was started; run it again")
    take_over(inputs)
    try:
        yield check_inputs
    finally:
        take_over(None)


def check_inputs() -> None:
    """Refuse to go on if what the running command reads has changed since it started; nothing for any other command.

    Raises:
        UserError: naming what.
    """
    if _current is not None:
        _current.check()


def noted_inputs() -> Inputs | None:
    """What the running command has noted, for processes that it starts."""
    return _current


def take_over(inputs: Inputs | None) -> None:
    """Let `check_inputs` of this process compare with `inputs`."""
    global _current
    _current = inputs


def differing(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """`key: before -> after` of every single value that differs, of the mappings below `key`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            yield from differing(before.get(name), after.get(name), f"{key}.{name}" if key else str(name))
    elif before != after:
        yield f"{key}: {_said(before)} -> {_said(after)}"


def _said(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, default=str)


def _files(root: Path, names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Every file that the names stand for; compiled code and what begins with a dot is no input (`.dvcignore`)."""
    for name in names:
        for path in root.glob(name) if "*" in name else (root / name,):
            for file in sorted(path.rglob("*")) if path.is_dir() else (path,):
                inner = file.relative_to(root)
                if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in inner.parts):
                    yield inner.as_posix(), file


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
