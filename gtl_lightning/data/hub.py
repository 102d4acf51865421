"""A Hugging Face hub, and folders of that form, as what is read comes from: no code comes with a model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.sharing.hub import at_revision, endpoint, hub_reachable, quiet, refusals

__all__ = ["at_revision", "endpoint", "hub_reachable", "quiet", "refusals", "refuse_code"]

NATIVE = {
    "llada": "PreTrainedTokenizerFast",
    "mdlm": "PreTrainedTokenizerFast",
    "Dream": "Qwen2Tokenizer",
    "a2d-llama": "PreTrainedTokenizerFast",
    "a2d-qwen2": "Qwen2Tokenizer",
    "a2d-qwen3": "Qwen2Tokenizer",
}
"""`model_type` of models that `networks.adapters` reads without their own code -> class of their tokenizer."""


def config_beside(name: str, *, local_only: bool, revision: str | None = None) -> dict[str, Any]:
    """What the config.json of a folder or a hub's model says; nothing where it is missing or damaged."""
    from transformers import PreTrainedConfig

    with suppress(Exception):  # transformers raises whatever its parts raise
        return dict(PreTrainedConfig.get_config_dict(name, local_files_only=local_only, revision=revision)[0])
    return {}


def refuse_code(name: str, *, local_only: bool, revision: str | None = None) -> None:
    """Refuse a model or tokenizer whose configuration names code of its own (`auto_map`), unless a class here does.

    No loader here is allowed to run such code; what it loads without is another model than its authors mean. Nothing is
    executed, asked or loaded; a configuration that is missing or damaged is the loader's affair.

    Args:
        name: a folder, or a name on the hub.
        local_only: ask no hub.
        revision: of a hub's.

    Raises:
        UserError: naming it.
    """
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    config = config_beside(name, local_only=local_only, revision=revision)
    found = dict(config)
    with suppress(Exception):  # transformers raises whatever its parts raise
        found |= get_tokenizer_config(name, local_files_only=local_only, revision=revision)
    if "auto_map" in found and config.get("model_type") not in NATIVE:
        where = f"folder {name}" if Path(name).is_dir() else repr(name)
        raise UserError(
            f"{where} brings code of its own (`auto_map` in its configuration), which is never run; give one whose "
            "classes transformers has"
        )
