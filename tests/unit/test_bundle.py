"""A bundle's manifest of any other shape, and a folder that is not what it says, are one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gtl_lightning.errors import UserError
from gtl_lightning.files import sha256_file, write_json, write_text
from gtl_lightning.workspace.bundle import MANIFEST, open_bundle, sampling_params
from gtl_lightning.workspace.params import Params, write_params
from gtl_lightning.workspace.paths import Cell

Manifest = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_params(sampling_params(Params()), folder / "params.yaml")
    write_json(folder / "lengths.json", [3, 5])
    write_text(folder / "models" / "gtl-1.0-0" / "network.safetensors", "weights")
    seal(folder, {"method": "gtl", "fraction": 1.0, "seed": 0})
    return folder


def seal(folder: Path, cell: Manifest) -> None:
    """Write the manifest that fits what lies in the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST]
    write_json(folder / MANIFEST, {**cell, "files": {str(p.relative_to(folder)): sha256_file(p) for p in files}})


def refused(folder: Path) -> str:
    with pytest.raises(UserError, match="registered model: ") as caught:
        open_bundle(folder)
    line = str(caught.value)
    assert "\n" not in line and line.endswith("register it again (`gtl register`)") and str(folder) not in line
    return line


def test_a_whole_bundle_opens(bundle: Path) -> None:
    params, cell = open_bundle(bundle)
    assert cell == Cell("gtl", 1.0, 0)
    assert params.sampling == Params().sampling


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("method", None, "'method' is null, not a text"),
        ("method", 5, "'method' is a number, not a text"),
        ("method", ["gtl"], "'method' is a list, not a text"),
        ("method", "../../etc", "method '../../etc' is none of gtl"),
        ("method", "source", "method 'source' is none of"),
        ("fraction", "1.0", "'fraction' is a text, not a number"),
        ("fraction", 1, "'fraction' is a number, not a number with a point"),
        ("fraction", True, "'fraction' is true or false, not a number"),
        ("fraction", 1.5, "fraction 1.5"),
        ("fraction", -0.0, "fraction -0.0"),
        ("seed", "0", "'seed' is a text, not a number"),
        ("seed", 0.5, "'seed' is a number with a point, not a number"),
        ("seed", -1, "seed -1"),
        ("files", ["a"], "'files' is a list, not an object"),
        ("files", None, "'files' is null, not an object"),
        ("files", {}, "not part of it"),
        ("files", {"a": 5}, "the hash of a is none"),
        ("files", {"a": "0" * 63}, "the hash of a is none"),
        *(
            ("files", {name: "0" * 64}, "is no path within the bundle")
            for name in ("../a", "/etc/passwd", "a/../b", "./a", "a//b", "", ".", "a\\b")
        ),
        ("files", {"a": "0" * 64}, "a is missing"),
    ],
)
def test_a_manifest_of_another_shape_is_one_line(bundle: Path, key: str, value: Any, said: str) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    write_json(bundle / MANIFEST, {**manifest, key: value})
    assert said in refused(bundle)


@pytest.mark.parametrize("key", ["method", "fraction", "seed", "files"])
def test_a_manifest_without_a_key_names_it(bundle: Path, key: str) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest[key]
    write_json(bundle / MANIFEST, manifest)
    assert f"bundle.json has no '{key}'" in refused(bundle)


@pytest.mark.parametrize("content", ["[]", "5", "{", "", '{"method": NaN}', "\xff"])
def test_a_manifest_that_is_no_object_is_one_line(bundle: Path, content: str) -> None:
    (bundle / MANIFEST).write_bytes(content.encode("latin-1"))
    assert MANIFEST in refused(bundle)


def _link(folder: Path) -> None:
    path = folder / "models" / "gtl-1.0-0" / "network.safetensors"
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "bundle.json does not exist"),
        (_link, "network.safetensors is a link"),
        (lambda folder: (folder / "link").symlink_to("/etc"), "link is a link"),
        (lambda folder: write_text(folder / "models" / MANIFEST, "{}"), "models/bundle.json is not part of it"),
        (lambda folder: (folder / "lengths.json").unlink(), "lengths.json is missing"),
    ],
)
def test_a_folder_that_is_not_what_its_manifest_says(bundle: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(bundle)
    assert said in refused(bundle)


@pytest.mark.parametrize("lengths", [[], "abc", [3, "5"], [3, 0], {"a": 1}, [True], [2.5]])
def test_lengths_of_another_shape_are_one_line_even_where_the_hashes_fit(bundle: Path, lengths: Any) -> None:
    write_json(bundle / "lengths.json", lengths)
    seal(bundle, {"method": "gtl", "fraction": 1.0, "seed": 0})
    assert "lengths.json" in refused(bundle)


def test_hashes_are_no_signature(bundle: Path) -> None:
    """What the docs say of them: weights that are changed together with their manifest open like any others."""
    write_text(bundle / "models" / "gtl-1.0-0" / "network.safetensors", "other weights")
    assert "is damaged" in refused(bundle)
    seal(bundle, {"method": "gtl", "fraction": 1.0, "seed": 0})
    assert open_bundle(bundle)[1] == Cell("gtl", 1.0, 0)
