"""Runs the stages of dvc.yaml one by one in this process and records which parameters and which files each reads."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows.cli import app
from gtl_lightning.fields import Section
from gtl_lightning.workspace import params as config
from gtl_lightning.workspace.closure import ROOT
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.stated import HEIRS

SAYS_WHERE = ("machine.", "tracking.", "profile")
"""Parameters that say where a stage runs and under which name it is tracked; they are no part of its result."""
OWN = (".state", "mlflow.db", "mlartifacts", ".mlflow.lock", "params.yaml", ".prefect")
"""Files of the workspace that are no input: resumable state, the tracker's, the parameters themselves."""
_hear: list[Callable[[str, str], None]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _hear and isinstance(arguments[0], str):
        for hear in _hear:
            hear(arguments[0], str(arguments[1] or "r"))


sys.addaudithook(_audit)  # cannot be taken away again; silent while nobody hears


@dataclass(frozen=True)
class Point:
    """One point of a stage, as DVC expands it."""

    stage: str
    method: str
    command: tuple[str, ...]
    params: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[str, ...]


@dataclass
class Reading:
    """What the points of the pipeline have read.

    Attributes:
        params: point -> dotted keys of params.yaml.
        files: point -> paths relative to the workspace.
        said: point -> the keys of the settings by which an evaluation is found again.
        keyed: point -> paths by whose content the state of each of its fits is named.
    """

    params: dict[Point, set[str]] = field(default_factory=dict)
    files: dict[Point, set[str]] = field(default_factory=dict)
    said: dict[Point, set[str]] = field(default_factory=dict)
    keyed: dict[Point, list[set[str]]] = field(default_factory=dict)


def points(params: Params) -> list[Point]:
    """Every stage of the main pipeline, its first point of each method, in the order of dvc.yaml."""
    values = params.model_dump(mode="json")
    found = []
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        axes = {axis: _fill(where, values) for axis, where in stage.get("matrix", {}).items()}
        for chosen in product(*(axis if key == "method" else axis[:1] for key, axis in axes.items())):
            item = dict(zip(axes, chosen, strict=True))
            told = {key: stage.get(key, []) for key in ("cmd", "params", "deps")}
            outs = [
                next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"] + stage.get("metrics", [])
            ]
            filled = _fill({**told, "outs": outs}, {**values, "item": item})
            deps = tuple(dep for dep in filled["deps"] if not dep.startswith("gtl_lightning"))
            command = tuple(filled["cmd"].split()[1:])
            found.append(
                Point(name, str(item.get("method", "")), command, tuple(filled["params"]), deps, tuple(filled["outs"]))
            )
    return found


def _fill(value: Any, values: dict[str, Any]) -> Any:
    """`${a.b[0]}` replaced as DVC does it."""
    if isinstance(value, dict):
        return {key: _fill(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, values) for inner in value]

    def look_up(match: re.Match[str]) -> Any:
        found: Any = values
        for part in re.findall(r"[^.\[\]]+", match.group(1)):
            found = found[int(part)] if isinstance(found, list) else found[part]
        return found

    whole = re.fullmatch(r"\$\{([^}]+)\}", str(value))
    return look_up(whole) if whole else re.sub(r"\$\{([^}]+)\}", lambda match: str(look_up(match)), str(value))


def run_all(chosen: list[Point], reading: Reading) -> None:
    """Run the points in the working directory, recording into `reading`."""
    command = typer.main.get_command(app)
    for point in chosen:
        with recorded(reading, point):
            command.main(list(point.command), standalone_mode=False)


@contextmanager
def recorded(reading: Reading, point: Point) -> Iterator[None]:
    """Record all that is read of parameters and of files below the working directory."""
    keys, files, said = (found.setdefault(point, set()) for found in (reading.params, reading.files, reading.said))
    places: dict[int, tuple[str, Section]] = {}  # the section itself, so that its id is not given to another
    silent: list[bool] = []
    here = Path.cwd()

    def place(section: Section, prefix: str) -> None:
        places[id(section)] = (prefix, section)
        for name, described in type(section).model_fields.items():
            inner = object.__getattribute__(section, name)
            if isinstance(inner, Section):
                place(inner, f"{prefix}{described.alias or name}.")

    def attribute(section: Section, name: str) -> Any:
        value = object.__getattribute__(section, name)
        described = type(section).model_fields.get(name)
        if described is not None and not isinstance(value, Section) and id(section) in places and not silent:
            keys.update(with_default(f"{places[id(section)][0]}{described.alias or name}"))
        return value

    def dump(section: Section, **options: Any) -> dict[str, Any]:
        values = plain_dump(section, **options)
        dumped(section, values)
        return values

    def dumped(section: Section, values: dict[str, Any]) -> None:
        """A section that is a part of the parameters has been read, on its own or within another object."""
        if id(section) in places:
            for name in flat(values):
                (said if silent else keys).update(with_default(f"{places[id(section)][0]}{name}"))
            return
        for name, described in type(section).model_fields.items():
            inner, key = object.__getattribute__(section, name), described.alias or name
            if isinstance(inner, Section) and key in values:
                dumped(inner, values[key])

    def copy(section: Section, **options: Any) -> Section:
        made = plain_copy(section, **options)
        if id(section) in places:
            changed = {id(object.__getattribute__(made, name)): name for name in options.get("update", {})}
            known = {key: kept for key, kept in places.items() if key in changed}
            place(made, places[id(section)][0])
            places.update(known)
        return made

    def load(*arguments: Any) -> Params:
        # What the file leaves out is one object for all parameters that there are; here each has its own.
        params: Params = plain_copy(plain_load(*arguments), deep=True)
        place(params, "")
        return params

    def told(*arguments: Any, **options: Any) -> Any:
        silent.append(True)
        try:
            return plain_settings(*arguments, **options)
        finally:
            silent.pop()

    def named(name: str, settings: dict[str, Any], *inputs: Path, **options: Any) -> Path:
        reading.keyed.setdefault(point, []).append({path.as_posix() for path in inputs})
        silent.append(True)  # a hash is of what is read, and no reader
        try:
            return plain_state(name, settings, *inputs, **options)
        finally:
            silent.pop()

    def hear(path: str, mode: str) -> None:
        where = None if silent else _inside(path, here)
        if where is None or set(mode) & set("wax+") or not (here / where).is_file():
            return
        if not where.startswith(OWN) and not any(where == out or where.startswith(f"{out}/") for out in point.outs):
            files.add(where)

    def heard(call: Any) -> Any:
        def reads(path: Any, *arguments: Any, **options: Any) -> Any:
            hear(str(path), "r")
            return call(path, *arguments, **options)

        return reads

    import pyarrow.parquet
    import safetensors

    from gtl_lightning.stages import data, evaluate
    from gtl_lightning.workspace import corpus, fitting, opening

    plain_dump, plain_copy, plain_load = Section.model_dump, Section.model_copy, config.load_params
    plain_settings, plain_state = evaluate.settings_of, fitting.state_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", attribute)
        patch.setattr(Section, "model_dump", dump)
        patch.setattr(Section, "model_copy", copy)
        patch.setattr(config, "load_params", load)
        # What is compared, and what is told to MLflow, is not used: it changes no result.
        for opener in (corpus, data):
            patch.setattr(opener, "check_corpus", lambda *_: None)
        patch.setattr(data, "check_featurizer", lambda *_: None)
        patch.setattr(opening, "check_point", lambda *_: None)
        patch.setattr(evaluate, "settings_of", told)
        patch.setattr(fitting, "state_dir", named)
        # These open files without Python's knowledge.
        patch.setattr(safetensors, "safe_open", heard(safetensors.safe_open))
        patch.setattr(pyarrow.parquet, "ParquetFile", heard(pyarrow.parquet.ParquetFile))
        _hear.append(hear)
        try:
            yield
        finally:
            _hear.remove(hear)


def with_default(key: str) -> set[str]:
    """The key of a value that holds, and that of the default it may have been taken from."""
    part, _, name = key.rpartition(".")
    return {key, f"{HEIRS[part].default}.{name}"} if part in HEIRS else {key}


def flat(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all single values."""
    return [
        name
        for key, value in values.items()
        for name in (flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]


def _inside(path: str, folder: Path) -> str | None:
    try:
        return Path(path).resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return None
