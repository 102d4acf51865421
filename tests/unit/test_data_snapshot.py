"""Snapshot reader and import: every line is a record or a problem; damage is named."""

import gzip
import json
from pathlib import Path

import pytest

from gtl_lightning.data.quarantine import Problem
from gtl_lightning.data.snapshot import Record, import_snapshot, read_records
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json, sha256_file


def record(number: int, **changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "id": f"r{number}",
        "title": f"Title {number}",
        "categories": "cs.LG stat.ML",
        "abstract": f"abstract number {number}",
        "update_date": "",
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def write(path: Path, lines: list[object]) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz"])
def test_reads_plain_and_gzip_and_normalises_blanks(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [record(1, abstract="  Two\n  lines\tof text\n"), record(2)])
    assert list(read_records(path)) == [
        Record(1, "r1", "Title 1", "cs.LG stat.ML", "Two lines of text"),
        Record(2, "r2", "Title 2", "cs.LG stat.ML", "abstract number 2"),
    ]


def test_gzip_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(write(tmp_path / "s.gz", [record(1)]).read_bytes())
    assert [item.id for item in read_records(tmp_path / "s.jsonl")] == ["r1"]


@pytest.mark.parametrize(
    ("categories", "archive"),
    [
        ("cs.LG math.ST", "cs"),
        ("hep-th", "hep-th"),
        ("physics.optics", "physics"),
        ("hep-th, math-ph", "hep-th"),
        ("hep-th,math-ph", "hep-th"),
        (" cs.LG;stat.ML", "cs"),
    ],
)
def test_archive_of_the_first_category(categories: str, archive: str) -> None:
    assert Record(1, "a", "", categories, "x").archive == archive


def test_every_bad_line_is_a_problem_with_its_line_number(tmp_path: Path) -> None:
    lines = [
        "{broken",  # before the first good line: must not be lost
        record(2),
        "",  # blank lines are no records but count as lines
        record(4, id=None),
        record(5, categories=None),
        record(6, abstract=None),
        record(7, abstract="   \n "),
        record(8, title=None),  # nothing needs the title
        "[1, 2]",
        '{"id": "r10", "categories": "cs.LG", "abstract": "half a pair \\ud800"}',
        record(11, id=1234.5678),
        record(12, categories=["cs.LG", "math.ST"]),
        "[" * 100_000,  # deeper than the parser's stack
    ]
    found = list(read_records(write(tmp_path / "s.jsonl", lines)))
    assert [item for item in found if isinstance(item, Problem)] == [
        Problem(1, "malformed", None),
        Problem(4, "missing-field", None),
        Problem(5, "missing-field", "r5"),
        Problem(6, "missing-field", "r6"),
        Problem(7, "empty-abstract", "r7"),
        Problem(9, "malformed", None),
        Problem(10, "malformed", None),
        Problem(13, "malformed", None),
    ]
    good = [item for item in found if isinstance(item, Record)]
    assert [(item.line, item.id) for item in good] == [(2, "r2"), (8, "r8"), (11, "1234.5678"), (12, "r12")]
    assert good[-1].categories == "cs.LG math.ST"


def test_an_endless_line_is_one_problem_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [record(1), '{"abstract": "' + "x" * (17 << 20) + '"}', record(3)])
    assert [item.line for item in read_records(path)] == [1, 2, 3]
    assert [type(item) for item in read_records(path)] == [Record, Problem, Record]


def test_field_names_are_configurable(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [{"key": "a", "subject": "math.AG", "text": "some words"}])
    fields = {"id": "key", "categories": "subject", "abstract": "text"}
    assert list(read_records(path, fields)) == [Record(1, "a", "", "math.AG", "some words")]
    with pytest.raises(UserError, match="unknown field 'body'"):
        list(read_records(path, {"body": "text"}))


def test_missing_snapshot(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl does not exist.*gtl data sample"):
        list(read_records(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_empty_snapshot(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"s\.jsonl is empty"):
        list(read_records(tmp_path / "s.jsonl"))


@pytest.mark.parametrize("content", [b"id,title\n1,2\n", b"\x00\xff\x12" * 5000, b"x\n" * 5000])
def test_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"s\.jsonl is not JSON"):
        list(read_records(tmp_path / "s.jsonl"))


@pytest.mark.parametrize("keep", [5, 60, -9])
def test_truncated_gzip(tmp_path: Path, keep: int) -> None:
    whole = gzip.compress(b"".join(json.dumps(record(i)).encode() + b"\n" for i in range(500)))
    (tmp_path / "s.jsonl.gz").write_bytes(whole[:keep])
    with pytest.raises(UserError, match=r"s\.jsonl\.gz is a truncated or damaged gzip"):
        list(read_records(tmp_path / "s.jsonl.gz"))


def test_import_is_reproducible_and_tells_where_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [record(1), "{broken", record(3)])
    provenance = import_snapshot(path, tmp_path / "a")
    import_snapshot(path, tmp_path / "b")
    copies = [tmp_path / folder / "snapshot.jsonl.gz" for folder in "ab"]
    assert copies[0].read_bytes() == copies[1].read_bytes()
    assert gzip.decompress(copies[0].read_bytes()) == path.read_bytes()
    assert provenance == read_json(tmp_path / "a" / "provenance.json")
    assert provenance["sha256"] == sha256_file(copies[0])
    assert (provenance["kind"], provenance["records"], provenance["generated"]) == ("import", 3, False)


def test_import_copies_a_gzip_byte_for_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.gz", [record(i) for i in range(5)])
    assert import_snapshot(path, tmp_path / "a")["records"] == 5
    assert (tmp_path / "a" / "snapshot.jsonl.gz").read_bytes() == path.read_bytes()


def test_import_keeps_the_mark_of_generated_data(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [record(1, generated=True)])
    assert import_snapshot(path, tmp_path / "a")["generated"] is True


def test_import_of_foreign_fields_leaves_the_old_data(tmp_path: Path) -> None:
    import_snapshot(write(tmp_path / "good.jsonl", [record(1)]), tmp_path / "a")
    before = (tmp_path / "a" / "snapshot.jsonl.gz").read_bytes()
    foreign = write(tmp_path / "foreign.jsonl", [{"key": "a", "text": "b"}])
    with pytest.raises(UserError, match=r"foreign\.jsonl: none of the first 1 records is usable.*map its field names"):
        import_snapshot(foreign, tmp_path / "a")
    assert (tmp_path / "a" / "snapshot.jsonl.gz").read_bytes() == before


def test_import_of_a_truncated_gzip_leaves_nothing(tmp_path: Path) -> None:
    # long enough for the first records to be read before the damage is met
    whole = gzip.compress(
        "".join(json.dumps(record(i, abstract=f"{i * 7919} " * 50)) + "\n" for i in range(9000)).encode()
    )
    (tmp_path / "s.gz").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"s\.gz is a truncated"):
        import_snapshot(tmp_path / "s.gz", tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_import_into_an_unwritable_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [record(1)])
    with pytest.raises(UserError, match="cannot write"):
        import_snapshot(path, path / "folder")
