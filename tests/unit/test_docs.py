"""The documents hold together: links and anchors lead somewhere, indices are complete, names exist, figures stay."""

import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.md"))
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
REFERENCE = re.compile(r"\[([^\]\[]+)\]\[([^\]\[]*)\]")
DEFINED = re.compile(r"^\[([^\]]+)\]:", re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def prose(page: Path) -> str:
    """The page without code, in which brackets are no links, and without formulas."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\$\$[^$]*\$\$|\$[^$\n]+\$|`[^`]*`", "code", text)


def anchors(text: str) -> list[str]:
    """Anchors of the headings, as GitHub makes them; a repeated heading's is numbered."""
    seen: dict[str, int] = {}
    found = []
    for line in re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines():
        if heading := re.fullmatch(r"#{1,6}\s+(.*?)\s*#*", line):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found.append(f"{slug}-{seen[slug]}" if slug in seen else slug)
            seen[slug] = seen.get(slug, 0) + 1
    return found


def links(page: Path) -> Iterator[str]:
    """Targets within the project."""
    for match in LINK.finditer(prose(page)):
        target = match[1] or match[2]
        if not re.match(r"[a-z]+:", target):
            yield unquote(target)


def broken(page: Path) -> Iterator[str]:
    for target in links(page):
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        if not to.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(to.read_text()):
            yield f"{target}: no such heading"
    defined = {name.lower() for name in DEFINED.findall(page.read_text())}
    for words, name in REFERENCE.findall(prose(page)):
        if (name or words).lower() not in defined:
            yield f"[{words}][{name}]: no such reference"


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not list(broken(page))


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    """All kinds of links, to files, headings and references; code is no link."""
    page = tmp_path / "a.md"
    page.write_text(
        "# Of *one* `thing`, twice\n# Of *one* `thing`, twice\n"
        "[x](a.md#of-one-thing-twice-1) [`y`](#of-one-thing-twice) [u](https://example.org/no) ![p](no.png)\n"
        "[z](b.md) [w](a.md#of-two) [r][here] [s][there] `[c](no.md)`\n\n"
        "```\n[d](no.md)\n# No heading\n```\n[here]: no/\n"
    )
    assert list(broken(page)) == [
        "no.png: no such file",
        "b.md: no such file",
        "a.md#of-two: no such heading",
        "no/: no such file",
        "[s][there]: no such reference",
    ]


@pages
def test_a_page_is_reached_from_the_readme(page: Path) -> None:
    """By links alone, through the indices."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        if (at := waiting.pop()) not in reached:
            reached.add(at)
            targets = ((at.parent / link.partition("#")[0]).resolve() for link in links(at))
            waiting += [to for to in targets if to in PAGES]
    assert page in reached


def test_the_index_has_every_document() -> None:
    listed = set(links(ROOT / "docs" / "README.md"))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_results_stand_by_date_with_what_they_were_measured_by(page: Path) -> None:
    """The date in the name is the one on the page; command, hardware and seeds are there; the index has it."""
    date = re.match(r"\d{4}-\d\d-\d\d", page.name)
    assert date and f"Date: {date[0]}" in page.read_text()
    for word in ("command", "hardware", "seed", "commit"):
        assert word in page.read_text().lower()
    assert f"| {date[0]} |" in next(
        line for line in (ROOT / "docs/results.md").read_text().splitlines() if page.name in line
    )


def test_the_newest_figures_are_those_of_their_pages() -> None:
    """Every number with an interval on the index stands, to the last digit, on a page of a run."""
    figures = re.findall(r"[+-]?\d\.\d+ ± \d\.\d+", (ROOT / "docs" / "results.md").read_text())
    measured = "\n".join(page.read_text() for page in RESULTS)
    assert len(figures) >= 8
    assert not [figure for figure in figures if figure not in measured]


def test_names_in_the_architecture_exist() -> None:
    """Classes and functions that the path of a number goes through are defined in the package."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    code = "\n".join(path.read_text() for path in sorted((ROOT / "gtl_lightning").rglob("*.py")))
    quoted = set(re.findall(r"`([A-Za-z_][\w.]*)`", text)) - {"params.yaml", "pyproject.toml"}
    names = {name.rpartition(".")[2] for name in quoted if name[0].isupper()} | {
        name for name in quoted if re.fullmatch(r"[a-z]+(_[a-z]+)+|fit|tilt|seeded", name)
    }
    assert len(names) > 15
    assert not {name for name in names if not re.search(rf"\b(class|def) {name}\b|\b{name}\b *[:=]|\"{name}\"", code)}


CODE = re.compile(r"`([\w/]+)\.py:([\w.]+)`")


@pytest.mark.parametrize(
    ("page", "file", "name"),
    [
        (page.relative_to(ROOT).as_posix(), *found)
        for page in PAGES
        if page.parent.name != "results"
        for found in sorted(set(CODE.findall(page.read_text())))
    ],
)
def test_what_a_page_names_of_the_code_stands_where_it_says(page: str, file: str, name: str) -> None:
    path = ROOT / "gtl_lightning" / f"{file}.py"
    assert path.is_file(), f"{page} names {file}.py"
    assert re.search(
        rf"\b(def|class) {name.split('.')[0]}\b|^{name.split('.')[0]}\b", path.read_text(), re.MULTILINE
    ), page


def test_the_picture_of_the_house_shows_the_floors_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = [floor.replace("gtl_lightning.", "").split(" | ") for floor in contracts[0]["layers"]]
    drawn: dict[str, list[str]] = {}
    for y, name in re.findall(r'y="(\d+)" class="n">(\w+)<', (ROOT / "docs/figures/house.svg").read_text()):
        drawn.setdefault(y, []).append(name)
    assert [sorted(floor) for floor in drawn.values()] == [sorted(floor) for floor in floors]


FLOWS = (ROOT / "docs" / "flows.md").read_text()
GUARDS = [line.split(" | ") for line in FLOWS.splitlines() if line.endswith("` |") and line.count(" | ") == 4]


def defines(path: Path, name: str) -> bool:
    """Whether a file defines a function, class or constant."""
    return bool(re.search(rf"^ *(async def|def|class) {name}\b|^{name}\b *[:=]", path.read_text(), re.MULTILINE))


def test_every_guard_stands_in_its_file() -> None:
    """The fourth column: `file.py`: `function`, `Class.method`; prefect.yaml has none."""
    assert len(GUARDS) > 25
    for *_, guard, _test in GUARDS:
        named = re.findall(r"`(\w+\.py)`: ((?:`[\w.]+`(?:, )?)+)", guard)
        assert named or "`prefect.yaml`" in guard, guard
        for file, functions in named:
            for name in re.findall(r"[\w.]+", functions):
                assert all(defines(ROOT / "flows" / file, part) for part in name.split(".")), f"{file}: {name}"


def test_every_guard_has_a_test_that_exists() -> None:
    defined = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for guard in GUARDS:
        tests = re.findall(r"`(\w+)`", guard[4])
        assert tests and all(f"def {name}(" in defined for name in tests), guard[4]


def test_what_prefect_and_dvc_are_said_to_do_is_said_of_functions_that_they_have() -> None:
    """A release that moves one of them asks for another look at the guard."""
    named = set(re.findall(r"`((?:prefect|dvc)\.[\w.]+\.\w+)`", FLOWS))
    assert len(named) > 20
    for module, _, name in (name.rpartition(".") for name in named):
        found = [Path(folder).joinpath(*module.split(".")) for folder in sys.path]
        files = [path for at in found for path in (at.with_suffix(".py"), at / "__init__.py") if path.is_file()]
        assert files and defines(files[0], name), f"{module}.{name}"


def test_the_page_on_flows_has_every_file() -> None:
    files = {path.name for path in (ROOT / "flows").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `(\w+\.py)`", FLOWS, re.MULTILINE)) == files


def python_of(page: Path) -> str:
    """The page's Python that calls the public functions, in order."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(block for block in blocks if "torch" not in block)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_lines_of_python_run_as_they_stand(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On counting sequences: the names that they take from the reader are given here."""
    import torch

    import gtl_lightning

    monkeypatch.chdir(tmp_path)
    start, steps = torch.arange(200)[:, None] % 5, torch.arange(6)
    source, target = (start + steps) % 5, (start - steps) % 5
    words = [f"the {n % 7} th text" for n in range(40)]
    names = {name: getattr(gtl_lightning, name) for name in gtl_lightning.__all__}
    names |= {"source_texts": source, "target_texts": target, "MASK": 5, "generated": words, "real": words[::-1]}
    names |= {"validation_texts": target[:20], "test_texts": target[20:40]}
    names["denoiser"] = lambda x_t, t: torch.zeros(*x_t.shape, 6)
    exec(python_of(ROOT / page), names)
    found = names.get("result") or gtl_lightning.nelbo(names["denoiser"], target, names["guidance"])
    assert found.nats_per_token < 1.6  # the denoiser's own is log 5


def test_every_public_function_stands_on_the_page_on_python() -> None:
    import gtl_lightning

    text = (ROOT / "docs/python.md").read_text()
    for name in gtl_lightning.__all__:
        if name[0].islower():
            assert re.search(rf"\b{name}\b", text), name
