"""What a folder holds, to be compared before and after."""

from __future__ import annotations

from pathlib import Path

from gtl_lightning.files import sha256_file


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below `folder` -> the hash of its content; folders and links by their kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = "link" if path.is_symlink() else sha256_file(path) if path.is_file() else "folder"
    return found
