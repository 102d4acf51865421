"""Guided transfer learning for discrete diffusion models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gtl_lightning.core.blocks import Blocks
    from gtl_lightning.core.choices import Draw, Order
    from gtl_lightning.core.guidance import Guidance, SequenceRatio, TokenRatio
    from gtl_lightning.core.sampling import sample
    from gtl_lightning.core.trace import Step
    from gtl_lightning.papers.tcsm import Reward
    from gtl_lightning.workspace.registry import load_model

__all__ = [
    "Blocks",
    "Draw",
    "Guidance",
    "Order",
    "Reward",
    "SequenceRatio",
    "Step",
    "TokenRatio",
    "load_model",
    "sample",
]

_HOMES = {
    "Blocks": "core.blocks",
    "Draw": "core.choices",
    "Guidance": "core.guidance",
    "Order": "core.choices",
    "Reward": "papers.tcsm",
    "SequenceRatio": "core.guidance",
    "Step": "core.trace",
    "TokenRatio": "core.guidance",
    "load_model": "workspace.registry",
    "sample": "core.sampling",
}


def __getattr__(name: str) -> Any:
    """Import a public name, and with it torch, when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
