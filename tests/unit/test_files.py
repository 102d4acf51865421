"""Files are whole or absent; weights load without executing anything."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from gtl_lightning.errors import UserError
from gtl_lightning.files import atomic_path, digest, load_tensors, read_json, save_tensors, write_json, write_text


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
