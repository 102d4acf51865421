"""The report as a list of blocks with two renderings, Markdown and HTML. All text is escaped here and nowhere else."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gtl_lightning.report.stylesheet import CSS


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
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_esc(title)}</title>\n<style>\n{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{_esc(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_md(text)}"
        case Text(text, kind, link):
            words = _md(text) + (f" [{_md(link[0])}]({link[1]})" if link else "")
            return f"> **{words}**" if kind == "warning" else f"**{words}**" if kind == "lead" else words
        case Bullets(items):
            return "\n".join(f"- {_md(item)}" for item in items)
        case Table():
            return _markdown_table(block)
        case Figure(file, alt, caption, _):
            return f"![{_md(alt)}]({file})\n\n*{_md(caption)}*"
        case Samples(columns):
            return "\n\n".join(_markdown_samples(title, texts) for title, _, texts in columns)


def _markdown_samples(title: str, texts: Sequence[str]) -> str:
    return f"**{_md(title)}**\n\n" + "\n>\n".join(f"> {_md(text)}" for text in texts)


def _markdown_table(table: Table) -> str:
    lines = [f"**{_md(table.caption)}**", "", "| " + " | ".join(_md(name) for name in table.columns) + " |"]
    lines.append("|" + "|".join(":--" if i in table.words else "--:" for i in range(len(table.columns))) + "|")
    for row in table.rows:
        if isinstance(row, Group):
            cells = [f"*{_md(row.text)}*"] + [""] * (len(table.columns) - 1)
        else:
            cells = [_md(" ".join(filter(None, (cell.text, cell.detail)))) for cell in map(_cell, row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", f"*{_md(table.note)}*"] if table.note else [])])


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_esc(text)}</h{level}>"
        case Text(text, kind, link):
            anchor = f' <a href="{_esc(link[1])}">{_esc(link[0])}</a>' if link else ""
            return f'<p class="{kind}">{_esc(text)}{anchor}</p>'
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_esc(item)}</li>" for item in items) + "</ul>"
        case Table():
            return _html_table(block)
        case Figure(_, alt, caption, panels):
            pictures = "".join(_picture(light, dark, alt) for light, dark in panels)
            return f'<figure><div class="panels">{pictures}</div><figcaption>{_esc(caption)}</figcaption></figure>'
        case Samples(columns):
            return '<div class="samples">' + "".join(_html_samples(*column) for column in columns) + "</div>"


def _html_samples(title: str, colours: tuple[str, str] | None, texts: Sequence[str]) -> str:
    quotes = "".join(f"<blockquote>{_esc(text)}</blockquote>" for text in texts)
    return f"<section><h3>{_dot(colours)}{_esc(title)}</h3>{quotes}</section>"


def _html_table(table: Table) -> str:
    cells = [[_cell(cell) for cell in row] for row in table.rows if not isinstance(row, Group)]
    # A column with intervals is set left, each value in a box of one width, so that values and intervals both line up.
    width = [max((len(row[i].text) for row in cells), default=0) for i in range(len(table.columns))]
    split = [any(row[i].detail for row in cells) for i in range(len(table.columns))]
    kinds = ["" if i in table.words or split[i] else ' class="num"' for i in range(len(table.columns))]
    head = "".join(f'<th scope="col"{kind}>{_esc(name)}</th>' for kind, name in zip(kinds, table.columns, strict=True))
    lines = []
    for row in table.rows:
        if isinstance(row, Group):
            name = f'<span class="stay">{_esc(row.text)}</span>'
            lines.append(f'<tr class="group"><th colspan="{len(table.columns)}">{name}</th></tr>')
            continue
        line = []
        for index, cell in enumerate(map(_cell, row)):
            content = _dot(cell.colours) + _esc(cell.text)
            if split[index]:
                content = f'<span class="value" style="min-width:{width[index]}ch">{content}</span>'
                content += f'<span class="detail">{_esc(cell.detail)}</span>'
            hole = ' title="no result"' if cell.hole else ""
            line.append(f"<td{kinds[index]}{hole}>{content}</td>")
        lines.append("<tr>" + "".join(line) + "</tr>")
    note = f'<p class="note">{_esc(table.note)}</p>' if table.note else ""
    caption = f'<caption><span class="stay">{_esc(table.caption)}</span></caption>'
    body = f"{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    whole = f'<div class="table"><table>{body}</table></div>{note}'
    return f"<details><summary>Show {_esc(table.caption.lower())}</summary>{whole}</details>" if table.folded else whole


def _cell(cell: Cell | str) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


def _dot(colours: tuple[str, str] | None) -> str:
    return f'<span class="dot" style="--light:{colours[0]};--dark:{colours[1]}"></span>' if colours else ""


def _picture(light: bytes, dark: bytes, alt: str) -> str:
    def data(svg: bytes) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()

    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{data(dark)}">'
        f'<img src="{data(light)}" alt="{_esc(alt)}"></picture>'
    )


def _esc(text: str) -> str:
    return html.escape(text, quote=True)


def _md(text: str) -> str:
    """Text that Markdown shows as it is: HTML and markup characters escaped, on one line."""
    escaped = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
