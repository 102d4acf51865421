"""A Hugging Face hub, and folders of that form, as what is read comes from: no code comes with a model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.sharing.hub import endpoint, hub_reachable

__all__ = ["endpoint", "hub_reachable", "refuse_code"]


def refuse_code(name: str, *, local_only: bool) -> None:
    """Refuse a model or tokenizer whose configuration names code of its own (`auto_map`).

    No loader here is allowed to run such code; what it loads without is another model than its authors mean. Nothing is
    executed, asked or loaded; a configuration that is missing or damaged is the loader's affair.

    Args:
        name: a folder, or a name on the hub.
        local_only: ask no hub.

    Raises:
        UserError: naming it.
    """
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    found: dict[str, Any] = {}
    with suppress(Exception):  # transformers raises whatever its parts raise
        found |= PreTrainedConfig.get_config_dict(name, local_files_only=local_only)[0]
    with suppress(Exception):
        found |= get_tokenizer_config(name, local_files_only=local_only)
    if "auto_map" in found:
        where = f"folder {name}" if Path(name).is_dir() else repr(name)
        raise UserError(
            f"{where} brings code of its own (`auto_map` in its configuration), which is never run; give one whose "
            "classes transformers has"
        )
