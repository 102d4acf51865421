"""A Hugging Face hub, and folders of that form: whether it can be reached, and that no code comes with a model.

Whether it can be reached is asked once and briefly, for its clients retry for most of a minute.
"""

from __future__ import annotations

import os
import socket
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gtl_lightning.errors import UserError

_PROBE_SECONDS = 3.0


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


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, or the public one."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def hub_reachable(timeout: float = _PROBE_SECONDS) -> bool:
    """Whether the hub accepts a connection within `timeout` seconds; False when HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return False
    try:
        address = urlsplit(endpoint())
        port = address.port or (80 if address.scheme == "http" else 443)
        if address.scheme in urllib.request.getproxies():
            return True  # behind a proxy a direct connection says nothing; leave the verdict to the client
        with socket.create_connection((address.hostname or "", port), timeout):
            return True
    except (OSError, ValueError):  # the latter: HF_ENDPOINT is no address
        return False
