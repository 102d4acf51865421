"""The study's own parameters: params.yaml in this folder -> `Markov`, as params.yaml of the project -> `Params`.

Where it runs and is tracked (`machine`, `tracking`, `profile`) the project's params.yaml says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.files import write_text
from gtl_lightning.studies.markov.settings import DIFFERENCES, Markov, completed
from gtl_lightning.workspace.params import changes, merged, read_overrides, validated
from gtl_lightning.workspace.yamlfile import described, read_values

PARAMS = Path("gtl_lightning/studies/markov/params.yaml")
COMMAND = "gtl markov configure"
HEAD = "# The study on Markov chains (docs/markov.md). Edit it, or gtl markov configure --set KEY=VALUE"


def load_settings(path: Path | str = PARAMS) -> Markov:
    """Read and validate the study's params.yaml.

    Raises:
        UserError: missing, not YAML, an unknown key or a value out of range; the line names file and key.
    """
    return validated(Markov, read_values(path, COMMAND), path)


def overlaid(values: dict[str, Any], overrides: tuple[str, ...], origin: Path | str = PARAMS) -> Markov:
    """The file's `values`, then `key=value` overrides; what neither says is as it is shipped.

    Raises:
        UserError: naming `origin`; an override without `=`, an unknown key, a value out of range.
    """
    laid = read_overrides(overrides, "vanilla.steps=200")
    # A training that the file names says itself what differs.
    held = merged(_stated(Markov()), values) | {name: values[name] for name in DIFFERENCES if name in values}
    return validated(Markov, merged(held, laid), f"{origin} with --set" if overrides else origin)


def requested(overrides: tuple[str, ...], path: Path | str = PARAMS) -> tuple[Markov, list[str]]:
    """What the file is to hold, and a line `key: old -> new` for every value of it that changes.

    With overrides these are laid over the file, every other value stays; without any it is as shipped, and the lines
    say what is dropped.

    Raises:
        UserError: an unreadable file, an unknown key or a value out of range.
    """
    if overrides:
        values = read_values(path, COMMAND)
        asked = overlaid(values, overrides, path)
        return asked, told(_whole(values), asked)
    asked = Markov()
    if not Path(path).exists():
        return asked, []
    try:
        return asked, [f"dropped {line}" for line in told(load_settings(path).model_dump(mode="json"), asked)]
    except UserError as error:
        return asked, [f"dropped, as it could not be read: {error}"]


def told(held: dict[str, Any], asked: Markov) -> list[str]:
    """`key: old -> new` of every value that changes, those that a training takes over from the default among them."""
    return list(changes(held, asked.model_dump(mode="json")).values())


def dump_settings(settings: Markov) -> str:
    """The text of the file: every value with its description, of a training what differs from the default."""
    return "\n".join([HEAD, *described(settings, _stated(settings), DIFFERENCES)]) + "\n"


def write_settings(settings: Markov, path: Path | str = PARAMS) -> None:
    """Write the study's params.yaml atomically."""
    write_text(path, dump_settings(settings))


def _stated(settings: Markov) -> dict[str, Any]:
    """The values that the file states."""
    values = settings.model_dump(mode="json")
    default = values["training"]
    del default["also_lr"]  # which has to be empty in this study
    differ = {name: {k: v for k, v in values[name].items() if default.get(k, v) != v} for name in DIFFERENCES}
    return values | differ


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    """What a file that may hold wrong values says, completed as `Markov` completes it, unchecked."""
    return merged(Markov().model_dump(mode="json"), completed(values))
