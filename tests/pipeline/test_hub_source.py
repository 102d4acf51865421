"""A denoiser of other people as the source of the pipeline: named and not copied, and every method runs on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gtl_lightning import UserError, load_denoiser
from gtl_lightning.cli import app
from gtl_lightning.files import load_tensors, read_json
from gtl_lightning.networks.adapters.origin import Origin, files_hash
from gtl_lightning.stages.data import tokenize
from gtl_lightning.stages.evaluate import ablation, evaluate_cell
from gtl_lightning.stages.real import measure_real
from gtl_lightning.stages.register import register_best
from gtl_lightning.stages.report import make_report
from gtl_lightning.stages.train import train_causal, train_cell, train_classifier, train_judge, train_source
from gtl_lightning.workspace.corpus import load_denoiser as load_stored
from gtl_lightning.workspace.params import load_params, write_params
from gtl_lightning.workspace.paths import SOURCE
from tests.adapters_kit import bert, in_words, words_of
from tests.oracle.test_adapters import PUBLISHED
from tests.pipeline.conftest import inside, tiny

LENGTH = 12
GRID = (
    "sampling.n_ratio=8",
    "sweep.fractions=[0.3]",
    "sweep.baselines=[lora]",
    "sweep.ratios=[gtl-head]",
    "ablation.method=gtl-head",
)


@pytest.fixture(scope="module")
def workspace(tokenised: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Splits, a BERT of their words in `somebody/bert`, and the pipeline's source imported from it. Read only."""
    copy = Path(shutil.copytree(tokenised, tmp_path_factory.mktemp("hub") / "workspace"))
    with inside(copy):
        bert(Path("somebody/bert"), words=words_of(Path("splits")))
        write_params(tiny(f"tokenizer.length={LENGTH}", *GRID))
        done = CliRunner().invoke(app, ["source", "import", "somebody/bert"])
        assert done.exit_code == 0, done.output
        params = load_params()
        tokenize(params)
        train_causal(params)
        train_source(params)
        train_judge(params)
        measure_real(params)
        train_classifier(params, 0.3, 0)
        yield copy


def test_the_source_is_named_by_its_hash_and_no_weight_of_it_is_copied(workspace: Path) -> None:
    with inside(workspace):
        params, own = load_params(), load_denoiser("somebody/bert")
        assert (params.source.kind, params.tokenizer.name) == ("hub", "somebody/bert")
        tensors, header = load_tensors(SOURCE)
        assert not tensors and header["network"]["origin"]["sha256"] == params.source.own.sha256
        result = read_json(SOURCE.parent / "result.json")
        assert result["steps"] == result["trainable_parameters"] == 0
        stored = load_stored("source")
        x_t = torch.full((2, LENGTH), own.mask_index)
        with torch.no_grad():
            assert torch.equal(stored(x_t, torch.ones(2)), own(x_t, torch.ones(2)))
        before, stored.reading = stored.fingerprint(), replace(stored.reading, start_index=None)
        assert stored.fingerprint() != before, "read otherwise it is another source"


def test_a_sweep_on_it_ends_in_a_report_and_models_that_name_it(workspace: Path, tmp_path: Path) -> None:
    """Without a card its licence is not known: that of the data is not its own."""
    copy = Path(shutil.copytree(workspace, tmp_path / "workspace"))
    with inside(copy):
        params = load_params()
        evaluate_cell(params, "source", None, 0)
        for method in params.sweep.methods:
            train_cell(params, method, 0.3, 0)
            evaluate_cell(params, method, 0.3, 0)
        ablation(params, 0)
        make_report(params)
        register_best(params)
        rows = json.loads(Path("reports/transfer.json").read_text())
        assert {row["method"]: row["nelbo"] > 0 for row in rows} == {"source": True, "lora": True, "gtl-head": True}
        told = f"somebody/bert, sha256 {params.source.own.sha256[:12]}"
        assert f"frozen as it is. {told}" in Path("reports/report.md").read_text()
        assert told in Path("reports/report.html").read_text()
        assert Path("reports/figures/trajectory.html").exists()
        for card in Path("mlartifacts").rglob("README.md"):
            assert told in card.read_text() and "license: apache-2.0" not in card.read_text()
        assert len([*Path("mlartifacts").rglob("README.md")]) == 2


@pytest.mark.parametrize("method", ["gtl-sourceless", "tcsm-ratio"])
def test_every_kind_of_method_trains_and_is_measured_on_it(method: str, workspace: Path) -> None:
    with inside(workspace):
        params = load_params()
        train_cell(params, method, 0.3, 0)
        evaluate_cell(params, method, 0.3, 0)
        row = read_json(Path(f"cells/{method}-0.3-0/row.json"))
        assert row["nelbo"] > 0 and row["method"] == method


def test_another_model_in_its_place_is_refused(workspace: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(workspace, tmp_path / "workspace"))
    with inside(copy):
        config = Path("somebody/bert/config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "relu"}))
        for use in (lambda: load_stored("source"), lambda: train_source(load_params())):
            with pytest.raises(UserError, match=r"another model than the one that was imported .*gtl source import"):
                use()
        shutil.rmtree("somebody")
        with pytest.raises(UserError, match="not there any more"):
            load_stored("source")


def test_the_same_weights_with_another_order_of_the_vocabulary_are_another_model(
    workspace: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(workspace, tmp_path / "workspace"))
    with inside(copy):
        words = Path("somebody/bert/tokenizer.json")
        said = json.loads(words.read_text())
        vocabulary = said["model"]["vocab"]
        (a, one), (b, other) = list(vocabulary.items())[10:12]
        vocabulary[a], vocabulary[b] = other, one
        words.write_text(json.dumps(said))
        with pytest.raises(UserError, match=r"another model than the one that was imported"):
            train_source(load_params())


def test_tokens_of_another_tokenizer_are_refused(tokenised: Path, workspace: Path, tmp_path: Path) -> None:
    """The trained tokenizer of the sample has fewer ids than the BERT has rows: nothing else would say it."""
    copy = Path(shutil.copytree(tokenised, tmp_path / "workspace"))
    shutil.copytree(workspace / "somebody", copy / "somebody")
    with inside(copy):
        sha256 = files_hash(Path("somebody/bert"))
        params = tiny("source.kind=hub", "source.hub.name=somebody/bert", f"source.hub.sha256={sha256}")
        with pytest.raises(UserError, match=r"another tokenizer than the source's .*gtl source import somebody/bert"):
            train_source(params)


def test_the_kind_without_a_model_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"source: kind = hub names no model .*gtl source import"):
        tiny("source.kind=hub")


def test_no_path_of_this_machine_is_told_to_others() -> None:
    told = [Origin(name, None, "ab" * 32).published for name in ("/home/somebody/models/bert", "models/bert")]
    assert told == ["bert, sha256 abababababab", "models/bert, sha256 abababababab"]
    assert Origin("somebody/bert", "c" * 40, "ab" * 32).published == "somebody/bert@cccccccccccc, sha256 abababababab"


def test_a_copy_needs_the_folder_no_more(workspace: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(workspace, tmp_path / "workspace"))
    with inside(copy):
        before = load_stored("source")
        done = CliRunner().invoke(app, ["source", "import", "somebody/bert", "--copy"])
        assert done.exit_code == 0, done.output
        train_source(load_params())
        shutil.rmtree("somebody")
        x_t = torch.full((2, LENGTH), before.mask_index)
        with torch.no_grad():
            assert torch.equal(load_stored("source")(x_t, torch.ones(2)), before(x_t, torch.ones(2)))


@pytest.mark.parametrize("kind", ["llada", "dream", "mdlm"])
def test_kinds_that_bring_code_become_the_source_and_none_of_it_is_run(
    kind: str, tokenised: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tokenised, tmp_path / "workspace"))
    with inside(copy):
        PUBLISHED[kind](Path("somebody/model"))
        in_words(Path("splits"))
        write_params(tiny(f"tokenizer.length={LENGTH}", "sampling.n_ratio=8"))
        words = ["--tokenizer", "somebody/model-words"] if kind == "mdlm" else []
        done = CliRunner().invoke(app, ["source", "import", "somebody/model", *words])
        assert done.exit_code == 0, done.output
        tokenize(load_params())
        train_source(load_params())
        meta, stored = read_json(Path("tokens/meta.json")), load_stored("source")
        assert (stored.vocab_size, stored.mask_index) == (meta["vocab_size"], meta["mask_index"])
        assert not Path("somebody/executed").exists()
