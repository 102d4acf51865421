"""Guided transfer learning for discrete diffusion models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gtl_lightning.api.denoiser import load_denoiser, load_pretrained
    from gtl_lightning.api.guided import GuidedModel
    from gtl_lightning.api.measures import advise, mauve, nelbo, select_gamma
    from gtl_lightning.api.ratio import TrainedRatio, load_ratio, train_ratio
    from gtl_lightning.core.blocks import Blocks
    from gtl_lightning.core.choices import Draw, Order
    from gtl_lightning.core.guidance import Guidance, SequenceRatio, TokenRatio
    from gtl_lightning.core.recorder import Recorder
    from gtl_lightning.core.sampling import sample
    from gtl_lightning.core.trace import Step
    from gtl_lightning.errors import UserError
    from gtl_lightning.papers.tcsm import Reward
    from gtl_lightning.sharing.card import Card
    from gtl_lightning.workspace.registry import load_model

__all__ = [
    "Blocks",
    "Card",
    "Draw",
    "Guidance",
    "GuidedModel",
    "Order",
    "Recorder",
    "Reward",
    "SequenceRatio",
    "Step",
    "TokenRatio",
    "TrainedRatio",
    "UserError",
    "advise",
    "load_denoiser",
    "load_model",
    "load_pretrained",
    "load_ratio",
    "mauve",
    "nelbo",
    "sample",
    "select_gamma",
    "train_ratio",
]

_HOMES = {
    "Blocks": "core.blocks",
    "Card": "sharing.card",
    "Draw": "core.choices",
    "Guidance": "core.guidance",
    "GuidedModel": "api.guided",
    "Order": "core.choices",
    "Recorder": "core.recorder",
    "Reward": "papers.tcsm",
    "SequenceRatio": "core.guidance",
    "Step": "core.trace",
    "TokenRatio": "core.guidance",
    "TrainedRatio": "api.ratio",
    "UserError": "errors",
    "advise": "api.measures",
    "load_model": "workspace.registry",
    "load_denoiser": "api.denoiser",
    "load_pretrained": "api.denoiser",
    "load_ratio": "api.ratio",
    "mauve": "api.measures",
    "nelbo": "api.measures",
    "sample": "core.sampling",
    "select_gamma": "api.measures",
    "train_ratio": "api.ratio",
}


def __getattr__(name: str) -> Any:
    """Import a public name, and with it torch, when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("gtl-lightning")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, used or not."""
    return [*__all__, "__version__"]
