"""The study's own parameters: params.yaml in this folder -> `Markov`, as params.yaml of the project -> `Params`.

Where it runs and is tracked (`machine`, `tracking`, `profile`) the project's params.yaml says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtl_lightning.studies.markov.settings import DIFFERENCES, Markov, completed
from gtl_lightning.workspace.params import merged, read_overrides, validated
from gtl_lightning.workspace.studyfile import StudyFile
from gtl_lightning.workspace.yamlfile import described

PARAMS = Path("gtl_lightning/studies/markov/params.yaml")
HEAD = "# The study on Markov chains (docs/markov.md). Edit it, or gtl markov configure --set KEY=VALUE"


def overlaid(values: dict[str, Any], overrides: tuple[str, ...], origin: Path | str = PARAMS) -> Markov:
    """The file's `values`, then `key=value` overrides; what neither says is as it is shipped.

    Raises:
        UserError: naming `origin`; an override without `=`, an unknown key, a value out of range.
    """
    laid = read_overrides(overrides, "vanilla.steps=200")
    # A training that the file names says itself what differs.
    held = merged(_stated(Markov()), values) | {name: values[name] for name in DIFFERENCES if name in values}
    return validated(Markov, merged(held, laid), f"{origin} with --set" if overrides else origin)


def dump_settings(settings: Markov) -> str:
    """The text of the file: every value with its description, of a training what differs from the default."""
    return "\n".join([HEAD, *described(settings, _stated(settings), DIFFERENCES)]) + "\n"


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


FILE = StudyFile(Markov, PARAMS, "gtl markov configure", overlaid, _whole, dump_settings)
load_settings, requested, write_settings = FILE.load, FILE.requested, FILE.write
