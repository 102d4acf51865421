"""The study's own parameters: params.yaml in this folder -> `Tcsm`.

Where it runs and is tracked (`machine`, `tracking`, `profile`) the project's params.yaml says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtl_lightning.studies.tcsm.settings import Tcsm
from gtl_lightning.workspace.params import merged, read_overrides, validated
from gtl_lightning.workspace.studyfile import StudyFile
from gtl_lightning.workspace.yamlfile import described

PARAMS = Path("gtl_lightning/studies/tcsm/params.yaml")
HEAD = "# The study of target concrete score matching (docs/tcsm.md). Edit it, or gtl tcsm configure --set KEY=VALUE"


def overlaid(values: dict[str, Any], overrides: tuple[str, ...], origin: Path | str = PARAMS) -> Tcsm:
    """The file's `values`, then `key=value` overrides; what neither says is as it is shipped.

    Raises:
        UserError: naming `origin`; an override without `=`, an unknown key, a value out of range.
    """
    laid = read_overrides(overrides, "text.training.steps=200")
    return validated(Tcsm, merged(_whole(values), laid), f"{origin} with --set" if overrides else origin)


def dump_settings(settings: Tcsm) -> str:
    """The text of the file: every value with its description, trainings and networks in one line."""
    values = settings.model_dump(mode="json")
    for part in ("chains", "text"):
        del values[part]["training"]["also_lr"]  # which has to be empty in this study
    return "\n".join([HEAD, *described(settings, values, ("network", "training"))]) + "\n"


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    return merged(Tcsm().model_dump(mode="json"), values)


FILE = StudyFile(Tcsm, PARAMS, "gtl tcsm configure", overlaid, _whole, dump_settings)
load_settings, requested, write_settings = FILE.load, FILE.requested, FILE.write
