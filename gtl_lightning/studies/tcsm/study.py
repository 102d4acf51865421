"""Where the study's stages leave what they find, and where the study is tracked (docs/tcsm.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.workspace.params import Params

if TYPE_CHECKING:
    from gtl_lightning.workspace.tracking import Study

Row = dict[str, Any]
FOLDER = Path("tcsm")
LAW, CHAINS, TEXT = (FOLDER / f"{name}.json" for name in ("law", "chains", "text"))


def study(params: Params) -> Study:
    """The MLflow study of this profile."""
    from gtl_lightning.workspace.tracking import Study

    tracking = params.tracking
    return Study(tracking.uri, f"{tracking.experiment}-tcsm", {"profile": params.profile, "data_hash": "tcsm"})
