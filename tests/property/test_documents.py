"""Pages of hostile text: every character arrives, none is interpreted, in HTML and in Markdown."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markdown_it import MarkdownIt

from gtl_lightning.report import document
from gtl_lightning.report.document import (
    Block,
    Bullets,
    Code,
    Contents,
    Figure,
    Group,
    Heading,
    Picture,
    Samples,
    Spot,
    Table,
    TableCell,
    Text,
    to_html,
    to_markdown,
)

ROOT = Path(__file__).parents[2]
MARK = "MARK"
HOSTILE = "<script>alert('x')</script> & &amp; &#60; \" ' `code` | \\| *a* _b_ ~~c~~ [d](http://e.example) ![f](g) $h$"
TEMPLATE = "{{ 7 * 7 }} {% raw %} {# x #} {{ ''.__class__ }}"
markup = st.text(st.sampled_from("<>/=&#;\"'`|\\*_[]()!#~$-+.:{}% 1ax\n"), min_size=1, max_size=30)
# Without control characters and halves of pairs, which no page can hold.
texts = st.one_of(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30), markup)


def everywhere(text: str, colour: str = "#000000") -> list[Block]:
    """A document with `text` in every place that shows one."""
    whole = (text, TableCell(text, text, True, (colour, colour)), TableCell(text))
    rows = (whole, Group(text), (TableCell(text, hole=True), text, text))
    table = Table(text, (text, text, text), rows, (0,), text)
    return [
        Heading(text),
        Heading(text, 3),
        Code(text),
        *(Text(text, kind, link) for kind in ("plain", "lead", "note", "warning") for link in (None, (text, text))),
        Contents(((text, "a"),)),
        Bullets((text, (text, text))),
        table,
        Table(text, (text,), ((text,),), folded=True),
        Figure(text, text, text, (Picture(b"<svg/>", b"<svg/>", text, (Spot(1, 2, text),)),), table),
        *(
            Samples(((text, (colour, colour), (text, text)), (text, None, (text,))), text, fold)
            for fold in (False, True)
        ),
    ]


class Events(HTMLParser):
    """Tags with their attributes, and the words between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, object]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # A box is as wide as the text in it.
        self.found.append((tag, [(name, value if name != "style" else "") for name, value in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", None))

    def handle_data(self, data: str) -> None:
        self.found.append(("", data))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.found.append(("declaration", decl))


def joined(events: list[tuple[str, object]]) -> list[tuple[str, object]]:
    """The events, neighbouring words as one and no empty ones."""
    merged: list[tuple[str, object]] = []
    for kind, value in events:
        if kind == "" and merged and merged[-1][0] == "":
            value = f"{merged.pop()[1]}{value}"
        merged.append((kind, value))
    return [event for event in merged if event != ("", "")]


@settings(max_examples=150, deadline=None)
@given(texts)
@example(HOSTILE)
@example(TEMPLATE)
@example("</style></title></p></table><!-- ]]>")
def test_any_text_survives_in_html_and_no_tag_comes_with_it(text: str) -> None:
    def put(value: object) -> object:
        if isinstance(value, str):
            return value.replace(MARK, text)
        return [(name, put(inner)) for name, inner in value] if isinstance(value, list) else value

    expected = [(tag, put(value)) for tag, value in Events(to_html(MARK, everywhere(MARK))).found]
    assert joined(Events(to_html(text, everywhere(text))).found) == joined(expected)


def reading(markdown: str) -> list[tuple[str, object]]:
    """What a reader of GitHub's Markdown sees: tags in order, and the words between them."""
    events: list[tuple[str, object]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        for part in token.children or [token]:
            if part.type == "text":
                events.append(("", part.content))
            elif part.type == "image":
                events.append(("image", "".join(words.content for words in part.children or [])))
            elif part.type != "inline":
                events.append((part.type, part.content))
    return joined(events)


@settings(max_examples=150, deadline=None)
@given(texts.filter(lambda text: text.split()))
@example(HOSTILE)
@example(TEMPLATE)
@example("- a")
@example("12) a")
@example("1.")
@example("---")
@example("+")
@example("&lt;")
def test_any_text_survives_in_markdown_on_one_line(text: str) -> None:
    line = " ".join(text.split())
    plain = reading(to_markdown(MARK, everywhere(MARK)))
    expected = [(kind, value.replace(MARK, line) if isinstance(value, str) else value) for kind, value in plain]
    assert reading(to_markdown(text, everywhere(text))) == expected


def test_the_documents_of_plain_text_are_what_they_look_like() -> None:
    """The two tests above compare with this one's documents."""
    html, markdown = to_html(MARK, everywhere(MARK)), to_markdown(MARK, everywhere(MARK))
    tags = {tag for tag, _ in Events(html).found}
    assert tags >= {"h1", "h2", "h3", "p", "a", "ul", "li", "caption", "th", "td", "details", "img", "blockquote"}
    # 2 headings, 8 texts, 8 in 4 links, contents, code, 3 bullets, 13 in each of 2 tables, 3 in a small one, 2 about a
    # figure, 6 in each of 2 samples; HTML names its tables twice (2 + 1) and says what a point of the figure is:
    shown = 2 + 8 + 8 + 1 + 1 + 3 + 2 * 13 + 3 + 2 + 2 * 6
    assert markdown.count(MARK) - 2 == shown and html.count(MARK) - 2 == shown + 3 + 1 + 1
    kinds = {kind for kind, _ in reading(markdown)}
    assert kinds >= {"heading_open", "bullet_list_open", "table_open", "blockquote_open", "image", "link_open"}
    assert not kinds & {"html_inline", "html_block"}


def test_what_a_template_inserts_is_escaped_unless_it_says_otherwise() -> None:
    assert document.PAGES.from_string("{{ x }}").render(x="<b> & '") == "&lt;b&gt; &amp; &#39;"
    assert document._MARKDOWN.from_string("*{{ x }}*").render(x="<b> *") == "*&lt;b&gt; \\**"
    with pytest.raises(UndefinedError, match="'y' is undefined"):
        document.PAGES.from_string("{{ y }}").render(x="a name that was mistyped")


def test_every_kind_of_block_is_written_by_a_macro_of_its_name() -> None:
    for macros in (
        document.PAGES.get_template("blocks.html").module,
        document._MARKDOWN.get_template("blocks.md").module,
    ):
        assert all(hasattr(macros, kind.__name__.lower()) for kind in get_args(Block))


def test_the_report_writes_no_markup_but_by_its_templates() -> None:
    modules = list((ROOT / "gtl_lightning/report").glob("*.py"))
    assert modules and not [path.name for path in modules if re.search(r"</\w", path.read_text())]


def test_templates_are_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["gtl_lightning.report"]
    folder = ROOT / "gtl_lightning/report"
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix not in (".py", ".pyc")]
    files = [name for name in files if (folder / name).is_file()]
    assert "templates/page.html" in files and all(any(fnmatch(name, p) for p in patterns) for name in files)
    needed = project["project"]["optional-dependencies"]["report"]
    assert any(line.startswith("jinja2") for line in needed)
    assert "\njinja2==" in (ROOT / "requirements.lock").read_text()
