"""A denoiser that `gtl ar2diff` made of a pretrained decoder, from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gtl_lightning.data.checkpoint import checkpoint

if TYPE_CHECKING:
    import torch

    from gtl_lightning.networks.pretrained import PretrainedDenoiser


def load_pretrained(folder: Path | str, device: torch.device | str = "cpu") -> PretrainedDenoiser:
    """The denoiser of a folder, in eval mode: a `core.protocols.Source` that is sampled, guided and fine-tuned.

    Its texts are read by the tokenizer in the same folder: `train_ratio(denoiser, ..., tokenizer=folder)`.

    Args:
        folder: what `gtl ar2diff` wrote.
        device: where it goes.

    Raises:
        UserError: missing, damaged, no denoiser, or a model that brings code.
    """
    from gtl_lightning.networks.pretrained import PretrainedDenoiser

    return PretrainedDenoiser.load(checkpoint(str(folder)).folder).to(device)
