"""A DVC repository for a test."""

from __future__ import annotations

from pathlib import Path


def dvc_repository(folder: Path) -> None:
    """What `dvc init --no-scm` leaves in a folder, without the second that the command takes."""
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
    (folder / ".dvcignore").touch()
