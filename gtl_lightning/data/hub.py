"""Whether a Hugging Face hub can be reached: asked once and briefly, for its clients retry for most of a minute."""

from __future__ import annotations

import os
import socket
import urllib.request
from urllib.parse import urlsplit

_PROBE_SECONDS = 3.0


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
