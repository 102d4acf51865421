"""What dvc.yaml declares that a command of a stage reads: keys of parameter files, code, other stages' results.

dvc.yaml is read as text, not by DVC, whose import takes longer than many a stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.closure import PACKAGE
from gtl_lightning.workspace.yamlfile import read_values

PARAMS = "params.yaml"
STUDIES = f"{PACKAGE}/studies/*/dvc.yaml"
_ITEM = re.compile(r"\$\{item\.(\w+)\}")
_ANY = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True)
class Declared:
    """What a command reads.

    Attributes:
        params: file of parameters -> dotted keys.
        code: files and folders of the package.
        data: other files and folders; `*` stands for what the command does not say.
    """

    params: dict[str, tuple[str, ...]]
    code: tuple[str, ...]
    data: tuple[str, ...]


def declared(arguments: Sequence[str]) -> Declared | None:
    """What the stage of a command line `gtl ARGUMENTS` in the working directory reads; None if it is no stage's.

    A method that is in no list of the sweep reads what any stage of this command would.
    """
    words, options = _split(arguments)
    found = []
    for path in [Path("dvc.yaml"), *sorted(Path().glob(STUDIES))]:
        if words and path.is_file() and f"cmd: gtl {words[0]}" in path.read_text(encoding="utf-8"):
            lists = values_of(path.with_name(PARAMS))
            for stage in values_of(path).get("stages", {}).values():
                if named := _named(stage, words, options, lists):
                    found.append((stage, *named, lists))
    if not found:
        return None
    of_grid = [one for one in found if one[2]] or found
    params: dict[str, tuple[str, ...]] = {}
    deps: list[str] = []
    for stage, item, _, lists in of_grid:
        deps += _filled(stage["deps"], item, lists)
        for entry in stage.get("params", []):
            for file, keys in entry.items() if isinstance(entry, dict) else ((PARAMS, [entry]),):
                params[file] = tuple(dict.fromkeys((*params.get(file, ()), *_filled(keys, item, lists))))
    code = {dep for dep in deps if dep.startswith(f"{PACKAGE}/")}
    return Declared(params, tuple(sorted(code)), tuple(sorted(set(deps) - code)))


def values_of(path: Path) -> dict[str, Any]:
    """What a YAML file states; nothing for one that cannot be read, which the command itself will say."""
    try:
        return read_values(path)
    except UserError:
        return {}


def at(values: Any, key: str) -> Any:
    """The value at a dotted key, `sweep.seeds[0]` among them; None where there is none."""
    for part in re.findall(r"[^.\[\]]+", key):
        try:
            values = values[int(part)] if isinstance(values, list) else values[part]
        except (LookupError, TypeError, ValueError):
            return None
    return values


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Words, and the value of every option."""
    words, options, waiting = [], {}, list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            words.append(word)
        elif "=" in word:
            name, _, options[name] = word.partition("=")
        elif waiting:
            options[word] = waiting.pop(0)
    return words, options


def _named(
    stage: Mapping[str, Any], words: Sequence[str], options: Mapping[str, str], lists: Mapping[str, Any]
) -> tuple[dict[str, str], bool] | None:
    """The point of the stage's matrix that the command names, and whether the grid has it; None: another command."""
    own_words, own_options = _split(stage["cmd"].split()[1:])
    if len(words) != len(own_words) or any(
        own != word and not _ITEM.fullmatch(own) for own, word in zip(own_words, words, strict=True)
    ):
        return None
    item, of_grid = {}, True
    said = [(own, options[name]) for name, own in own_options.items() if name in options]
    for own, given in [*zip(own_words, words, strict=True), *said]:
        if axis := _ITEM.fullmatch(own):
            listed = at(lists, stage["matrix"][axis[1]].strip("${}")) or []
            same = [str(value) for value in listed if _equal(value, given)]
            item[axis[1]], of_grid = (same or [given])[0], of_grid and bool(same)
    return item, of_grid


def _equal(value: Any, given: str) -> bool:
    try:
        return float(value) == float(given)
    except ValueError:
        return str(value) == given


def _filled(templates: Iterable[str], item: Mapping[str, str], lists: Mapping[str, Any]) -> list[str]:
    """`${...}` replaced as DVC does it; what nobody said is any."""

    def value(match: re.Match[str]) -> str:
        found = at({**lists, "item": item}, match[1])
        return "*" if found is None else str(found)

    return [_ANY.sub(value, template) for template in templates]
