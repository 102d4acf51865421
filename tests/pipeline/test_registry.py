"""The registry: the best network of every fraction, found by name, sampled without its repository, never executed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from gtl_lightning import load_model, sample
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json, sha256_file, write_json
from gtl_lightning.networks.store import load_network, read_meta, save_network
from gtl_lightning.stages.register import register_best
from gtl_lightning.stages.sample import sample_model
from gtl_lightning.workspace.artifacts import local_folder
from gtl_lightning.workspace.bundle import open_bundle
from gtl_lightning.workspace.mlflow_client import register_scheme
from gtl_lightning.workspace.options import SampleRequest
from tests.pipeline.conftest import Gtl, inside, tiny

RATIO = "gtl-transfer-ratio"
DENOISER = "gtl-transfer-denoiser"


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "workspace"))


def tracker(workspace: Path) -> str:
    return f"sqlite:///{workspace}/mlflow.db"


def artifact(workspace: Path, name: str, alias: str) -> Path:
    """Folder of a version's artifact on this disk."""
    version = MlflowClient(tracker(workspace)).get_model_version_by_alias(name, alias)
    return local_folder(version.source, tracker(workspace))


def test_the_lowest_validation_score_of_a_fraction_has_its_alias(trained: Path) -> None:
    client = MlflowClient(tracker(trained))
    rows = [row for row in read_json(trained / "reports" / "transfer.json") if row["fraction"] is not None]
    for name, of_kind in (
        (RATIO, lambda method: method.startswith("gtl")),
        (DENOISER, lambda method: "gtl" not in method),
    ):
        for alias, fraction in (("best", 1.0), ("best-100", 1.0), ("best-30", 0.3)):
            version = client.get_model_version_by_alias(name, alias)
            rivals = [row for row in rows if of_kind(row["method"]) and row["fraction"] == fraction]
            winner = min(rivals, key=lambda row: row["nelbo_val"])
            assert (version.tags["method"], version.tags["fraction"]) == (winner["method"], str(fraction))


def test_registering_again_makes_no_second_version(workspace: Path) -> None:
    client = MlflowClient(tracker(workspace))
    before = len(client.search_model_versions(f"name = '{RATIO}'"))
    with inside(workspace):
        register_best(tiny())
    assert len(client.search_model_versions(f"name = '{RATIO}'")) == before == 2


def test_an_artifact_holds_weights_and_text_alone(trained: Path) -> None:
    files = [path for path in artifact(trained, RATIO, "best-30").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".yaml", ".md", ""}
    assert {path.name for path in files} >= {"bundle.json", "network.safetensors", "tokenizer.json", "params.yaml"}
    assert [path.name for path in files if not path.suffix] == ["MLmodel"]


def test_a_registered_ratio_samples_like_its_cell_without_the_repository(
    gtl: Gtl, trained: Path, tmp_path: Path
) -> None:
    method = read_json(artifact(trained, RATIO, "best-30") / "bundle.json")["method"]
    asked = ("--count", "3", "--seed", "5")
    cell = gtl("sample", "--method", method, "--fraction", "0.3", *asked, "--out", str(tmp_path / "a"), cwd=trained)
    assert cell.returncode == 0, cell.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    model = gtl("sample", "--model", f"{RATIO}@best-30", *asked, cwd=empty, MLFLOW_TRACKING_URI=tracker(trained))
    assert model.returncode == 0, model.stderr
    assert model.stdout == cell.stdout != ""
    rows = [json.loads(line) for line in (empty / "samples" / "samples.jsonl").read_text().splitlines()]
    assert all(row["method"] == method and row["gamma"] is not None for row in rows)
    assert sorted(path.name for path in empty.iterdir()) == ["samples"]


def test_a_model_is_loaded_by_name_through_the_public_interface(trained: Path) -> None:
    model = load_model(f"{RATIO}@best", tracker(trained))
    x = sample(
        model.denoiser,
        batch=2,
        length=8,
        mask_index=model.mask_index,
        guidance=model.guidance,
        generator=torch.Generator().manual_seed(0),
    )
    assert x.shape == (2, 8)
    assert not (x == model.mask_index).any()
    assert model.guidance is not None
    row = read_json(trained / "cells" / model.cell.name / "row.json")
    assert (model.guidance.gamma, model.temperature) == (row["sample_gamma"], row["temperature"])
    assert len(model.decode(x)) == 2
    assert load_model(DENOISER, tracker(trained)).guidance is None


@pytest.mark.parametrize("name", ["no-such-model@best", f"{RATIO}@no-such-alias"])
def test_an_unknown_name_or_alias_is_one_clear_line(name: str, gtl: Gtl, trained: Path) -> None:
    done = gtl("sample", "--model", name, cwd=trained)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert name in done.stderr


def test_a_model_and_a_cell_at_once_are_refused(gtl: Gtl, trained: Path) -> None:
    done = gtl("sample", "--model", RATIO, "--method", "gtl", cwd=trained)
    assert done.returncode == 2
    assert "one of them" in done.stderr


def test_a_changed_artifact_is_refused(workspace: Path) -> None:
    folder = artifact(workspace, RATIO, "best")
    assert workspace in folder.parents, "the copy's database points to its own folder"
    copied = workspace / "artifact"
    shutil.copytree(folder, copied)
    (weights,) = (copied / "models").glob("gtl*/network.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged"):
        open_bundle(copied)
    weights.write_bytes(content)
    (copied / "tokens" / "tokenizer" / "code.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match=r"code\.py is not part of it"):
        open_bundle(copied)


def test_weights_that_are_changed_together_with_the_manifest_are_refused(
    gtl: Gtl, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write to the artifacts and not to the registry is told; a bundle that fits itself is not enough."""
    client = MlflowClient(tracker(workspace))
    version = client.get_model_version_by_alias(RATIO, "best")
    folder = Path(shutil.copytree(artifact(workspace, RATIO, "best"), workspace / "artifact"))
    changed = client.create_model_version(RATIO, folder.as_uri(), version.run_id, tags=version.tags)
    client.set_registered_model_alias(RATIO, "moved", changed.version)
    assert load_model(f"{RATIO}@moved", tracker(workspace)).cell.method == version.tags["method"]
    (weights,) = (folder / "models").glob("gtl*/network.safetensors")
    network = load_network(weights, denoiser=load_network(folder / "models" / "source" / "network.safetensors"))
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    save_network(weights, network, read_meta(weights))
    manifest = read_json(folder / "bundle.json")
    manifest["files"][weights.relative_to(folder).as_posix()] = sha256_file(weights)
    write_json(folder / "bundle.json", manifest)
    assert open_bundle(folder)[1].method == version.tags["method"], "the bundle fits itself"
    done = gtl("sample", "--model", f"{RATIO}@moved", cwd=workspace, MLFLOW_TRACKING_URI=tracker(workspace))
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "error: registered model: bundle.json is not the one that was registered; register it again (`gtl register`)"
    )


def test_registering_before_anything_is_evaluated_is_one_clear_line(gtl: Gtl, tokenised: Path) -> None:
    done = gtl("register", cwd=tokenised)
    assert done.returncode == 2
    assert "no cell of the sweep is evaluated" in done.stderr


def test_the_artifact_of_a_cell_holds_the_cells_own_weights(trained: Path) -> None:
    folder = artifact(trained, DENOISER, "best")
    manifest = read_json(folder / "bundle.json")
    own = f"models/{manifest['method']}-1.0-0/network.safetensors"
    assert manifest["files"][own] == sha256_file(trained / own)


@pytest.fixture
def mlflow_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """MLflow's own calls, with a workspace's tracker."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    register_scheme()  # what the package's entry point does where it is installed
    yield lambda workspace: mlflow.set_tracking_uri(tracker(workspace))
    mlflow.set_tracking_uri(None)


def test_mlflow_itself_loads_a_version_and_samples_from_it(
    mlflow_at: Callable[[Path], None], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow_at(trained)
    monkeypatch.chdir(tmp_path)
    model = mlflow.pyfunc.load_model(f"models:/{RATIO}@best-30")
    prompts = ["", "we study [MASK] [MASK] of", "", "we study [MASK] [MASK] of"]
    texts = model.predict(pd.DataFrame({"prompt": prompts}), params={"seed": 5, "length": 10})
    assert [text.startswith("we study") for text in texts][1::2] == [True, True] and len(set(texts)) == 4
    assert not (artifact(trained, RATIO, "best-30") / "registered_model_meta").exists(), "it got a copy"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker(trained))
    own = sample_model(f"{RATIO}@best-30", SampleRequest(count=2, length=10, seed=5, out=tmp_path / "own"))
    assert texts[::2] == own, "the same as our own loader's"
    assert model.predict([{"prompt": ""}], params={"seed": 5}) != model.predict([{"prompt": ""}], params={"seed": 6})
    version = MlflowClient(tracker(trained)).get_model_version_by_alias(RATIO, "best-30")
    assert f"# {version.tags['method']} on 30 % of the target data, seed 0" in version.description
    _, _, text = (artifact(trained, RATIO, "best-30") / "README.md").read_text().split("---\n")
    assert version.description == text.strip() + "\n"
    assert "generated sample" in version.description


def test_mlflows_own_loading_refuses_what_was_not_registered(
    mlflow_at: Callable[[Path], None], workspace: Path
) -> None:
    """A manifest written anew fits its files; the registry's tag tells it, whoever loads."""
    mlflow_at(workspace)
    folder = artifact(workspace, RATIO, "best")
    lengths = folder / "lengths.json"
    write_json(lengths, [3, 3, 3])
    with pytest.raises(UserError, match=r"lengths\.json is damaged"):
        mlflow.pyfunc.load_model(f"models:/{RATIO}@best")
    manifest = read_json(folder / "bundle.json")
    manifest["files"]["lengths.json"] = sha256_file(lengths)
    write_json(folder / "bundle.json", manifest)
    with pytest.raises(UserError, match=r"bundle\.json is not the one that was registered"):
        mlflow.pyfunc.load_model(f"models:/{RATIO}@best")
    assert mlflow.pyfunc.load_model(folder.as_uri()).predict([{"prompt": ""}], params={"length": 4})
