"""A bundle's manifest of any other shape, and a folder that is not what it says, are one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gtl_lightning.errors import UserError
from gtl_lightning.files import load_tensors, save_tensors, sha256_file, write_json, write_text
from gtl_lightning.sharing.manifest import MANIFEST
from gtl_lightning.stages import register
from gtl_lightning.workspace import bundle as bundle_room
from gtl_lightning.workspace import registry
from gtl_lightning.workspace.bundle import open_bundle, sampling_params
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
    """What the docs say of a folder: weights that are changed together with their manifest open like any others."""
    write_text(bundle / "models" / "gtl-1.0-0" / "network.safetensors", "other weights")
    assert "is damaged" in refused(bundle)
    seal(bundle, {"method": "gtl", "fraction": 1.0, "seed": 0})
    assert open_bundle(bundle)[1] == Cell("gtl", 1.0, 0)


def test_a_manifest_other_than_the_registered_one_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry keeps the manifest's hash, and lies elsewhere than what was changed."""
    tags = {MANIFEST: sha256_file(bundle / MANIFEST)}
    monkeypatch.setattr(registry, "fetch_model", lambda *asked: (bundle, tags))
    with registry.fetched("any@best", "sqlite:///none.db") as folder:
        assert open_bundle(folder)[1] == Cell("gtl", 1.0, 0)
    write_text(bundle / "models" / "gtl-1.0-0" / "network.safetensors", "other weights")
    seal(bundle, {"method": "gtl", "fraction": 1.0, "seed": 0})
    with pytest.raises(UserError) as caught, registry.fetched("any@best", "sqlite:///none.db"):
        pytest.fail("it was handed out")
    assert str(caught.value) == (
        "registered model: bundle.json is not the one that was registered; register it again (`gtl register`)"
    )
    tags.clear()
    with pytest.raises(UserError, match="its version has no tag bundle.json.*register it again") as caught:
        registry.fetched("any@best", "sqlite:///none.db").__enter__()
    assert "\n" not in str(caught.value)


def damaged(path: Path) -> None:
    save_tensors(path, {"weight": torch.tensor([1.0, float("nan")])}, {})


def truncated(path: Path) -> None:
    save_tensors(path, {"weight": torch.ones(64)}, {})
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("source", damaged, "weight holds NaN or infinite numbers; delete it and train again"),
        ("finetune-1.0-0", truncated, "delete it and train again"),
    ],
)
def test_damaged_weights_are_refused_before_any_model_is_registered(
    file: str, spoil: Callable[[Path], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratio is registered first; a damaged denoiser must not leave it registered alone."""
    monkeypatch.chdir(tmp_path)
    for name in ("gtl-1.0-0", "finetune-1.0-0"):
        write_json(Path("cells") / name / "row.json", {"nelbo_val": 1.0})
        write_json(Path("models") / name / "result.json", {})
    for name in ("gtl-1.0-0", "finetune-1.0-0", "source"):
        save_tensors(Path("models") / name / "network.safetensors", {"weight": torch.ones(2)}, {})
    write_json("tokens/meta.json", {})
    monkeypatch.setattr(bundle_room.Sampler, "open", lambda *asked: pytest.fail("a model was opened"))
    monkeypatch.setattr(register, "study", lambda params: pytest.fail("a model was logged"))
    path = Path("models") / file / "network.safetensors"
    spoil(path)
    with pytest.raises(UserError) as caught:
        register.register_best(Params())
    assert str(caught.value).startswith(str(path)) and str(caught.value).endswith(said)
    assert not Path("reports").exists()


def test_what_is_wrong_with_a_registered_file_is_said_of_the_model(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = bundle / "models" / "gtl-1.0-0" / "network.safetensors"
    damaged(weights)
    seal(bundle, {"method": "gtl", "fraction": 1.0, "seed": 0})
    monkeypatch.setattr(registry, "fetch_model", lambda *asked: (bundle, {MANIFEST: sha256_file(bundle / MANIFEST)}))
    with pytest.raises(UserError) as caught, registry.fetched("any@best", "sqlite:///none.db") as folder:
        open_bundle(folder)
        load_tensors(folder / weights.relative_to(bundle))
    assert str(caught.value) == (
        "registered model: models/gtl-1.0-0/network.safetensors: weight holds NaN or infinite numbers; "
        "register it again (`gtl register`)"
    )
    with pytest.raises(UserError, match=r"^--n-ratio 9; lower it$"), registry.fetched("any@best", "sqlite:///none.db"):
        raise UserError("--n-ratio 9; lower it")
