"""Which adapter reads a model's folder, by what its configuration says; what none reads is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.networks.adapters.decoders import native
from gtl_lightning.networks.adapters.masked_lm import MaskedLMDenoiser, masked_lms
from gtl_lightning.networks.adapters.mdlm import DiTDenoiser
from gtl_lightning.networks.adapters.model import ModelDenoiser
from gtl_lightning.networks.families import FAMILIES
from gtl_lightning.networks.pretrained import PretrainedDenoiser
from gtl_lightning.records import read_record

ADAPTERS: tuple[type[ModelDenoiser], ...] = (PretrainedDenoiser, MaskedLMDenoiser, DiTDenoiser)


def adapter(config: dict[str, Any], name: object) -> type[ModelDenoiser]:
    """The class that reads a model of a configuration.

    Raises:
        UserError: a causal model, a variant that needs more than a row of tokens, or another kind.
    """
    kind = str(config.get("model_type"))
    if "bd3lm" in str(name).lower():
        raise UserError(f"{name} is of block diffusion, which wants its block mask; give the variant without blocks")
    if native(config):
        return PretrainedDenoiser
    if kind == "mdlm":
        return DiTDenoiser
    if kind in masked_lms() and not config.get("is_decoder"):
        return MaskedLMDenoiser
    if kind in causal_lms():
        convert = (
            f"make a denoiser of it: gtl ar2diff --from {name} --steps 0 --out FOLDER"
            if kind in FAMILIES
            else f"give a denoiser, or a causal model that gtl ar2diff makes one of ({', '.join(FAMILIES)})"
        )
        raise UserError(f"{name} is a causal model ({kind}), which reads what comes before alone; {convert}")
    raise UserError(
        f"{name} is a model of type {kind!r}, for which there is no adapter; give a masked language model of "
        "transformers, an MDLM, LLaDA, Dream or dLLM, or what `gtl ar2diff` wrote"
    )


def causal_lms() -> set[str]:
    """The `model_type`s that transformers calls causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
        UserError: missing, or no JSON object.
    """
    return read_record(folder / "config.json")
