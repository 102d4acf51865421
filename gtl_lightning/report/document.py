"""The report as a list of blocks with two renderings: HTML by the templates beside this module, and Markdown.

The templates escape whatever they insert as they insert it; Markdown's text goes through `_md`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined


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
    return "\n\n".join([f"# {_md(title)}", *(_markdown(block) for block in blocks)]) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The document as one HTML page that needs no other file and no network."""
    return _PAGES.get_template("page.html").render(title=title, blocks=blocks)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_md(text)}"
        case Text(text, kind, link):
            words = _md(text) + (f" [{_md(link[0])}]({_address(link[1])})" if link else "")
            return f"> **{words}**" if kind == "warning" else f"**{words}**" if kind == "lead" else words
        case Bullets(items):
            return "\n".join(f"- {_md(item)}" for item in items)
        case Table():
            return _markdown_table(block)
        case Figure(file, alt, caption, _):
            return f"![{_md(alt)}]({_address(file)})\n\n*{_md(caption)}*"
        case Samples(columns):
            return "\n\n".join(_markdown_samples(title, texts) for title, _, texts in columns)


def _markdown_samples(title: str, texts: Sequence[str]) -> str:
    return f"**{_md(title)}**\n\n" + "\n>\n".join(f"> {_md(text)}" for text in texts)


def _markdown_table(table: Table) -> str:
    lines = [f"**{_md(table.caption)}**", "", "| " + " | ".join(_md(name) for name in table.columns) + " |"]
    lines.append("|" + "|".join(":--" if i in table.words else "--:" for i in range(len(table.columns))) + "|")
    for row in table.lines:
        if isinstance(row, Group):
            cells = [f"*{_md(row.text)}*"] + [""] * (len(table.columns) - 1)
        else:
            cells = [_md(f"{cell.text} {cell.detail}") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", f"*{_md(table.note)}*"] if table.note else [])])


def _md(text: str) -> str:
    """Text that Markdown shows as it is, on one line: HTML, markup characters and marks of a list escaped."""
    escaped = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))
    escaped = re.sub(r"^(\d{0,9})([-+.)]( |$)|-+$)", r"\1\\\2", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _address(text: str) -> str:
    """An address or path without a character that means something in Markdown."""
    return quote(text, safe=":/?#=%")


def _kind(value: object) -> str:
    """The name of a block's class, by which the templates know it."""
    return type(value).__name__.lower()


def _svg_address(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


_PAGES = Environment(
    loader=PackageLoader("gtl_lightning.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_PAGES.filters |= {"kind": _kind, "svg_address": _svg_address}
