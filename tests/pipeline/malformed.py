"""What the tables of malformed inputs share: a copy of the finished workspace, ways to spoil a file, the one line."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main

Spoil = Callable[[Path], object]
LEFT_OUT = shutil.ignore_patterns("mlartifacts", ".state", "mlflow.db", "figures")


def linked(folder: Path, target: Path) -> Path:
    """A copy that costs no room: every file is a link, which `replaced` breaks before it writes."""
    return Path(shutil.copytree(folder, target, copy_function=os.link, ignore=LEFT_OUT))


class Line:
    """Runs the command line in a folder; what it is given has to be refused in one line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def refused(self, words: str | tuple[str, ...], folder: Path, *named: str, **environment: str) -> str:
        """The line, after exit code 2; it holds every one of `named`."""
        self._patch.chdir(folder)
        for name, value in environment.items():
            self._patch.setenv(name, value)
        self._patch.setattr(sys, "argv", ["gtl", *(words.split() if isinstance(words, str) else words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        assert ended.value.code == 2, captured.err
        (line,) = captured.err.strip().splitlines()
        assert line.startswith("error: "), line
        assert all(name in line for name in named), line
        assert line.isprintable(), line
        return line


def replaced(path: Path, content: bytes) -> None:
    """Put other content in a file's place; what it was linked to stays."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def cut(path: Path) -> None:
    replaced(path, path.read_bytes()[: path.stat().st_size // 2])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def as_bytes(content: bytes) -> Spoil:
    return lambda path: replaced(path, content)


def utf16(path: Path) -> None:
    replaced(path, path.read_text().encode("utf-16"))


FILE: Mapping[str, Spoil] = {
    "missing": Path.unlink,
    "a pipe": pipe,
    "a folder": folder,
    "a device": zeros,
    "empty": as_bytes(b""),
    "cut": cut,
    "noise": as_bytes(bytes(range(256)) * 40),
}
"""What may happen to any file."""
JSON: Mapping[str, Spoil] = {
    **FILE,
    "UTF-16": utf16,
    "another kind": as_bytes(b"5"),
    "null": as_bytes(b"null"),
    "NaN": as_bytes(b'{"sha256": NaN}'),
    "deep": as_bytes(b"[" * 100_000),
    "many digits": as_bytes(b'{"a": ' + b"9" * 100_000 + b"}"),
    "beyond the numbers": as_bytes(b'{"a": 1e999}'),
    "a key twice": as_bytes(b'{"a": 1, "a": 1}'),
    "two values": as_bytes(b"{}{}"),
    "a zero byte": as_bytes(b'{"a": "\0"}'),
}


def put(*keys: str | int, value: Any) -> Spoil:
    """Another value at a place of a JSON file, or at a new place."""

    def spoil(path: Path) -> None:
        whole = place = json.loads(path.read_text())
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        replaced(path, json.dumps(whole).encode())

    return spoil


def drop(*keys: str | int) -> Spoil:
    """A JSON file without one of its keys."""

    def spoil(path: Path) -> None:
        whole = place = json.loads(path.read_text())
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
        replaced(path, json.dumps(whole).encode())

    return spoil
