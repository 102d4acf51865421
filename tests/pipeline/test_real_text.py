"""Cells are compared with real text that was measured as they are, by the code and on the data that stand now."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json, write_json
from gtl_lightning.stages.data import tokenize
from gtl_lightning.stages.evaluate import evaluate_cell
from gtl_lightning.stages.real import measure_real
from gtl_lightning.stages.report import make_report
from gtl_lightning.stages.train import train_cell, train_source
from gtl_lightning.workspace.closure import ROOT
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.real import RealText
from tests.pipeline.conftest import inside, tiny
from tests.unit.test_closure import served
from tests.unit.test_evaluation_features import tiny_model

ROW = Path("cells/gtl-0.3-0/row.json")


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished workspace, to change."""
    return Path(shutil.copytree(trained, tmp_path / "workspace"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("evaluation.samples=21", "samples = 24, and 21"),
        ("evaluation.mauve_buckets=3", "mauve_buckets = 4, and 3"),
        ("evaluation.mauve_seeds=3", "mauve_seeds = 2, and 3"),
        ("evaluation.neighbours=10", "neighbours = 1000, and 10"),
    ],
)
def test_a_cell_is_not_compared_with_what_was_measured_otherwise(change: str, named: str, workspace: Path) -> None:
    """Refused before anything is sampled; measured anew, it is compared."""
    with inside(workspace):
        before = ROW.read_bytes()
        with pytest.raises(UserError, match=named) as refused:
            evaluate_cell(tiny(change), "gtl", 0.3, 0)
        assert "dvc repro real-text" in str(refused.value)
        assert ROW.read_bytes() == before
        measure_real(tiny(change))
        evaluate_cell(tiny(change), "gtl", 0.3, 0)
        row = read_json(ROW)
        assert row["mauve_real"] == read_json(Path("real/values.json"))["values"]["mauve"]
        assert row["samples"] == (21 if "samples" in change else 24)


def test_features_of_another_featurizer_of_equal_width_are_no_measure(workspace: Path, tmp_path: Path) -> None:
    """One name, one width, other weights: as when a folder or a hub name is given anew."""
    folder = tiny_model(tmp_path / "featurizer")
    asked = tiny(f"evaluation.featurizer={folder}")
    with inside(workspace):
        measure_real(asked)
        evaluate_cell(asked, "source", None, 0)
        from transformers import GPT2LMHeadModel

        model = GPT2LMHeadModel.from_pretrained(folder)
        with torch.no_grad():
            model.transformer.wte.weight.add_(1.0)
        model.save_pretrained(folder)
        with pytest.raises(UserError, match=r"featurizer.*dvc repro real-text"):
            evaluate_cell(asked, "source", None, 0)
        measure_real(asked)
        evaluate_cell(asked, "source", None, 0)


def test_other_tokens_need_another_measurement(workspace: Path) -> None:
    with inside(workspace):
        meta = read_json(Path("tokens/meta.json"))
        meta["splits"]["target_test"]["examples"] = 40  # of which 20 a side are compared, where 24 are asked for
        write_json(Path("tokens/meta.json"), {**meta, "name": "another"})
        with pytest.raises(UserError, match=r"measured on other tokens than tokens holds; .*dvc repro real-text"):
            RealText.open(tiny(), Corpus.open(tiny()))


def test_few_test_texts_are_all_used_and_it_is_said(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A user with few records gets a comparison of as many texts a side as there are, not a refusal after training."""
    asked = tiny("evaluation.samples=4000")
    with inside(workspace):
        there = read_json(Path("tokens/meta.json"))["splits"]["target_test"]["examples"]
        with caplog.at_level("WARNING", logger="gtl"):
            measure_real(asked)
        assert f"{there} target test texts" in caplog.text
        evaluate_cell(asked, "source", None, 0)
        assert read_json(Path("cells/source-0/row.json"))["samples"] == there // 2
        assert len(Path("cells/source-0/samples.jsonl").read_text().splitlines()) == there // 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("evaluation.mauve_buckets=200", "evaluation.mauve_buckets = 200 needs 400 target test texts"),
        ("sweep.fractions=[1.0, 0.3, 0.02]", "sweep.fractions: fraction 0.02"),
        ("sampling={n_ratio: 4000}", "sampling.n_ratio = 4000 exceeds the vocabulary"),
    ],
)
def test_what_the_data_decide_is_looked_at_as_soon_as_they_are_there(change: str, named: str, workspace: Path) -> None:
    """The stage that makes the tokens refuses, before minutes of training; so does every stage after it."""
    asked = tiny("evaluation.samples=400", "tokenizer.vocab_size=8000", change)
    with inside(workspace):
        with pytest.raises(UserError, match=named):
            tokenize(asked)
        with pytest.raises(UserError, match=named):
            train_source(asked)


def test_cells_of_another_source_denoiser_are_refused_or_named(workspace: Path) -> None:
    """Stages run by hand: a new source, and beside it a ratio and cells of the old one."""
    with inside(workspace):
        again = tiny("train.source={steps: 10, batch: 16, lr: 0.002, warmup: 2, check_every: 5, patience: 4}")
        train_source(again)
        with pytest.raises(UserError, match=r"gtl-0\.3-0.* was trained beside another models/source.*train it again"):
            evaluate_cell(again, "gtl", 0.3, 0)
        evaluate_cell(again, "source", None, 0)
        make_report(again)
        for page in ("report.md", "report.html"):
            assert "same source denoiser" in Path("reports", page).read_text()
        train_cell(again, "gtl", 0.3, 0)
        evaluate_cell(again, "gtl", 0.3, 0)
        assert read_json(ROW)["source"] == read_json(Path("cells/source-0/row.json"))["source"]


def test_the_least_number_of_texts_is_that_of_mauve() -> None:
    from gtl_lightning.evaluation.mauve import MIN_TEXTS
    from gtl_lightning.workspace.checks import LEAST_TEXTS

    assert LEAST_TEXTS == MIN_TEXTS


def test_results_say_what_they_were_made_with(trained: Path) -> None:
    import gtl_lightning.workspace.provenance as provenance

    version = f"torch {torch.__version__}, cpu, 32-true, "
    row = read_json(trained / ROW)
    told = [row["made_with"], row["trained_with"]]
    told += [read_json(trained / name)["made_with"] for name in ("real/values.json", "models/source/result.json")]
    told += [
        read_json(trained / "models" / name)["made_with"] for name in ("judge/result.json", "gtl-0.3-0/result.json")
    ]
    told += [read_json(trained / "models/classifier-0.3-0/advisor.json")["made_with"]]
    told += [row["made_with"] for row in read_json(trained / "reports/ablation.json")]
    assert all(version in words and "thread" in words for words in told)
    assert provenance.made_with("cpu", "32-true", 4) == f"{provenance.made_with('cpu', '32-true')}, batches in 4 parts"
    rows = read_json(trained / "reports/transfer.json")
    assert provenance.mixtures(rows) == []
    other = {**rows[0], "made_with": rows[0]["made_with"].replace("cpu", "NVIDIA H100")}
    (sentence,) = provenance.mixtures([other, *rows[1:]])
    assert sentence.startswith("Not all of these cells were evaluated alike: 14 with")
    assert "1 with gtl-lightning" in sentence
    assert "NVIDIA H100" in sentence
    (sentence,) = provenance.mixtures([{**rows[0], "samples": 7}, *rows[1:]])
    assert sentence.startswith("Not all of these cells were measured alike, by the number of samples: ")
    (sentence,) = provenance.mixtures([{**rows[0], "settings": "0" * 12}, *rows[1:]])
    assert "sampled and measured with the same settings of params.yaml: 14 with" in sentence
    guided = next(index for index, row in enumerate(rows) if row["guidance_settings"])
    (sentence,) = provenance.mixtures([*rows[:guided], {**rows[guided], "guidance_settings": "0"}, *rows[guided + 1 :]])
    assert "guided with the same settings of params.yaml: " in sentence


def test_the_report_says_when_its_table_mixes_machines(workspace: Path) -> None:
    row = read_json(workspace / ROW)
    write_json(workspace / ROW, {**row, "trained_with": row["trained_with"].replace("cpu", "NVIDIA H100")})
    with inside(workspace):
        make_report(tiny())
    for page in ("report.md", "report.html"):
        assert "Not all of these cells were trained alike" in (workspace / "reports" / page).read_text()


@pytest.mark.parametrize(
    ("home", "call"),
    [
        ("evaluate", "evaluate_cell(load_params(), 'gtl-warm', 0.3, 0)"),
        ("train", "train_cell(load_params(), 'gtl-warm', 0.3, 0)"),
        ("report", "make_report(load_params())"),
    ],
)
def test_a_run_loads_no_file_that_the_closure_does_not_name(home: str, call: str, workspace: Path) -> None:
    """A process of its own: what it has loaded at its end is what DVC has to know."""
    program = (
        "import json, sys\n"
        "from gtl_lightning.workspace.params import load_params\n"
        f"from gtl_lightning.stages.{home} import {call.partition('(')[0]}\n"
        f"{call}\n"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'gtl_lightning']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=workspace, env=environment, capture_output=True, text=True, check=True
    )
    loaded = {Path(path).relative_to(ROOT).as_posix() for path in json.loads(done.stdout.splitlines()[-1])}
    assert len(loaded) > 10
    assert loaded <= served(f"gtl_lightning.stages.{home}")
