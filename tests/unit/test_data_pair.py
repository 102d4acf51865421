"""Texts of one's own: two tables of any form with nothing but texts become two domains, or one line says why not."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtl_lightning.data.lines import read_lines
from gtl_lightning.data.origin import domains
from gtl_lightning.data.pair import import_pair
from gtl_lightning.data.quarantine import Problem
from gtl_lightning.data.snapshot import Record, read_records
from gtl_lightning.data.tables import form_of, rows
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json

OLD = [f"old text number {i}, with “quotes”, a comma" for i in range(20)]
NEW = [f"new text number {i}" for i in range(10)]


def jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def packed(path: Path, texts: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))


def txt(path: Path, texts: list[str]) -> None:
    path.write_text("\ufeff" + "\n\n".join(texts) + "\n", encoding="utf-8")


def table(path: Path, texts: list[str]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([["n", "text"], *enumerate(texts)])


def parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"text": texts, "n": list(range(len(texts)))}), path)


FORMS: dict[str, Callable[[Path, list[str]], None]] = {
    ".jsonl": jsonl,
    ".jsonl.gz": packed,
    ".txt": txt,
    ".csv": table,
    ".tsv": table,
    ".parquet": parquet,
}


def taken(folder: Path) -> list[Record | Problem]:
    return list(read_records(folder / "snapshot.jsonl.gz"))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    source, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    jsonl(source, OLD)
    jsonl(target, NEW)
    return str(source), str(target)


# What is taken --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_texts_of_every_form_become_the_two_domains(tmp_path: Path, pair: tuple[str, str], form: str) -> None:
    source = tmp_path / f"old{form}"
    FORMS[form](source, OLD)
    found = import_pair(str(source), pair[1], tmp_path / "data")
    records = [record for record in taken(tmp_path / "data") if isinstance(record, Record)]
    assert [(r.categories, r.abstract) for r in records] == [("source", t) for t in OLD] + [("target", t) for t in NEW]
    assert found | {"sha256": ""} == {
        "kind": "pair", "records": 30, "generated": False, "source": str(source), "target": pair[1], "sha256": "",
    }  # fmt: skip


def test_records_of_every_form_are_the_same_ones(tmp_path: Path, pair: tuple[str, str]) -> None:
    made = []
    for number, (form, write) in enumerate(FORMS.items()):
        source = tmp_path / f"old{number}{form}"
        write(source, OLD)
        made.append(import_pair(str(source), pair[1], tmp_path / f"data{number}")["sha256"])
    assert len(set(made)) == 1


def test_ids_do_not_depend_on_the_order_of_rows_and_equal_texts_have_one(tmp_path: Path, pair: tuple[str, str]) -> None:
    ids = []
    for number, texts in enumerate((OLD, OLD[::-1], [*OLD, OLD[0].replace(" ", "  ")])):
        jsonl(Path(pair[0]), texts)
        import_pair(*pair, tmp_path / f"data{number}")
        ids.append(
            {r.id for r in taken(tmp_path / f"data{number}") if isinstance(r, Record) and r.categories == "source"}
        )
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) == len(OLD)


def test_an_id_and_a_date_are_taken_where_they_are(tmp_path: Path, pair: tuple[str, str]) -> None:
    Path(pair[0]).write_text('{"id": 7, "date": "2020-01-02", "body": "first"}\n{"body": "second"}\n')
    Path(pair[1]).write_text('{"id": 7, "body": "third"}\n')
    import_pair(*pair, tmp_path / "data", text="body")
    lines = [json.loads(line) for _, line in read_lines(tmp_path / "data" / "snapshot.jsonl.gz")]
    assert lines[0] == {"id": "source-7", "categories": "source", "abstract": "first", "date": "2020-01-02"}
    assert lines[2]["id"] == "target-7"  # no duplicate of the source's
    assert lines[1]["id"].startswith("source-") and "date" not in lines[1]


def test_different_texts_of_one_id_all_count_whatever_their_order(tmp_path: Path, pair: tuple[str, str]) -> None:
    """As the passages of a document have its id: of one id the split keeps one record, here the others were lost."""
    passages = [f'{{"id": "{n // 5}", "text": "passage {n}"}}\n' for n in range(20)]
    ids = []
    for number, rows_ in enumerate((passages, passages[::-1], [*passages, passages[3]])):
        Path(pair[0]).write_text("".join(rows_))
        import_pair(*pair, tmp_path / f"data{number}")
        found = [r for r in taken(tmp_path / f"data{number}") if isinstance(r, Record) and r.categories == "source"]
        ids.append({r.id: r.abstract for r in found})
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) == len(set(ids[0].values())) == 20
    assert all(name.startswith("source-") and name.split("-")[1] in "0123" for name in ids[0])


@pytest.mark.parametrize("order", [1, -1])
def test_a_row_without_a_text_is_no_other_text_at_its_id(tmp_path: Path, pair: tuple[str, str], order: int) -> None:
    table = tmp_path / "a.csv"
    table.write_text("id,text\n" + "\n".join(["1,abc def", "1,", "2,ghi"][::order]) + "\n")
    import_pair(str(table), pair[1], tmp_path / "data")
    found = {r.id: r.abstract for r in taken(tmp_path / "data") if isinstance(r, Record) and r.categories == "source"}
    assert found == {"source-1": "abc def", "source-2": "ghi"}


def test_a_surplus_cell_that_holds_nothing_is_left_out(tmp_path: Path) -> None:
    """As where a writer ends every row in the delimiter."""
    table = tmp_path / "a.csv"
    table.write_text("id,text\n1,abc def,\n2,ghi,, \n3,jkl\n")
    assert list(rows(str(table))) == [
        {"id": "1", "text": "abc def"},
        {"id": "2", "text": "ghi"},
        {"id": "3", "text": "jkl"},
    ]


def test_the_only_column_needs_no_name(tmp_path: Path, pair: tuple[str, str]) -> None:
    Path(pair[0]).write_text('{"sentence": "first"}\n')
    import_pair(*pair, tmp_path / "data")
    assert taken(tmp_path / "data")[0] == Record(1, taken(tmp_path / "data")[0].id, "", "source", "first")


def test_what_has_no_text_is_counted_and_quarantined(tmp_path: Path, pair: tuple[str, str]) -> None:
    Path(pair[0]).write_text('{"text": "good"}\nno object\n[1]\n{"text": "  "}\n{"text": null}\n{"other": 1}\n')
    found = import_pair(*pair, tmp_path / "data")
    assert found["records"] == 6 + len(NEW)
    assert found["damaged"] == {"malformed": 2, "empty-abstract": 3}


def test_generated_texts_stay_marked(tmp_path: Path, pair: tuple[str, str]) -> None:
    assert not import_pair(*pair, tmp_path / "data")["generated"]
    Path(pair[1]).write_text('{"text": "made up", "generated": true}\n')
    assert import_pair(*pair, tmp_path / "data")["generated"]


def test_the_domains_are_the_tables_whatever_the_parameters_name(tmp_path: Path, pair: tuple[str, str]) -> None:
    assert domains(tmp_path / "data", ("cs", "math"), ("physics",)) == (("cs", "math"), ("physics",))
    import_pair(*pair, tmp_path / "data")
    assert domains(tmp_path / "data", ("cs", "math"), ("physics",)) == (("source",), ("target",))


def test_the_pipeline_splits_them_with_the_parameters_as_they_are(
    tmp_path: Path, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pyarrow.parquet import read_table

    from gtl_lightning.stages.data import split
    from gtl_lightning.workspace.params import configure

    words = [
        f"{adjective} {noun}" for adjective in "abcdefghijklmnopqrst" for noun in ("fox", "hen", "owl", "ant", "bee")
    ]
    jsonl(Path(pair[0]), [f"{word} is what number {i} was about in {i * i}" for i, word in enumerate(words * 3)])
    jsonl(Path(pair[1]), [f"item {i * i} says of {word} that {i} is new" for i, word in enumerate(words)])
    monkeypatch.chdir(tmp_path)
    import_pair(*pair, tmp_path / "data")
    with caplog.at_level("INFO", logger="gtl"):
        split(configure(overrides=("data.near_duplicate=1.0", "data.min_examples=1")))
    assert "the domains are the two tables of data; data.source and data.target are not used" in caplog.messages
    counts = read_json(tmp_path / "splits" / "summary.json")["splits"]
    assert set(counts["source_train"]) == {"source"} and set(counts["target_train"]) == {"target"}, counts
    texts = read_table(tmp_path / "splits" / "target_test.parquet")["text"].to_pylist()
    assert texts and all(text.startswith("item") for text in texts)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_any_text_of_json_lines_arrives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    jsonl(path, texts)
    assert list(rows(str(path))) == [{"text": text} for text in texts]


def test_a_form_is_told_by_the_name() -> None:
    names = ["a.jsonl", "a.b.CSV", "a.txt.gz", "a.parquet", "owner/name", "name:test", "a.gz", "a.pdf", ".txt"]
    found = [".jsonl", ".csv", ".txt", ".parquet", None, None, None, None, None]
    assert [form_of(name) for name in names] == found


# What is refused ------------------------------------------------------------------------------------------------------


def refusal(source: str, target: str, folder: Path, text: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        import_pair(source, target, folder / "data", text=text)
    assert not list((folder / "data").glob("*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tables_that_are_alike_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    assert "is given as source and as target" in refusal(pair[0], pair[0], tmp_path)
    (tmp_path / "link.jsonl").symlink_to(pair[0])
    assert "is given as source and as target" in refusal(pair[0], str(tmp_path / "link.jsonl"), tmp_path)
    txt(tmp_path / "c.txt", OLD[::-1])
    assert "hold the same texts" in refusal(pair[0], str(tmp_path / "c.txt"), tmp_path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_table_without_texts_is_refused_and_named(
    tmp_path: Path, pair: tuple[str, str], form: str, side: int
) -> None:
    empty = tmp_path / f"empty{form}"
    FORMS[form](empty, [])
    sides = [*pair]
    sides[side] = str(empty)
    assert f"{empty} holds no text" in refusal(sides[0], sides[1], tmp_path)


@pytest.mark.parametrize("form", [".jsonl", ".csv", ".parquet"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, pair: tuple[str, str], form: str
) -> None:
    source = tmp_path / f"c{form}"
    FORMS[form](source, OLD)
    said = refusal(str(source), pair[1], tmp_path, text="body")
    assert said.startswith(f"{source} has no column 'body'; it has ") and "text" in said and said.endswith("--text")


def test_without_a_name_the_columns_there_are_shown(tmp_path: Path, pair: tuple[str, str]) -> None:
    Path(pair[1]).write_text('{"body": "x", "n": 1}\n')
    assert refusal(*pair, tmp_path) == f"{pair[1]} has no column 'text'; it has body, n: name one with --text"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b'text\n"open', "is no table after line 1 (unexpected end"),
        (
            "a.csv",
            b"id,text\n1,We show, that it holds\n",
            "line 2 has 3 cells under 2 column(s); put texts that hold ','",
        ),
        ("a.csv", b"id,text\n1,We show,, that\n", "line 2 has 4 cells under 2 column(s)"),
        ("a.csv", b"id;text\n1;We show\n", "has no column 'text'; it has id;text: name one with --text"),
        ("a.csv", b"a first text\na second\n", "has no column 'text'; it has a first text: name one with --text"),
        ("a.txt", b"one text\ranother\rand a third\n", "carriage returns within a line"),
        ("a.txt", b"caf\xe9\n", "line 1 is not UTF-8"),
        ("a.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("a.pdf", b"x", "is none of .jsonl"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9], "a.jsonl.gz"),
        ("missing.jsonl", None, "does not exist"),
    ],
)
def test_damage_and_other_forms_are_one_line(
    tmp_path: Path, pair: tuple[str, str], name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert said in refusal(str(tmp_path / name), pair[1], tmp_path)


def test_a_hub_set_that_cannot_be_reached_is_one_line(
    tmp_path: Path, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "data set 'owner/name' is not a local folder" in refusal("owner/name:test", pair[1], tmp_path)


def test_a_folder_of_data_files_is_a_data_set(tmp_path: Path, pair: tuple[str, str]) -> None:
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set" / "train.jsonl", OLD)
    import_pair(str(tmp_path / "set"), pair[1], tmp_path / "data")
    assert [r.abstract for r in taken(tmp_path / "data") if isinstance(r, Record)] == OLD + NEW
