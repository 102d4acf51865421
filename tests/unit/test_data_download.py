"""Downloads through `datasets`, offline from a local folder: fields, limits, resumption, faults."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gtl_lightning.data import download as module
from gtl_lightning.data.download import download
from gtl_lightning.data.snapshot import Record, read_records
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def make(folder: Path, n: int = 25, **more: Any) -> str:
    folder.mkdir()
    rows = [{"key": f"k{i}", "subject": "cs.LG", "text": f"text number {i}", "extra": i, **more} for i in range(n)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


FIELDS = {"id": "key", "categories": "subject", "abstract": "text"}


def test_download_under_our_names(tmp_path: Path) -> None:
    provenance = download(make(tmp_path / "set"), tmp_path / "data", fields=FIELDS, part_records=10)
    found = list(read_records(tmp_path / "data" / "snapshot.jsonl.gz"))
    assert found == [Record(i + 1, f"k{i}", "", "cs.LG", f"text number {i}") for i in range(25)]
    assert provenance == read_json(tmp_path / "data" / "provenance.json")
    assert (provenance["kind"], provenance["records"], provenance["generated"]) == ("download", 25, False)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"snapshot.jsonl.gz", "provenance.json"}


@pytest.mark.parametrize(("limit", "expected"), [(7, 7), (10, 10), (15, 15), (25, 25), (99, 25)])
def test_limit(tmp_path: Path, limit: int, expected: int) -> None:
    provenance = download(make(tmp_path / "set"), tmp_path / "data", fields=FIELDS, part_records=5, limit=limit)
    assert provenance["records"] == expected == len(list(read_records(tmp_path / "data" / "snapshot.jsonl.gz")))


class Breaking:
    """A stream that fails after some records, like a network."""

    def __init__(self, stream: Any, after: int) -> None:
        self.stream, self.after = stream, after

    def __iter__(self) -> Any:
        for count, row in enumerate(self.stream):
            if count == self.after:
                raise ConnectionError("connection reset")
            yield row

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, options = make(tmp_path / "set"), {"fields": FIELDS, "part_records": 4}
    download(source, tmp_path / "whole", **options)  # type: ignore[arg-type]  # one mapping of unlike values
    opened = module.open_stream
    monkeypatch.setattr(module, "open_stream", lambda *names: Breaking(opened(*names), after=14))
    with pytest.raises(UserError, match=r"broke off after 12 records \(connection reset\); run the same command again"):
        download(source, tmp_path / "data", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "data" / "snapshot.jsonl.gz").exists()
    fetched: list[str] = []

    def watched(*names: Any) -> Any:
        stream = opened(*names)

        class Watched(Breaking):
            def __iter__(self) -> Any:
                for row in self.stream:
                    fetched.append(row["key"])
                    yield row

        return Watched(stream, 0)

    monkeypatch.setattr(module, "open_stream", watched)
    download(source, tmp_path / "data", **options)  # type: ignore[arg-type]
    assert fetched == [f"k{i}" for i in range(12, 25)]
    copies = [(tmp_path / folder / "snapshot.jsonl.gz").read_bytes() for folder in ("whole", "data")]
    assert gzip.decompress(copies[0]) == gzip.decompress(copies[1])


def test_another_request_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "set")
    opened = module.open_stream
    monkeypatch.setattr(module, "open_stream", lambda *names: Breaking(opened(*names), after=14))
    with pytest.raises(UserError, match="broke off"):
        download(source, tmp_path / "data", fields=FIELDS, part_records=4)
    monkeypatch.setattr(module, "open_stream", opened)
    assert download(source, tmp_path / "data", fields=FIELDS, part_records=3)["records"] == 25
    assert [record.line for record in read_records(tmp_path / "data" / "snapshot.jsonl.gz")] == list(range(1, 26))


def test_generated_records_stay_marked(tmp_path: Path) -> None:
    provenance = download(make(tmp_path / "set", generated=True), tmp_path / "data", fields=FIELDS)
    assert provenance["generated"] is True
    lines = gzip.decompress((tmp_path / "data" / "snapshot.jsonl.gz").read_bytes()).splitlines()
    assert all(json.loads(line)["generated"] is True for line in lines)


def test_fields_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no field 'id' for our 'id'; its fields are key, subject, text"):
        download(make(tmp_path / "set"), tmp_path / "data")


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split 'test', cannot be opened"):
        download(make(tmp_path / "set"), tmp_path / "data", split="test", fields=FIELDS)


def test_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hub_reachable", lambda: False)
    with pytest.raises(UserError, match=r"'nobody/nothing' is not a local folder and .* cannot be reached"):
        download("nobody/nothing", tmp_path / "data")


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        download(make(tmp_path / "set"), tmp_path / "file" / "data", fields=FIELDS)
