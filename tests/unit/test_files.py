"""Files are whole or absent; weights load without executing anything."""

import json
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gtl_lightning.errors import UserError
from gtl_lightning.files import (
    atomic_path,
    copy_file,
    digest,
    load_tensors,
    make_folder,
    read_json,
    save_tensors,
    sha256_file,
    write_json,
    write_text,
)
from gtl_lightning.records import read_lines, read_record, read_records, read_sealed, sealed


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_json_writes_non_finite_numbers_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.5]})
    assert read_json(tmp_path / "a.json") == {"x": None, "y": [None, 1.5]}


@pytest.mark.parametrize("content", ["{", "\x00\xff", ""])
def test_broken_json_names_the_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_tensors_round_trip_with_their_header(tmp_path: Path) -> None:
    tensors = {"w": torch.arange(6).reshape(2, 3).float().T}
    save_tensors(tmp_path / "w.safetensors", tensors, {"kind": "test"})
    loaded, meta = load_tensors(tmp_path / "w.safetensors")
    assert torch.equal(loaded["w"], tensors["w"])
    assert meta == {"kind": "test"}


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)  # type: ignore[return-value]


def test_damaged_and_foreign_weights_are_refused_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tensors("w.safetensors", {"w": torch.zeros(100)}, {})
    whole = Path("w.safetensors").read_bytes()
    Path("w.safetensors").write_bytes(whole[:-50])
    with pytest.raises(UserError, match="truncated"):
        load_tensors("w.safetensors")
    Path("w.safetensors").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(UserError, match="no safetensors"):
        load_tensors("w.safetensors")
    assert not Path("exploded").exists()
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    Path("w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match="not written by this project"):
        load_tensors("w.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        load_tensors("nowhere.safetensors")


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_weights_with_any_flipped_bit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"b": torch.arange(6.0).reshape(2, 3).bfloat16(), "a": torch.tensor(True), "c": torch.zeros(0)}
    save_tensors(path, tensors, {"kind": "test", "lr": 0.002})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole)
        _flip(path, place)
        with pytest.raises(UserError) as caught:
            load_tensors(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    tensors = {"w": torch.arange(6.0), "v": torch.ones(2, dtype=torch.int64)}
    for name in "ab":
        save_tensors(tmp_path / name, dict(sorted(tensors.items(), reverse=name == "b")), {"x": 1, "y": {"z": None}})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_without_a_hash_are_refused(tmp_path: Path) -> None:
    """Otherwise a flipped bit in the hash's name would take the hash away."""
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors", metadata={"gtl": json.dumps({"kind": "old"})})
    with pytest.raises(UserError, match=r"w\.safetensors was not written by .* \(no `gtl` header with a hash\)"):
        load_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    save_tensors(tmp_path / "w.safetensors", {"w": torch.tensor([1.0, value])}, {})
    with pytest.raises(UserError, match=r"w\.safetensors: w holds NaN or infinite numbers"):
        load_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize("header", ["[]", "{", "5"])
def test_a_header_of_another_shape_is_one_line(tmp_path: Path, header: str) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors", metadata={"gtl": header})
    with pytest.raises(UserError, match=r"w\.safetensors"):
        load_tensors(tmp_path / "w.safetensors")


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, "x" * 100_000),
    "json": lambda path: write_json(path, ["x" * 100_000]),
    "tensors": lambda path: save_tensors(path, {"w": torch.zeros(100_000)}, {}),
    "copy": lambda path: copy_file(Path(torch.__file__), path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writer_on_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path: Path, kind: str) -> None:
    """A limit on the size of files stands for the disk: as root no folder is read-only."""
    path = tmp_path / "file"
    path.write_text("old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {path}: .*; choose a writable folder") as caught:
            WRITERS[kind](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(caught.value).count("\n") == 0 and "File too large" in str(caught.value)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", [*WRITERS, "folder"])
def test_every_writer_below_a_file_and_over_a_folder_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    write = WRITERS.get(kind, make_folder)
    with pytest.raises(UserError, match="cannot write .*: Not a directory"):
        write(tmp_path / "file" / "below" / "new")
    if kind != "folder":
        with pytest.raises(UserError, match="cannot write .*folder: Is a directory"):
            write(tmp_path / "folder")


READERS: dict[str, Callable[[Path], object]] = {
    "json": read_json,
    "record": read_record,
    "records": read_records,
    "lines": read_lines,
    "sealed": read_sealed,
    "tensors": load_tensors,
    "hash": sha256_file,
    "copy": lambda path: copy_file(path, path.with_name("copy")),
}


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_of_what_is_no_readable_file_is_one_line(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = READERS[kind]
    (tmp_path / "file").write_text("[" if kind != "lines" else "{}\n[")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=str(path)) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    if kind not in ("hash", "copy"):
        with pytest.raises(UserError, match=str(tmp_path / "file")) as caught:
            read(tmp_path / "file")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "a list where an object belongs"),
        ("null", "null where an object belongs"),
        ("{}", "no 'score'"),
        ('{"score": "1"}', "'score' is a text, not a number"),
        ('{"score": true}', "'score' is true or false, not a number"),
        ('{"score": null}', "'score' is null, not a number"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_json_of_another_shape_names_file_and_key(tmp_path: Path, content: str, said: str) -> None:
    shape = {"score": (int, float)}
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=rf"a\.json.*{said}"):
        read_record(tmp_path / "a.json", shape)
    (tmp_path / "a.json").write_text(f"[{content}]" if content[1:2] != "[" else content)
    with pytest.raises(UserError, match=rf"a\.json.*{said}"):
        read_records(tmp_path / "a.json", shape)
    (tmp_path / "a.json").write_text(f'{{"score": 1}}\n{content}\n')
    with pytest.raises(UserError, match=rf"a\.json, line 2.*{said}"):
        read_lines(tmp_path / "a.json", shape)


def test_a_seal_breaks_with_any_changed_digit_and_survives_writing(tmp_path: Path) -> None:
    value = {"x": 0.1 + 0.2, "y": [1, {"z": None}], "t": "ä"}
    write_json(tmp_path / "a.json", sealed(value))
    assert read_sealed(tmp_path / "a.json", {"x": float}) == value
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace("0.30000000000000004", "0.3"))
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_sealed(tmp_path / "a.json")
