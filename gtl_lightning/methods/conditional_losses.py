"""The losses of TCSM that compare true tokens with a frozen denoiser's predictions, by name (docs/method.md 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gtl_lightning.modules.conditional_ratio import TokenLoss

RatioLoss = Literal["bce", "lsif", "gkl"]


def ratio_loss(name: RatioLoss) -> TokenLoss:
    """The function of `papers.tcsm`."""
    from gtl_lightning.papers import tcsm

    return {"bce": tcsm.conditional_bce_loss, "lsif": tcsm.conditional_lsif_loss, "gkl": tcsm.conditional_gkl_loss}[
        name
    ]
