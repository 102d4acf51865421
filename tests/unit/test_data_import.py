"""What an import is given: pipes, standard input, archives, odd bytes; all of it arrives or nothing is replaced."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gtl_lightning.data.quarantine import Problem
from gtl_lightning.data.snapshot import Record, import_snapshot, read_records
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json


def line(number: int, **changes: object) -> bytes:
    record = {"id": f"r{number}", "categories": "cs.LG", "abstract": f"abstract number {number}", **changes}
    return json.dumps(record).encode() + b"\n"


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_dot_", "."), content)
    return out.getvalue()


PLAIN = b"".join(line(i) for i in range(5000))
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zip": lambda data: zipped(arxiv_dot_json=data),
    "gzip in zip": lambda data: zipped(arxiv_dot_json_dot_gz=gzip.compress(data)),
}


@contextmanager
def piped(data: bytes) -> Iterator[int]:
    """The reading end of a pipe that something else fills."""
    reading, writing = os.pipe()

    def fill() -> None:
        try:
            with open(writing, "wb") as file:
                file.write(data)
        except BrokenPipeError:
            pass  # the import has refused it

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield reading
    finally:
        os.close(reading)
        thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that already holds records."""
    (tmp_path / "old.jsonl").write_bytes(line(1) + line(2))
    import_snapshot(tmp_path / "old.jsonl", tmp_path / "data")
    return tmp_path / "data"


def imported(folder: Path) -> list[str | None]:
    assert {path.name for path in folder.iterdir()} == {"snapshot.jsonl.gz", "provenance.json"}
    return [record.id for record in read_records(folder / "snapshot.jsonl.gz")]


@pytest.mark.parametrize("kind", PACKERS)
def test_a_pipe_arrives_whole(kind: str, data: Path) -> None:
    with piped(PACKERS[kind](PLAIN)) as reading:
        provenance = import_snapshot(f"/dev/fd/{reading}", data)
    assert imported(data) == [f"r{i}" for i in range(5000)]
    assert provenance["records"] == 5000 == read_json(data / "provenance.json")["records"]


@pytest.mark.parametrize("kind", PACKERS)
def test_a_file_is_told_by_its_content(kind: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(PACKERS[kind](PLAIN))
    assert import_snapshot(tmp_path / "file", data)["records"] == 5000
    assert imported(data) == [f"r{i}" for i in range(5000)]


def test_a_named_pipe_and_standard_input(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    thread = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(PLAIN))
    thread.start()
    assert import_snapshot(tmp_path / "fifo", data)["records"] == 5000
    thread.join()
    with piped(PLAIN[: PLAIN.index(b'{"id": "r77"')]) as reading, open(reading, closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        provenance = import_snapshot("-", data)
    assert (provenance["records"], provenance["name"]) == (77, "standard input")
    assert imported(data) == [f"r{i}" for i in range(77)]


def test_closed_standard_input_is_one_line(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        import_snapshot("-", data)


@pytest.mark.parametrize("kind", ["plain", "gzip", "xz", "bzip2", "zip"])
@pytest.mark.parametrize("through_a_pipe", [True, False])
def test_a_stream_that_was_cut_off_replaces_nothing(
    kind: str, through_a_pipe: bool, data: Path, tmp_path: Path
) -> None:
    before = contents(data)
    whole = PACKERS[kind](PLAIN)
    cut = whole[: len(whole) * 2 // 3]
    (tmp_path / "cut").write_bytes(cut)
    with piped(cut) as reading, pytest.raises(UserError, match="truncated|breaks off within a record|cannot be unpack"):
        import_snapshot(f"/dev/fd/{reading}" if through_a_pipe else tmp_path / "cut", data)
    assert contents(data) == before


@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2"])
def test_streams_one_behind_the_other_are_read_to_the_end(kind: str, data: Path, tmp_path: Path) -> None:
    parts = [PACKERS[kind](line(i)) for i in range(3)]
    (tmp_path / "file").write_bytes(b"".join(parts) + bytes(8))  # padding, as a tape or xz leaves
    import_snapshot(tmp_path / "file", data)
    assert imported(data) == ["r0", "r1", "r2"]


@pytest.mark.parametrize("behind", ["a damaged header", "text", "another form"])
@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2"])
def test_what_follows_a_stream_and_is_none_is_damage(kind: str, behind: str, data: Path, tmp_path: Path) -> None:
    """Readers of xz and bzip2 take it for the end, and every record from there on is missing without a word."""
    before, more = contents(data), PACKERS[kind](line(2))
    other = PACKERS["gzip" if kind == "xz" else "xz"](line(2))
    packed = {"a damaged header": b"\x01" + more[1:], "text": line(2), "another form": other}[behind]
    (tmp_path / "file").write_bytes(PACKERS[kind](line(1)) + packed)
    with pytest.raises(UserError, match=f"truncated or damaged {kind} file"):
        import_snapshot(tmp_path / "file", data)
    assert contents(data) == before


def test_a_last_line_without_its_end_is_whole(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes((line(1) + line(2)).rstrip())
    import_snapshot(tmp_path / "file", data)
    assert imported(data) == ["r1", "r2"]


def test_one_of_several_files_in_a_zip(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "several.zip"
    path.write_bytes(zipped(a_dot_json=PLAIN, README_dot_md=b"x", **{"__MACOSX/._a.json": b"x"}))
    import_snapshot(path, data)
    assert len(imported(data)) == 5000
    before = contents(data)
    path.write_bytes(zipped(a_dot_json=PLAIN, b_dot_json=PLAIN))
    with pytest.raises(UserError, match=r"several\.zip holds 2 files \(a\.json, b\.json\)"):
        import_snapshot(path, data)
    assert contents(data) == before


def test_a_format_that_is_not_read_names_the_way(data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(UserError, match=r"x\.zst is packed with zstd.*`zstd -dc FILE \| gtl data import -`"):
        import_snapshot(tmp_path / "x.zst", data)


def test_a_line_beyond_16_mib_costs_itself_alone(data: Path, tmp_path: Path) -> None:
    long = json.dumps({"abstract": "x" * (17 << 20)}).encode() + b"\n"
    (tmp_path / "file").write_bytes(line(1) + long + line(3) + long)
    provenance = import_snapshot(tmp_path / "file", data)
    assert imported(data) == ["r1", None, "r3", None]
    assert provenance["records"] == 4


def test_odd_bytes_are_counted_and_no_record_is_lost(data: Path, tmp_path: Path) -> None:
    odd = [b"\xff\xfe not text\n", b"\x00\x00\x00\n", b'"a string"\n', b"[1]\n", b"null\n", b"12\n"]
    odd += [line(7, abstract=" "), line(8, abstract="\ud800"), b'{"id": "\xed\xa0\x80"}\n']
    mixed = b"\n\r\n".join([b"\xef\xbb\xbf" + line(0).strip() + b"\r\n", *odd, line(9)])
    (tmp_path / "file").write_bytes(mixed)
    provenance = import_snapshot(tmp_path / "file", data)
    found = list(read_records(data / "snapshot.jsonl.gz"))
    assert [record.id for record in found if isinstance(record, Record)] == ["r0", "r9"]
    assert sum(isinstance(record, Problem) for record in found) == len(odd)
    assert provenance["records"] == len(odd) + 2


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", line(1, abstract=None) * 3, line(1, abstract="") * 150, b"\x00" * 10_000, b"[]\n" * 20]
)
def test_no_usable_record_replaces_nothing(content: bytes, data: Path) -> None:
    before = contents(data)
    with piped(content) as reading, pytest.raises(UserError):
        import_snapshot(f"/dev/fd/{reading}", data)
    assert contents(data) == before


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"text": "a"}', "line 2: missing-field id, categories)"),
        ('{"id": 1, "categories": 5, "text": "a"}', "line 2: missing-field categories)"),
        ('{"id": 1, "categories": " ", "text": "a"}', "line 2: missing-field)"),
    ],
)
def test_the_fields_that_the_first_record_lacks_are_named(record: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(f"\n{record}\n")
    with pytest.raises(UserError, match="as --source and --target$") as caught:
        import_snapshot(tmp_path / "texts.jsonl", tmp_path / "data", {"abstract": "text"})
    assert said in str(caught.value)


def test_a_mark_of_generated_data_far_down_is_seen(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(PLAIN + line(5000, generated=True))
    assert import_snapshot(tmp_path / "file", data)["generated"] is True


def test_a_folder_is_no_file(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*Is a directory"):
        import_snapshot(tmp_path, data)


def test_the_snapshot_itself_and_a_file_beside_it(data: Path) -> None:
    before = (data / "snapshot.jsonl.gz").read_bytes()
    import_snapshot(data / "snapshot.jsonl.gz", data)
    assert (data / "snapshot.jsonl.gz").read_bytes() == before
    (data / "mine.jsonl").write_bytes(PLAIN)
    import_snapshot(data / "mine.jsonl", data)
    assert (data / "mine.jsonl").read_bytes() == PLAIN
    (data / "mine.jsonl").unlink()
    assert len(imported(data)) == 5000


def test_a_folder_that_is_a_link_stays_one(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "file").write_bytes(PLAIN)
    import_snapshot(tmp_path / "file", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(imported(data)) == 5000


def test_a_file_that_is_still_being_written_replaces_nothing(data: Path, tmp_path: Path) -> None:
    before = contents(data)
    path = tmp_path / "file"
    path.write_bytes(PLAIN)

    @contextmanager
    def meanwhile(what: str) -> Iterator[Callable[[int, int], None]]:
        def grow(done: int, total: int) -> None:
            if "reading" in what and path.stat().st_size == len(PLAIN):
                with path.open("ab") as file:
                    file.write(line(0))

        yield grow

    with pytest.raises(UserError, match="changed while it was read"):
        import_snapshot(path, data, display=meanwhile)
    assert contents(data) == before


def tarred(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("snapshot.jsonl")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PLAIN.decode().encode("utf-16"), "is UTF-16 and must be UTF-8"),
        (PLAIN.decode().encode("utf-16-le"), "is UTF-16 and must be UTF-8"),
        (PLAIN.decode().encode("utf-16-be"), "is UTF-16 and must be UTF-8"),
        (gzip.compress(PLAIN.decode().encode("utf-16")), "is UTF-16 and must be UTF-8"),
        (tarred(PLAIN), "is a tar archive; unpack it first"),
        (gzip.compress(tarred(PLAIN)), "is a tar archive; unpack it first"),
    ],
    ids=["utf-16", "utf-16-le", "utf-16-be", "utf-16.gz", "tar", "tar.gz"],
)
def test_what_is_no_text_of_ours_is_told_by_its_kind(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(content)
    with pytest.raises(UserError, match=said):
        import_snapshot(tmp_path / "given", tmp_path / "data")


def test_a_mark_of_utf_8_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(b"\xef\xbb\xbf" + PLAIN)
    provenance = import_snapshot(tmp_path / "given", tmp_path / "data")
    assert provenance["records"] == 5000 and "damaged" not in provenance
