"""The report as a list of blocks with two renderings, HTML and Markdown, both by the templates beside this module.

The templates escape whatever they insert as they insert it: HTML's as HTML, Markdown's through `_md`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Heading:
    """A section's title (level 2) or a sub-title (level 3); links find it by its `anchor`."""

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True)
class Contents:
    """Links to headings: (text, anchor), the anchor as GitHub makes it of the text."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Text:
    """One paragraph. `lead` is larger; `note` smaller; `warning` framed; `link` is (words, address), appended."""

    text: str
    kind: str = "plain"
    link: tuple[str, str] | None = None


@dataclass(frozen=True)
class Code:
    """A line to type."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """An unordered list; of an item that is a pair, the first part is bold. A `lead` list is larger."""

    items: tuple[str | tuple[str, str], ...]
    lead: bool = False

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The items as (bold, plain)."""
        return [("", item) if isinstance(item, str) else item for item in self.items]


@dataclass(frozen=True)
class TableCell:
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
    rows: tuple[tuple[TableCell | str, ...] | Group, ...]
    words: tuple[int, ...] = (0,)
    note: str = ""
    folded: bool = False

    @property
    def lines(self) -> list[list[TableCell] | Group]:
        """The rows, everything in them a cell."""
        return [
            row
            if isinstance(row, Group)
            else [cell if isinstance(cell, TableCell) else TableCell(cell) for cell in row]
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
class Spot:
    """What a point of a picture says when it is pointed at; its place in % of the width and of the height."""

    left: float
    top: float
    text: str


@dataclass(frozen=True)
class Picture:
    """One pair of axes as SVG for the light and the dark page, with what it shows in words."""

    light: bytes
    dark: bytes
    alt: str
    spots: tuple[Spot, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure: `file` and `alt` for Markdown, `panels` for HTML; under it its numbers as a table."""

    file: str
    alt: str
    caption: str
    panels: tuple[Picture, ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Samples:
    """Texts side by side: (title, colours or None, texts); HTML hides a `folded` block behind its caption."""

    columns: tuple[tuple[str, tuple[str, str] | None, tuple[str, ...]], ...]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A page within the page, closed until it is wanted; Markdown links its `file`."""

    caption: str
    file: str
    html: str


Block = Heading | Contents | Text | Code | Bullets | Table | Figure | Samples | Page


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The document as GitHub-flavoured Markdown; figures are linked by their relative path."""
    return _MARKDOWN.get_template("page.md").render(title=title, blocks=blocks)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The document as one HTML page that needs no other file and no network."""
    return PAGES.get_template("page.html").render(title=title, blocks=blocks)


def _md(text: str) -> str:
    """Text that Markdown shows as it is, on one line: HTML, markup characters and marks of a list escaped."""
    escaped = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))
    escaped = re.sub(r"^(\d{0,9})([-+.)]( |$)|-+$)", r"\1\\\2", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _address(text: str) -> Markup:
    """An address or path without a character that means something in Markdown."""
    return Markup(quote(text, safe=":/?#=%"))


def _escaped(value: object) -> Markup:
    """What a Markdown template inserts; what a macro returns has been escaped in it."""
    return value if isinstance(value, Markup) else Markup(_md(str(value)))


def _without_blank_ends(block: Markup) -> Markup:
    """A macro's text without empty lines at its ends; the first line keeps its indentation."""
    return Markup(block.strip("\n"))


def _kind(value: object) -> str:
    """The name of a block's class, by which the templates know it."""
    return type(value).__name__.lower()


def _svg_address(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


PAGES = Environment(
    loader=PackageLoader("gtl_lightning.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
"""Templates of every page that is written; values are escaped."""
PAGES.filters |= {"kind": _kind, "svg_address": _svg_address, "address": _address, "blank": _without_blank_ends}
_MARKDOWN = PAGES.overlay(finalize=_escaped)
