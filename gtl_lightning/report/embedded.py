"""The page of how texts came to be, within the report."""

from __future__ import annotations

from pathlib import Path

from gtl_lightning.files import remove, write_text
from gtl_lightning.report.document import Block, Heading, Page, Text


def trajectory_section(file: Path, page: str | None) -> list[Block]:
    """The report's section with such a page in it, and the page as a file of its own; nothing of either without one."""
    if page is None:  # one of an earlier run would pass for one of this
        remove(file)
        return []
    write_text(file, page)
    text = (
        "Token by token, the denoiser alone beside the guided denoiser under one seed: at which step each token was "
        "set, out of which candidates, and what the ratio said of them."
    )
    title = "How a text came to be"
    shown = Page("Step through a few texts", f"{file.parent.name}/{file.name}", page)
    return [Heading(title, anchor=title.lower().replace(" ", "-")), Text(text), shown]
