"""A registered model that is spoiled: `gtl sample --model` says so in one line, and of the model, not of a folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from gtl_lightning.files import sha256_file, write_json
from gtl_lightning.sharing.card import Card
from gtl_lightning.sharing.manifest import MANIFEST
from gtl_lightning.workspace.bundle import write_bundle
from gtl_lightning.workspace.params import load_params
from gtl_lightning.workspace.paths import Cell
from tests.pipeline.conftest import inside
from tests.pipeline.malformed import FILE, JSON, Line, Spoil, as_bytes, drop, put

CELL = Cell("gtl", 0.3, 0)
META, ROW, LENGTHS = "tokens/meta.json", f"cells/{CELL.name}/row.json", "lengths.json"
RESULT, NETWORK = f"models/{CELL.name}/result.json", f"models/{CELL.name}/network.safetensors"


@pytest.fixture(scope="module")
def made(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle. Read only."""
    folder = tmp_path_factory.mktemp("bundle")
    with inside(trained):
        write_bundle(load_params(), CELL, folder, Card("a cell"))
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(made, tmp_path / "bundle", copy_function=os.link))

    def fetched(*asked: object) -> tuple[Path, dict[str, str]]:
        """Registered as it lies there: what is spoiled is told by its content alone."""
        manifest = folder / MANIFEST
        whole = manifest.is_file() and not manifest.is_symlink()
        return folder, {MANIFEST: sha256_file(manifest) if whole else "0" * 64}

    monkeypatch.setattr("gtl_lightning.workspace.registry.fetch_model", fetched)
    return folder


def seal(folder: Path) -> None:
    """A manifest that fits what lies there: what is spoiled is then told by its content alone."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        if (folder / name).is_file():
            manifest["files"][name] = sha256_file(folder / name)
    (folder / MANIFEST).unlink()
    write_json(folder / MANIFEST, manifest)


KEPT = (LENGTHS, META, ROW, RESULT, "params.yaml", NETWORK, "models/source/network.safetensors")
DAMAGE = [
    pytest.param(file, spoil, id=f"{file} {name}")
    for file in (*KEPT, "tokens/tokenizer/tokenizer.json")
    for name, spoil in FILE.items()
]
SEALED: list[tuple[str, Spoil]] = [
    *((file, spoil) for file in (LENGTHS, META, ROW, RESULT) for name, spoil in JSON.items() if name not in FILE),
    *((LENGTHS, as_bytes(json.dumps(value).encode())) for value in ([], [0], [-3], ["5"], [1.5], [10**9], [True])),
    *((META, put(key, value=-1)) for key in ("vocab_size", "mask_index", "pad_index", "eos_index", "length")),
    (META, put("vocab_size", value=7)),
    (META, put("length", value=8)),
    (META, drop("splits")),
    *((ROW, put("temperature", value=value)) for value in (-1, "1", None)),
    (RESULT, put("read", value=[])),
]


@pytest.mark.parametrize(("file", "spoil"), DAMAGE)
def test_a_damaged_file_is_named(
    file: str, spoil: Spoil, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(bundle / file)
    said = Line(monkeypatch, capsys).refused("sample --model any@best --count 1", bundle.parent, "registered model: ")
    assert file in said and str(bundle) not in said


@pytest.mark.parametrize(("file", "spoil"), SEALED)
def test_a_file_whose_hash_fits_is_looked_at(
    file: str, spoil: Spoil, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(bundle / file)
    seal(bundle)
    said = Line(monkeypatch, capsys).refused("sample --model any@best --count 1", bundle.parent)
    assert str(bundle) not in said


@pytest.mark.parametrize("name", JSON)
def test_a_spoiled_manifest_is_named(
    name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    JSON[name](bundle / MANIFEST)
    Line(monkeypatch, capsys).refused("sample --model any@best", bundle.parent, "registered model: ", MANIFEST)
