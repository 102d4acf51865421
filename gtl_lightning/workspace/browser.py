"""A page in the browser of the machine, where somebody sits before it."""

from __future__ import annotations

import os
import sys
import webbrowser


def show(address: str) -> bool:
    """Open a page in the browser; whether there is one. One without a screen would take the terminal: none is asked."""
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    try:
        return bool(screen) and webbrowser.open(address)
    except webbrowser.Error:
        return False
