"""`gtl export` and `gtl push`: a cell leaves the project as one folder, and draws elsewhere what it draws here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from gtl_lightning import Draw, GuidedModel, load_model, sample
from gtl_lightning.networks import MaskedDenoiser
from gtl_lightning.sharing.hub import fetched
from gtl_lightning.stages.sample import sample_cell, sample_model
from gtl_lightning.stages.share import export_cell, push_cell
from gtl_lightning.workspace.options import SampleRequest, named_cell
from gtl_lightning.workspace.params import load_params
from gtl_lightning.workspace.paths import Cell
from tests.hub import TOKEN, Hub, serving
from tests.pipeline.conftest import inside
from tests.pipeline.malformed import Line

CELL = Cell("gtl", 0.3, 0)
METHODS = ("gtl", "gtl-head", "gtl-warm", "gtl-sequence-gkl", "finetune", "lora")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as found:
        yield found


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    folder = tmp_path / "nowhere"
    folder.mkdir()
    return folder


def drawn(model: GuidedModel) -> torch.Tensor:
    return sample(
        model.denoiser,
        batch=3,
        length=8,
        mask_index=model.mask_index,
        guidance=model.guidance,
        draw=Draw(model.temperature),
        generator=torch.Generator().manual_seed(2),
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_exported_cell_draws_what_it_drew_here(method: str, trained: Path, nowhere: Path) -> None:
    """By the command line, by `load_model` and by `GuidedModel`: one folder, one model."""
    cell, folder = Cell(method, 0.3, 0), nowhere / "model"
    asked = SampleRequest(count=3, seed=5, length=8, out=nowhere / "samples")
    with inside(trained):
        here = sample_cell(load_params(), cell, asked)
        export_cell(load_params(), cell, folder)
    with inside(nowhere):
        assert sample_model("model", asked) == here
        loaded, pair = load_model("model"), GuidedModel.from_pretrained("model")
    assert loaded.cell == cell
    assert torch.equal(drawn(loaded), drawn(pair))
    assert loaded.decode(drawn(loaded)) == pair.decode(drawn(pair))
    for one in (loaded.guidance, pair.guidance):
        assert (one is None) == (method in ("finetune", "lora"))
    if loaded.guidance is not None and pair.guidance is not None:
        assert loaded.guidance.strengths(8) == pair.guidance.strengths(8)
        assert loaded.guidance.n_ratio == pair.guidance.n_ratio
    mask = torch.full((2, 8), pair.mask_index)
    alone = MaskedDenoiser.from_pretrained(folder)
    assert torch.equal(alone(mask, torch.ones(2)), loaded.denoiser(mask, torch.ones(2)))


def test_a_pushed_cell_is_the_exported_one_and_draws_the_same(hub: Hub, trained: Path, nowhere: Path) -> None:
    asked = SampleRequest(count=2, seed=5, length=8, out=nowhere / "samples")
    with inside(trained):
        export_cell(load_params(), CELL, nowhere / "model")
        push_cell(load_params(), CELL, "me/gtl", private=True)
        here = sample_cell(load_params(), CELL, asked)
    head = hub.repositories["me/gtl"].head
    exported = {path.relative_to(nowhere / "model").as_posix(): path for path in (nowhere / "model").rglob("*")}
    exported = {name: path for name, path in exported.items() if path.is_file()}
    assert set(head) == {*exported, ".gitattributes"}
    told = {name for name, path in exported.items() if head[name] != path.read_bytes()}
    assert told == {"README.md", "bundle.json"}, "the name in the card, and the card's hash"
    with inside(nowhere):
        assert sample_model("me/gtl", asked) == here
        assert sample_model(f"me/gtl@{hub.repositories['me/gtl'].sha_of(1)}", asked) == here
        assert torch.equal(drawn(load_model("me/gtl")), drawn(GuidedModel.from_pretrained(nowhere / "model")))
        assert torch.equal(drawn(GuidedModel.from_pretrained("me/gtl")), drawn(load_model(str(nowhere / "model"))))


def test_another_cell_takes_the_place_of_the_one_before(hub: Hub, trained: Path) -> None:
    with inside(trained):
        push_cell(load_params(), CELL, "me/gtl")
        push_cell(load_params(), Cell("finetune", 0.3, 0), "me/gtl")
        assert load_model("me/gtl").cell.method == "finetune"
    assert not [name for name in hub.repositories["me/gtl"].head if "gtl" in name or "source" in name]
    assert hub.repositories["me/gtl"].messages[1:] == [str(CELL), str(Cell("finetune", 0.3, 0))]


def test_the_card_says_what_it_is_made_of_and_how_it_is_loaded(hub: Hub, trained: Path, nowhere: Path) -> None:
    with inside(trained):
        push_cell(load_params(), CELL, "me/gtl", licence="cc-by-4.0")
        row = json.loads((trained / "cells" / CELL.name / "row.json").read_text())
    _, fields, text = hub.repositories["me/gtl"].head["README.md"].decode().split("---\n")
    front = yaml.safe_load(fields)
    assert (front["library_name"], front["license"]) == ("gtl-lightning", "cc-by-4.0")
    assert {"discrete-diffusion", "guided", "gtl"} <= set(front["tags"])
    for said in (
        "generated sample",
        f"{row['nelbo']:.4f}",
        f"{row['mauve']:.4f}",
        f"| gamma, of samples | {row['sample_gamma']} |",
        "| seed | 0",
        "| commit | ",
        "cc-by-4.0",
        "is not true",
        'GuidedModel.from_pretrained("me/gtl")',
        "gtl sample --model me/gtl",
    ):
        assert said in text, said
    (code,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    with inside(nowhere):
        exec(compile(code.replace("print", "found = list"), "card", "exec"), found := {})
    assert len(found["found"]) == 4


def test_a_broken_push_of_a_cell_is_one_line_and_the_command_goes_on(
    hub: Hub, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.breaks = "/commit/"
    line = Line(monkeypatch, capsys)
    line.refused(f"push {CELL.name} me/gtl", trained, "me/gtl was not pushed", "the repository was made", "again")
    assert list(hub.repositories["me/gtl"].head) == [".gitattributes"]
    hub.breaks = ""
    with inside(trained):
        push_cell(load_params(), CELL, "me/gtl")
        with fetched("me/gtl") as folder:
            assert (folder / "bundle.json").is_file()


REFUSED = {
    f"push {CELL.name} gtl": "'gtl' is no OWNER/NAME of a hub",
    "push gtl-0.3-7 me/gtl": "cell gtl-0.3-7 is not finished: cells/gtl-0.3-7/row.json is missing; `dvc repro`",
    "push gtl me/gtl": "'gtl' names no cell; give a folder of cells/",
    "push no-method-0.3-0 me/gtl": "method 'no-method' is unknown",
    "push gtl-7.5-0 me/gtl": "is no share of the target data",
    "push source-0 me/gtl": "source-0 is the untouched source",
    "export gtl-0.3-7 new": "cell gtl-0.3-7 is not finished",
    f"export {CELL.name} cells": "cells is a folder that is not empty; give the name of a new one",
    f"export {CELL.name} params.yaml": "params.yaml is no folder; give the name of a new one",
    "sample --model me/none": "me/none was not fetched: the hub does not know the token, or there is no",
    "sample --model ./models": "model ./models is no cell's: it holds no bundle.json",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_shared_is_one_line(
    words: str, hub: Hub, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in trained.iterdir())
    Line(monkeypatch, capsys).refused(words, trained, REFUSED[words])
    assert sorted(path.name for path in trained.iterdir()) == before and not hub.repositories


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"HF_TOKEN": ""}, "me/gtl cannot be pushed without a token"),
        ({"HF_TOKEN": "hf_unknown"}, "the hub does not know the token"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_no_token_or_hub_is_one_line(
    environment: dict[str, str], told: str, hub: Hub, trained: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Line(monkeypatch, capsys).refused(f"push {CELL.name} me/gtl", trained, told, **environment)
    assert not hub.repositories


def test_a_damaged_network_leaves_no_folder_and_no_repository(
    hub: Hub, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "copy", copy_function=os.link))
    weights = workspace / "models" / CELL.name / "network.safetensors"
    content = weights.read_bytes()[:-8]
    weights.unlink()
    weights.write_bytes(content)
    line = Line(monkeypatch, capsys)
    line.refused(f"export {CELL.name} new/model", workspace, f"models/{CELL.name}/network.safetensors")
    line.refused(f"push {CELL.name} me/gtl", workspace, f"models/{CELL.name}/network.safetensors")
    assert not hub.repositories and not [path for path in (workspace / "new").rglob("*")]


def test_the_token_is_in_nothing_that_a_push_leaves(
    hub: Hub, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither in the workspace, its runs and artifacts, nor in the repository, nor in what was said."""
    workspace = Path(shutil.copytree(trained, tmp_path / "copy"))
    with inside(workspace):
        push_cell(load_params(), CELL, "me/gtl", private=True)
    assert hub.repositories["me/gtl"].private
    assert not [path for path in workspace.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not [name for name, content in hub.repositories["me/gtl"].head.items() if TOKEN.encode() in content]
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("gtl-0.05-0", Cell("gtl", 0.05, 0)),
        ("gtl-sequence-gkl-1.0-12", Cell("gtl-sequence-gkl", 1.0, 12)),
        ("gtl-1e-05-3", Cell("gtl", 1e-05, 3)),
        ("source-2", Cell("source", None, 2)),
    ],
)
def test_a_cell_is_called_as_its_folder(name: str, cell: Cell) -> None:
    assert named_cell(name) == cell and cell.name == name
