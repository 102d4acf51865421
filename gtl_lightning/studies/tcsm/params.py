"""The study's own parameters: params.yaml in this folder -> `Tcsm`.

Where it runs and is tracked (`machine`, `tracking`, `profile`) the project's params.yaml says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.files import write_text
from gtl_lightning.studies.tcsm.settings import Tcsm
from gtl_lightning.workspace.params import changes, merged, read_overrides, validated
from gtl_lightning.workspace.yamlfile import described, read_values

PARAMS = Path("gtl_lightning/studies/tcsm/params.yaml")
COMMAND = "gtl tcsm configure"
HEAD = "# The study of target concrete score matching (docs/tcsm.md). Edit it, or gtl tcsm configure --set KEY=VALUE"


def load_settings(path: Path | str = PARAMS) -> Tcsm:
    """Read and validate the study's params.yaml.

    Raises:
        UserError: missing, not YAML, an unknown key or a value out of range; the line names file and key.
    """
    return validated(Tcsm, read_values(path, COMMAND), path)


def overlaid(values: dict[str, Any], overrides: tuple[str, ...], origin: Path | str = PARAMS) -> Tcsm:
    """The file's `values`, then `key=value` overrides; what neither says is as it is shipped.

    Raises:
        UserError: naming `origin`; an override without `=`, an unknown key, a value out of range.
    """
    laid = read_overrides(overrides, "text.training.steps=200")
    held = merged(Tcsm().model_dump(mode="json"), values)
    return validated(Tcsm, merged(held, laid), f"{origin} with --set" if overrides else origin)


def requested(overrides: tuple[str, ...], path: Path | str = PARAMS) -> tuple[Tcsm, list[str]]:
    """What the file is to hold, and a line `key: old -> new` for every value of it that changes.

    With overrides these are laid over the file, every other value stays; without any it is as shipped, and the lines
    say what is dropped.

    Raises:
        UserError: an unreadable file, an unknown key or a value out of range.
    """
    if overrides:
        values = read_values(path, COMMAND)
        asked = overlaid(values, overrides, path)
        return asked, _told(merged(Tcsm().model_dump(mode="json"), values), asked)
    asked = Tcsm()
    if not Path(path).exists():
        return asked, []
    try:
        return asked, [f"dropped {line}" for line in _told(load_settings(path).model_dump(mode="json"), asked)]
    except UserError as error:
        return asked, [f"dropped, as it could not be read: {error}"]


def dump_settings(settings: Tcsm) -> str:
    """The text of the file: every value with its description, trainings and networks in one line."""
    values = settings.model_dump(mode="json")
    for part in ("chains", "text"):
        del values[part]["training"]["also_lr"]  # which has to be empty in this study
    return "\n".join([HEAD, *described(settings, values, ("network", "training"))]) + "\n"


def write_settings(settings: Tcsm, path: Path | str = PARAMS) -> None:
    """Write the study's params.yaml atomically."""
    write_text(path, dump_settings(settings))


def _told(held: dict[str, Any], asked: Tcsm) -> list[str]:
    return list(changes(held, asked.model_dump(mode="json")).values())
