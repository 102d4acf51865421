"""Every method of the registry: it says what it is, trains six steps, samples, and stands in the documents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from gtl_lightning.files import read_json
from gtl_lightning.methods import METHODS, guides
from gtl_lightning.methods.method import Method
from gtl_lightning.report.style import method_label, order_methods
from gtl_lightning.stages.sample import sample_cell
from gtl_lightning.stages.train import context_of, train_cell
from gtl_lightning.workspace.closure import ROOT
from gtl_lightning.workspace.corpus import Corpus, load_denoiser
from gtl_lightning.workspace.options import SampleRequest
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import Cell
from tests.pipeline.conftest import every_method, inside, tiny

MODULES = sorted(path for path in (ROOT / "gtl_lightning/methods").glob("*.py") if "METHOD" in path.read_text())


def everything(*overrides: str) -> Params:
    """The tiny parameters with every method in the grid."""
    return tiny(*every_method(), "methods.finetune-borrowed.borrowed=24", "methods.tcsm-reward.samples=24", *overrides)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_a_method_says_what_it_is(method: Method) -> None:
    assert method.help.endswith(".")
    assert method.label
    assert method_label(method.name) == method.label
    assert type(method.settings).__doc__
    assert f"`{method.name}`" in (ROOT / "docs/method.md").read_text(), (
        "every method has its paragraph in the documents"
    )
    own = type(Params().methods.of(method.name))
    assert own is type(method.settings)
    assert type(method.settings).model_validate(method.settings.model_dump()) == method.settings


def test_labels_colours_and_markers_tell_methods_apart() -> None:
    for values in (
        [method.label for method in METHODS.values()],
        [method.colours for method in METHODS.values() if method.colours],
        [method.marker for method in METHODS.values() if method.marker],
    ):
        assert len(set(values)) == len(values)
    assert order_methods({*METHODS, "source"}) == [*METHODS, "source"]
    assert not guides("source")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_samples(name: str, trained: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    with inside(workspace):
        params = everything()
        train_cell(params, name, 0.3, 0)
        texts = sample_cell(params, Cell(name, 0.3, 0), SampleRequest(count=2, length=8, out=Path("out")))
        result = read_json(Path("models") / Cell(name, 0.3, 0).name / "result.json")
    assert len(texts) == 2
    assert result["steps"] >= 6
    assert result["trainable_parameters"] > 0


def test_what_is_fine_tuned_with_borrowed_texts_has_those_that_guidance_has(trained: Path) -> None:
    """The same texts as `gtl-warm` borrows, from the same start; all else is fine-tuning."""
    with inside(trained):
        params = everything()
        corpus, cell = Corpus.open(params), Cell("finetune-borrowed", 0.3, 0)
        train, val = corpus.target(0.3, params.data.min_examples)
        recipes = {
            name: METHODS[name].recipe(context_of(params, corpus, cell, train, val, set(), {}), params.methods.of(name))
            for name in ("finetune", "finetune-borrowed", "gtl-warm")
        }
        source = load_denoiser("source")
    borrowed = list(recipes["finetune-borrowed"].target)
    assert len(borrowed) > len(recipes["finetune"].target) == len(train)
    assert all(a.equal(b) for a, b in zip(borrowed, recipes["gtl-warm"].target, strict=True))
    from gtl_lightning.modules.base import OptimiserConfig

    module = recipes["finetune-borrowed"].builds["network"](OptimiserConfig(), 0)
    for name, weight in module.network.state_dict().items():
        assert torch.equal(weight, source.state_dict()[name])
        assert weight is not source.state_dict()[name]


def test_few_effective_samples_of_a_reward_are_told_where_people_look(trained: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    with inside(workspace):
        train_cell(everything("methods.tcsm-reward.least_effective=25"), "tcsm-reward", 0.3, 0)
        few = read_json(Path("models/tcsm-reward-0.3-0/result.json"))
        train_cell(everything("methods.tcsm-reward.least_effective=1"), "tcsm-reward", 0.3, 0)
        enough = read_json(Path("models/tcsm-reward-0.3-0/result.json"))
        client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
        experiment = client.get_experiment_by_name("gtl-transfer")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "tags.method = 'tcsm-reward'")
    assert few["effective_samples"] == enough["effective_samples"] <= 24
    assert few["warning"].startswith("the reward leaves ") and "raise samples or beta" in few["warning"]
    assert "warning" not in enough
    assert {run.data.params.get("warning") for run in runs} == {few["warning"], None}
    assert all(float(run.data.params["effective_samples"]) == few["effective_samples"] for run in runs)


def test_the_noise_level_of_the_mixture_is_chosen_by_the_held_out_score(trained: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    with inside(workspace):
        for levels in ("[0.9]", "[0.5]", "[0.9, 0.5]"):
            shutil.rmtree(Path("models/refinemix-0.3-0"), ignore_errors=True)
            train_cell(everything(f"methods.refinemix.t_max={levels}"), "refinemix", 0.3, 0)
            found = read_json(Path("models/refinemix-0.3-0/result.json"))
            if levels == "[0.9]":
                first = found
            elif levels == "[0.5]":
                second = found
    best = min((first, second), key=lambda result: result["best_score"])
    assert found["part"] == best["part"]
    assert found["best_score"] == best["best_score"]
    assert found["steps"] == first["steps"] + second["steps"]
