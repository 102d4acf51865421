"""Snapshots that are none, or that would never end or outgrow the machine: one line each, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gtl_lightning.data import lines, packed
from gtl_lightning.data.sample import write_sample
from gtl_lightning.data.snapshot import import_snapshot, read_records
from gtl_lightning.stages.data import split
from gtl_lightning.workspace.params import configure
from tests.pipeline.malformed import Line

RECORD = b'{"id": "r%d", "categories": "cs.LG", "abstract": "text number %d"}\n'
GOOD = b"".join(RECORD % (i, i) for i in range(5))


def archive(*names: str, comment: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, GOOD)
        file.comment = comment
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        file.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return out.getvalue()


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "blank lines": (b"\n \n\t\n", "is empty"),
    "text": (b"abstract\n" * 5, "is not JSON"),
    "a list": (b"[" + GOOD.replace(b"\n", b",").rstrip(b",") + b"]", "is not JSON"),
    "numbers": (b"1\n2\n", "is not JSON"),
    "nulls": (b"null\n" * 3, "is not JSON"),
    "zero bytes": (b"\0" * 5000, "is not JSON"),
    "cut in a record": (GOOD[:-20], "breaks off within a record"),
    "deep": (b"[" * 200_000 + b"\n", "is not JSON"),
    "deep objects": (b'{"a":' * 100_000 + b"\n", "is not JSON"),
    "many digits": (b'{"id": ' + b"9" * 100_000 + b', "categories": "cs", "abstract": "a"}\n', "is not JSON"),
    "half a pair": (b'{"id": "a", "categories": "cs", "abstract": "\\ud800"}\n', "is not JSON"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), "UTF-16"),
    "UTF-32": (GOOD.decode().encode("utf-32"), "UTF-16"),
    "Latin-1": ('{"id": "a", "categories": "cs", "abstract": "\xfc"}\n'.encode("latin-1"), "is not JSON"),
    "no field": (b"{}\n" * 5, "missing-field"),
    "other names": (b'{"id": "a", "categories": "cs", "text": "a"}\n', "missing-field"),
    "wrong kinds": (b'{"id": {}, "categories": 5, "abstract": []}\n', "missing-field"),
    "no words": (b'{"id": "a", "categories": "cs", "abstract": " "}\n', "empty-abstract"),
    "a key twice, of which the last counts": (
        b'{"id": "a", "categories": "cs", "abstract": "a", "abstract": 5}\n',
        "missing",
    ),
    "cut gzip": (gzip.compress(GOOD * 50)[:-30], "truncated"),
    "noise behind gzip": (gzip.compress(GOOD) + b"noise", "damaged"),
    "cut xz": (lzma.compress(GOOD)[:-30], "truncated"),
    "cut bzip2": (bz2.compress(GOOD)[:-10], "truncated"),
    "a flipped bit in gzip": (bytes([b ^ (i == 40) for i, b in enumerate(gzip.compress(GOOD))]), "damaged"),
    "cut zip": (archive("a.json")[:-30], "zip"),
    "an empty zip": (archive(), "is not JSON"),
    "two files": (archive("a.json", "b.json"), "holds 2 files"),
    "names of two lines": (archive("a\n\x1b[31mb", "c"), "holds 2 files"),
    "many files": (archive(*(f"{i:0300d}" for i in range(4000))), "too many files"),
    "tar": (tarred(), "tar archive"),
    "zstd": (b"\x28\xb5\x2f\xfd" + GOOD, "zstd"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + GOOD, "7z"),
}


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Line:
    monkeypatch.setattr("gtl_lightning.stages.data._version", lambda records: None)
    return Line(monkeypatch, capsys)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_snapshot_is_named(name: str, tmp_path: Path, line: Line) -> None:
    content, said = REFUSED[name]
    (tmp_path / "file").write_bytes(content)
    line.refused("data import file", tmp_path, "file", said)
    assert not (tmp_path / "data" / "snapshot.jsonl.gz").exists()


@pytest.mark.parametrize("kind", ["folder", "socket", "zeros", "noise", "nothing"])
def test_what_is_no_file_of_lines_is_named(
    kind: str, tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST_PASSED_OVER", 1 << 25)
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)
        socket.socket(socket.AF_UNIX).bind("file")
    else:
        path.symlink_to({"zeros": "/dev/zero", "noise": "/dev/urandom", "nothing": "/dev/null"}[kind])
    line.refused("data import file", tmp_path, "file")


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "gzip in gzip": lambda data: gzip.compress(gzip.compress(data)),
    "gzip in xz": lambda data: lzma.compress(gzip.compress(data)),
}


@pytest.mark.parametrize("kind", PACKERS)
def test_what_becomes_far_larger_than_it_is_is_refused(
    kind: str, tmp_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound counts what is read of the file itself, so that layers do not multiply what each may become."""
    monkeypatch.setattr(packed, "FREE_EXPANSION", 1 << 20)
    (tmp_path / "file").write_bytes(PACKERS[kind](GOOD + b"\n" * (1 << 24)))
    line.refused("data import file", tmp_path, "file becomes more than 200 times as large")


def test_a_snapshot_that_compresses_as_text_does_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "FREE_EXPANSION", 1 << 10)
    (tmp_path / "file").write_bytes(gzip.compress(b"".join(RECORD % (i, i) for i in range(50_000))))
    assert import_snapshot(tmp_path / "file", tmp_path / "data")["records"] == 50_000


@pytest.mark.parametrize(
    "names", [("text", "id", "categories"), ("a.b", "id", "topic"), ("t=1", "\xfc", "c"), ("x", "", "c")]
)
def test_a_split_reads_the_names_that_the_import_was_given(
    names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path / "sample", seed=0, source_records=300, target_records=300)
    fields = dict(zip(("abstract", "id", "categories"), names, strict=True))
    with open("named", "w", encoding="utf-8") as out:
        for record in read_records("sample/snapshot.jsonl.gz"):
            out.write(json.dumps({theirs: getattr(record, ours) for ours, theirs in fields.items()}) + "\n")
    import_snapshot("named", "data", fields)
    split(configure())
    assert json.loads(Path("splits/summary.json").read_text())["records"] == 600


@pytest.mark.parametrize("spoiled", ["[]", '{"sha256": "a", "kind": "import", "fields": ["id"]}', "{"])
def test_names_that_cannot_be_read_are_no_default_names(spoiled: str, tmp_path: Path, line: Line) -> None:
    (tmp_path / "file").write_bytes(GOOD)
    import_snapshot(tmp_path / "file", tmp_path / "data")
    (tmp_path / "data" / "provenance.json").write_text(spoiled)
    (tmp_path / "params.yaml").write_text("profile: default\n")
    line.refused("split", tmp_path, "data/provenance.json")


def test_a_snapshot_that_is_a_pipe_is_not_awaited_by_the_split(tmp_path: Path, line: Line) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "snapshot.jsonl.gz")
    (tmp_path / "params.yaml").write_text("profile: default\n")
    line.refused("split", tmp_path, "data/snapshot.jsonl.gz", "pipe")


def test_many_damaged_lines_take_no_memory(tmp_path: Path) -> None:
    """Peak memory of a split, in a process of its own, with a thousand and with 300,000 lines that hold nothing."""
    with gzip.open(tmp_path / "many.gz", "wb", 1) as file:
        file.write(GOOD + b'{"id": "a"}\n' * 3 * 10**5)
    (tmp_path / "few.gz").write_bytes(gzip.compress(GOOD + b'{"id": "a"}\n' * 1000))
    code = (
        "import resource, sys; from gtl_lightning.data.split import split_snapshot\n"
        "from gtl_lightning.errors import UserError\n"
        "try: split_snapshot(sys.argv[1], 'out', source=['cs'], target=['physics'])\n"
        "except UserError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    few, many = (
        int(subprocess.run([sys.executable, "-c", code, name], cwd=tmp_path, capture_output=True, check=True).stdout)
        for name in ("few.gz", "many.gz")
    )
    assert many - few < 40 << 10, (few, many)  # KiB; a list of them takes 80 MiB
