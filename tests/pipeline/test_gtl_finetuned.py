"""`gtl-finetuned`: the cell's fine-tuned denoiser is what is read, guided, counted, bundled and checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json, sha256_file
from gtl_lightning.methods import METHODS
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.conditional_ratio import ConditionalRatioModule
from gtl_lightning.modules.denoiser import DenoiserModule, noised
from gtl_lightning.networks import load_network
from gtl_lightning.papers.tcsm import conditional_bce_loss
from gtl_lightning.sharing.card import Card
from gtl_lightning.stages.evaluate import evaluate_cell
from gtl_lightning.stages.report import make_report
from gtl_lightning.stages.sample import sample_cell
from gtl_lightning.stages.train import context_of, train_cell
from gtl_lightning.workspace.bundle import open_bundle, write_bundle
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.options import SampleRequest
from gtl_lightning.workspace.paths import SOURCE, Cell
from gtl_lightning.workspace.sampler import Sampler
from tests.pipeline.conftest import inside, tiny

CELL = Cell("gtl-finetuned", 0.3, 0)
FINETUNED = Path("models/finetune-0.3-0/network.safetensors")
PARAMS = tiny("sweep.tuned_ratios=[gtl-finetuned]")


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the cell trained and evaluated, and the report made. Read only."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("gtl-finetuned") / "workspace"))
    with inside(folder):
        train_cell(PARAMS, *(CELL.method, 0.3, 0))
        evaluate_cell(PARAMS, *(CELL.method, 0.3, 0))
        make_report(PARAMS)
    return folder


@pytest.fixture
def workspace(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "workspace"))


def test_it_reads_target_texts_and_the_fine_tuned_denoiser_alone(evaluated: Path) -> None:
    """TCSM's loss on that denoiser's predictions: 2 log 2 at the start, g = 0, where the score is the denoiser's."""
    read: set[Path] = set()
    with inside(evaluated):
        corpus = Corpus.open(PARAMS)
        train, val = corpus.target(0.3, PARAMS.data.min_examples)
        settings = PARAMS.methods.of(CELL.method)
        recipe = METHODS[CELL.method].recipe(context_of(PARAMS, corpus, CELL, train, val, read, {}), settings)
        denoiser = load_network(FINETUNED)
    assert read == {FINETUNED}
    assert not recipe.both_domains
    module = recipe.builds["network"](OptimiserConfig(), 0)
    assert isinstance(module, ConditionalRatioModule)
    batch = {"x_0": recipe.target.batch(range(8))}
    noise = torch.Generator().manual_seed(0)
    start = module.loss(batch, noise)
    torch.testing.assert_close(start, torch.tensor(2.0).log() * 2)
    start.backward()
    unguided = DenoiserModule(denoiser, schedule=module.schedule, draws=module.draws)
    for seed in range(3):
        mine, theirs = (
            one.held_out_loss(batch, torch.Generator().manual_seed(seed)) for one in (module.eval(), unguided.eval())
        )
        torch.testing.assert_close(mine, theirs)
    module.train()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in module.network.parameters())

    # Moved off its start it is the paper's loss of the two networks' whole tables.
    with torch.no_grad():
        module.network.bias.normal_(generator=noise)  # type: ignore[union-attr, operator]
        found = module.eval().loss(batch, torch.Generator().manual_seed(1))
        x_t, t, masked = noised(batch["x_0"], module.network.config, module.schedule, torch.Generator().manual_seed(1))
        terms = conditional_bce_loss(module.network(x_t, t), denoiser(x_t, t), batch["x_0"])
    torch.testing.assert_close(found, terms[masked].mean())


def test_the_fine_tuned_denoiser_is_guided_and_counts(evaluated: Path) -> None:
    with inside(evaluated):
        sampler = Sampler.open(PARAMS, CELL)
        row = read_json(Path("cells") / CELL.name / "row.json")
        reported = next(row for row in read_json(Path("reports/transfer.json")) if row["method"] == CELL.method)
        results = [Path("models") / name / "result.json" for name in (CELL.name, "finetune-0.3-0")]
        own, denoiser = (read_json(path) | read_json("runs" / path) for path in results)
        weights = load_network(FINETUNED).state_dict()
        source = sha256_file(SOURCE)[:12]
        report = Path("reports/report.md").read_text()
    assert sampler.guidance is not None
    assert all(torch.equal(sampler.denoiser.state_dict()[name], weight) for name, weight in weights.items())
    assert set(sampler.versions) == {str(FINETUNED), f"models/{CELL.name}/network.safetensors"}
    assert set(own["read"]) == {str(FINETUNED)}
    for key, name in (("trainable_parameters",) * 2, ("steps",) * 2, ("train_seconds", "seconds")):
        assert reported[key] == pytest.approx(own[name] + denoiser[name])
    assert row["trainable_parameters"] > denoiser["trainable_parameters"]
    assert row["gamma"] in PARAMS.sampling.gammas
    assert row["source"] == sampler.source == source, "it comes from the source through the fine-tuned denoiser"
    assert row["verdict"] is None, "the advisor speaks of target and source"
    assert METHODS[CELL.method].label in report


def test_a_bundle_carries_the_denoiser_and_samples_like_the_cell(evaluated: Path, tmp_path: Path) -> None:
    asked = {"count": 3, "seed": 5, "length": 8}
    with inside(evaluated):
        texts = sample_cell(PARAMS, CELL, SampleRequest(**asked, out=tmp_path / "a"))
        files = write_bundle(PARAMS, CELL, tmp_path / "bundle", Card("a cell"))["files"]
    assert str(FINETUNED) in files
    assert str(SOURCE) not in files
    (tmp_path / "elsewhere").mkdir()
    with inside(tmp_path / "elsewhere"):
        params, cell = open_bundle(tmp_path / "bundle")
        assert cell == CELL
        assert sample_cell(params, cell, SampleRequest(**asked, out=tmp_path / "b"), root=tmp_path / "bundle") == texts


def test_beside_another_fine_tuned_denoiser_it_is_refused(workspace: Path) -> None:
    with inside(workspace):
        shutil.copy("models/finetune-1.0-0/network.safetensors", FINETUNED)
        with pytest.raises(UserError, match=f"was trained beside another {FINETUNED} than the one that is there"):
            Sampler.open(PARAMS, CELL)
        Sampler.open(PARAMS, Cell("gtl", 0.3, 0))


def test_without_a_fine_tuned_denoiser_it_is_one_line(workspace: Path) -> None:
    with inside(workspace):
        shutil.rmtree(FINETUNED.parent)
        for command in (train_cell, evaluate_cell):
            with pytest.raises(UserError, match=f"{FINETUNED} does not exist") as refused:
                command(PARAMS, *(CELL.method, 0.3, 0))
            assert "\n" not in str(refused.value)
