"""The report as a list of blocks with two renderings, Markdown and HTML, by the templates beside this module.

Whatever a template inserts is escaped as it is inserted, so no template can forget to.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Heading:
    """A section's title (level 2) or a sub-title (level 3)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """One paragraph. `lead` is larger; `warning` is framed; `link` is (words, address), appended."""

    text: str
    kind: str = "plain"
    link: tuple[str, str] | None = None


@dataclass(frozen=True)
class Bullets:
    """An unordered list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A table cell: a value, and in smaller print what belongs to it (`± 0.01`). `hole` marks a missing result."""

    text: str
    detail: str = ""
    hole: bool = False
    colours: tuple[str, str] | None = None


@dataclass(frozen=True)
class Group:
    """A row that names the rows under it."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; columns in `words` are text, the others numbers; HTML hides a `folded` one."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | str, ...] | Group, ...]
    words: tuple[int, ...] = (0,)
    note: str = ""
    folded: bool = False

    @property
    def lines(self) -> list[list[Cell] | Group]:
        """The rows, everything in them a cell."""
        return [
            row if isinstance(row, Group) else [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
            for row in self.rows
        ]

    @property
    def boxes(self) -> list[int | None]:
        """Characters of the longest value of each column that has details; None for a column without.

        HTML sets such a column left, each value in a box of that width, so that values and details both line up.
        """
        cells = [row for row in self.lines if not isinstance(row, Group)]
        return [
            max(len(row[i].text) for row in cells) if any(row[i].detail for row in cells) else None
            for i in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Figure:
    """A figure: `file` for Markdown, (light, dark) SVG bytes of each panel for HTML."""

    file: str
    alt: str
    caption: str
    panels: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Samples:
    """Texts side by side: (title, colours or None, texts)."""

    columns: tuple[tuple[str, tuple[str, str] | None, tuple[str, ...]], ...]


Block = Heading | Text | Bullets | Table | Figure | Samples


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The document as GitHub-flavoured Markdown; figures are linked by their relative path."""
    return _MARKDOWN.get_template("page.md").render(title=title, blocks=blocks)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The document as one HTML page that needs no other file and no network."""
    return _HTML.get_template("page.html").render(title=title, blocks=blocks)


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("gtl_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters |= {"kind": _kind, "address": _address, "svg_address": _svg_address}
    return environment


def _kind(value: object) -> str:
    """The name of a block's class, by which templates know it."""
    return type(value).__name__.lower()


def _address(text: str) -> Markup:
    """An address or path without a character that means something in Markdown or HTML."""
    return Markup(quote(text, safe=":/?#=%"))


def _svg_address(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _markdown(value: object) -> Markup:
    """Text that Markdown shows as it is, on one line: markup characters, HTML and marks of a list escaped."""
    if isinstance(value, Markup):
        return value
    text = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(str(value).split()))
    text = re.sub(r"^(\d{0,9})([-+.)]( |$)|-+$)", r"\1\\\2", text)
    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


_HTML = _environment()
_MARKDOWN = _environment(finalize=_markdown)
