"""LoRA fine-tuning of a source through peft: adapters in, adapters merged out again."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TypeVar, cast

from torch import nn

from gtl_lightning.core.protocols import Source
from gtl_lightning.networks import seeded

S = TypeVar("S", bound=Source)


def add_lora(
    source: S,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
    linears: Sequence[str] | None = None,
) -> S:
    """A copy of the source in which only low-rank updates W + (alpha / rank) B A train (LoRA, arXiv 2106.09685).

    B starts at zero: the copy computes what the source does. Train it with `DenoiserModule`, then `merge_lora`.

    Args:
        source: stays as it is.
        rank: of the updates.
        alpha: their scale.
        dropout: of what the updates read.
        seed: of A.
        linears: names of the layers that are updated; None takes the source's own `lora_targets`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    adapted = cast(nn.Module, source.trainable_copy())
    targets = list(source.lora_targets if linears is None else linears)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)  # type: ignore[arg-type]
    with seeded(seed), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "fan_in_fan_out"
        )  # layers that hold their weights transposed are seen as such
        return cast(S, inject_adapter_in_model(config, adapted))


def merge_lora(adapted: S) -> S:
    """A plain source with the updates added into its weights; `adapted` stays as it is."""
    from peft.tuners.lora import LoraLayer

    merged = cast(nn.Module, adapted.trainable_copy())
    layers = [(name, layer) for name, layer in merged.named_modules() if isinstance(layer, LoraLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, layer.get_base_layer())
    return cast(S, merged.eval())
