"""LoRA fine-tuning of a denoiser through peft: adapters in, adapters merged out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from gtl_lightning.networks import MaskedDenoiser, copy_of, seeded

LINEARS = ("qkv", "out", "up", "down")
"""The attention and MLP projections of every block."""


def add_lora(
    denoiser: MaskedDenoiser,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
    linears: Sequence[str] = LINEARS,
) -> MaskedDenoiser:
    """A copy of the denoiser in which only low-rank updates W + (alpha / rank) B A train (LoRA, arXiv 2106.09685).

    B starts at zero: the copy computes what the denoiser does. Train it with `DenoiserModule`, then `merge_lora`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    adapted = copy_of(denoiser)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(linears))  # type: ignore[arg-type]
    with seeded(seed):
        return cast(MaskedDenoiser, inject_adapter_in_model(config, adapted))


def merge_lora(adapted: MaskedDenoiser) -> MaskedDenoiser:
    """A plain denoiser with the updates added into its weights; `adapted` stays as it is."""
    from peft.tuners.lora import LoraLayer

    merged = copy_of(adapted)
    layers = [(name, layer) for name, layer in merged.named_modules() if isinstance(layer, LoraLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, layer.get_base_layer())
    return cast(MaskedDenoiser, merged.eval())
