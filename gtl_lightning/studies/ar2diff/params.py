"""The study's own parameters: params.yaml in this folder -> `AR2Diff`.

Where it runs and is tracked (`machine`, `tracking`, `profile`) the project's params.yaml says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtl_lightning.studies.ar2diff.settings import TRAININGS, AR2Diff
from gtl_lightning.workspace.params import merged, read_overrides, validated
from gtl_lightning.workspace.studyfile import StudyFile
from gtl_lightning.workspace.yamlfile import described

PARAMS = Path("gtl_lightning/studies/ar2diff/params.yaml")
HEAD = "# The study of AR2Diff (docs/ar2diff-study.md). Edit it, or gtl ar2diff-study configure --set KEY=VALUE"


def overlaid(values: dict[str, Any], overrides: tuple[str, ...], origin: Path | str = PARAMS) -> AR2Diff:
    """The file's `values`, then `key=value` overrides; what neither says is as it is shipped.

    Raises:
        UserError: naming `origin`; an override without `=`, an unknown key, a value out of range.
    """
    laid = read_overrides(overrides, "text.task.steps=200")
    return validated(AR2Diff, merged(_whole(values), laid), f"{origin} with --set" if overrides else origin)


def dump_settings(settings: AR2Diff) -> str:
    """The text of the file: every value with its description, trainings and networks in one line."""
    values = settings.model_dump(mode="json")
    for part, name in TRAININGS:
        del values[part][name]["also_lr"]  # which has to be empty in this study
    in_one_line = ("network", *dict.fromkeys(name for _, name in TRAININGS))
    return "\n".join([HEAD, *described(settings, values, in_one_line)]) + "\n"


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    return merged(AR2Diff().model_dump(mode="json"), values)


FILE = StudyFile(AR2Diff, PARAMS, "gtl ar2diff-study configure", overlaid, _whole, dump_settings)
load_settings, requested, write_settings = FILE.load, FILE.requested, FILE.write
