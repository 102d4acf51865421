"""Where the study's stages leave what they find, and where the study is tracked (docs/ar2diff-study.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.workspace.params import Params

if TYPE_CHECKING:
    from gtl_lightning.workspace.tracking import Study

Row = dict[str, Any]
FOLDER = Path("ar2diff")
CHAINS, TEXT, SPEED = (FOLDER / f"{name}.json" for name in ("chains", "text", "speed"))


def study(params: Params) -> Study:
    """The MLflow study of this profile."""
    from gtl_lightning.workspace.tracking import Study

    tracking = params.tracking
    return Study(tracking.uri, f"{tracking.experiment}-ar2diff", {"profile": params.profile, "data_hash": "ar2diff"})
