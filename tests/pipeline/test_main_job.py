"""The main job on a small scale: every stage, in order, and what a second look at it must show."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json, sha256_file, write_json
from gtl_lightning.stages.data import split, tokenize
from gtl_lightning.stages.evaluate import evaluate_cell
from gtl_lightning.stages.real import measure_real
from gtl_lightning.stages.report import make_report
from gtl_lightning.stages.sample import sample_cell
from gtl_lightning.stages.share import export_cell
from gtl_lightning.stages.train import train_cell
from gtl_lightning.workspace.options import SampleRequest
from gtl_lightning.workspace.paths import Cell
from gtl_lightning.workspace.selection import chosen_setting
from tests.pipeline.conftest import Gtl, inside, tiny
from tests.unit.trees import snapshot

METHODS = {"source", "vanilla", "finetune", "lora", "gtl", "gtl-head", "gtl-warm", "gtl-sequence-gkl"}
NEEDED = {
    "method", "fraction", "seed", "examples", "gamma", "nelbo", "nelbo_se", "perplexity", "mauve", "mauve_low",
    "mauve_high", "mauve_real", "domain_score", "domain_score_real", "reference_ppl", "reference_ppl_real",
    "exact_nll", "exact_nll_real", "distinct_1", "distinct_2", "longest_copy", "nearest_train",
    "trainable_parameters", "steps", "train_seconds", "sample_seconds", "verdict",
    "temperature", "sample_gamma", "trials", "kept_bytes", "lr", "denoiser_passes", "ratio_passes", "fit_seconds",
    "prepare_seconds", "needs_seconds", "cost_seconds", "peak_bytes",
}  # fmt: skip


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished workspace, to change."""
    return Path(shutil.copytree(trained, tmp_path / "workspace"))


def test_every_cell_of_the_grid_has_a_row_with_every_metric(trained: Path) -> None:
    rows = read_json(trained / "reports" / "transfer.json")
    assert {row["method"] for row in rows} == METHODS
    assert len(rows) == 1 + 7 * 2
    for row in rows:
        assert set(row) >= NEEDED
        assert row["nelbo"] > 0
        assert 0 < row["mauve"] <= 1
        guided = row["method"].startswith("gtl")
        assert (row["gamma"] is not None) == (row["sample_gamma"] is not None) == guided
        assert len(row["trials"]) == (3 if guided else 2), "both temperatures, then the other strength"
        best = min(row["trials"], key=lambda trial: trial["energy"])
        assert (row["temperature"], row["sample_gamma"]) == (best["temperature"], best["gamma"])


def test_the_ablation_starts_at_the_untouched_source(trained: Path) -> None:
    """gamma = 0 is the source denoiser: on the same held-out texts it scores what an unguided evaluation scores."""
    from gtl_lightning.evaluation.likelihood import nelbo
    from gtl_lightning.evaluation.masked_likelihood import Masking
    from gtl_lightning.workspace.corpus import Corpus, load_denoiser

    rows = read_json(trained / "reports" / "ablation.json")
    first = next(row for row in rows if row["axis"] == "gamma" and row["gamma"] == 0.0)
    with inside(trained):
        params = tiny()
        corpus = Corpus.open(params)
        _, val = corpus.target(0.3, params.data.min_examples)
        noise = Masking(mask_index=corpus.mask_index, pad_index=corpus.pad_index, draws=1)
        unguided = nelbo(load_denoiser("source"), list(val), noise)
    assert first["nelbo_val"] == pytest.approx(unguided.nats_per_token, rel=1e-5)


def test_the_report_names_its_data_as_generated_and_shows_texts(trained: Path) -> None:
    page = (trained / "reports" / "report.html").read_text()
    assert "generated" in page.lower()
    links = page.split("</style>")[1].replace("http://www.w3.org", "")
    assert (
        re.findall(r"http://[^\"<]*", links)
        == ["http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning"] * 2
    )
    assert (trained / "reports" / "report.md").stat().st_size > 1000
    assert (trained / "reports" / "figures" / "headline.svg").exists()
    text = json.loads((trained / "cells" / "gtl-0.3-0" / "samples.jsonl").read_text().splitlines()[0])
    assert set(text["models"]) == {"models/source/network.safetensors", "models/gtl-0.3-0/network.safetensors"}


def test_evaluating_again_gives_the_same_row_and_the_same_samples(workspace: Path) -> None:
    folder = workspace / "cells" / "gtl-0.3-0"
    before = snapshot(folder)
    shutil.rmtree(folder)
    (workspace / "mlflow.db").unlink()  # as in another clone, whose runs have other names
    with inside(workspace):
        evaluate_cell(tiny(), "gtl", 0.3, 0)
    assert snapshot(folder) == before


def test_networks_of_other_tokens_are_neither_evaluated_nor_trained_beside(workspace: Path) -> None:
    """By hand the stages may be run in any order: the ids would mean something else, and the texts be others."""
    other = tiny("data.max_source=300")
    with inside(workspace):
        split(other)
        tokenize(other)
        calls: list[Callable[[], object]] = [
            partial(evaluate_cell, other, "finetune", 0.3, 0),
            partial(evaluate_cell, other, "source", None, 0),
            partial(train_cell, other, "gtl", 0.3, 0),
            partial(sample_cell, other, Cell("finetune", 0.3, 0), SampleRequest(count=1)),
        ]
        for call in calls:
            with pytest.raises(UserError, match="was trained on other tokens than those that tokens holds; train it"):
                call()


def test_a_cell_whose_network_is_another_by_now_is_not_shared(
    workspace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its figures, and the gamma that was chosen for it, are of the network that it was measured with."""
    cell, path = Cell("gtl", 0.3, 0), workspace / "cells" / "gtl-0.3-0" / "samples.jsonl"
    with inside(workspace):
        version = sha256_file("models/gtl-0.3-0/network.safetensors")[:12]
        path.write_text(path.read_text().replace(version, "0" * 12))
        with pytest.raises(UserError, match="is another network than cells/gtl-0.3-0/row.json was measured with"):
            export_cell(tiny(), cell, tmp_path / "folder")
        chosen_setting(tiny(), cell, Path())
    assert "is another network than the one that gamma and temperature of gtl-0.3-0 were chosen for" in caplog.text


def test_cells_that_are_measured_otherwise_are_other_runs(workspace: Path) -> None:
    other, run = tiny("evaluation.neighbours=40"), workspace / "runs" / "cells" / "finetune-0.3-0" / "row.json"
    before = read_json(run)["mlflow_run"]
    with inside(workspace):
        measure_real(other)
        evaluate_cell(other, "finetune", 0.3, 0)
    assert read_json(run)["mlflow_run"] != before
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    told = client.get_run(read_json(run)["mlflow_run"]).data.params
    assert (told["domains.source"], told["domains.target"]) == ("cs, math", "physics")


def test_a_finished_training_is_not_run_again(workspace: Path) -> None:
    path = workspace / "models" / "finetune-0.3-0" / "network.safetensors"
    before = sha256_file(path)
    shutil.rmtree(path.parent)  # DVC deletes a stage's outputs before it runs
    with inside(workspace):
        train_cell(tiny(), "finetune", 0.3, 0)
    assert sha256_file(path) == before


def test_the_learning_rate_of_the_lower_held_out_score_is_kept(workspace: Path) -> None:
    """A rate at which nothing is learned loses to one at which something is, whichever is named first."""
    for lr, also in ((1e-9, 5e-3), (5e-3, 1e-9)):
        shutil.rmtree(workspace / "models" / "finetune-0.3-0")
        with inside(workspace):
            quick = f"{{steps: 6, batch: 16, lr: {lr}, also_lr: [{also}], warmup: 2, check_every: 3, patience: 2}}"
            train_cell(tiny(f"methods.finetune.train={quick}"), "finetune", 0.3, 0)
        result = read_json(workspace / "models" / "finetune-0.3-0" / "result.json")
        assert result["lr"] == 5e-3
        assert result["steps"] == 12


def test_borrowed_source_texts_are_those_that_the_classifier_takes_for_the_target(trained: Path) -> None:
    from gtl_lightning.methods.borrowing import with_borrowed
    from gtl_lightning.stages.train import context_of
    from gtl_lightning.workspace.corpus import Corpus
    from gtl_lightning.workspace.paths import Cell

    cell = Cell("gtl-warm", 0.3, 0)
    with inside(trained):
        params = tiny()
        corpus = Corpus.open(params)
        target, val = corpus.target(0.3, params.data.min_examples)
        source, read, said = corpus.dataset("source_train"), set[Path](), dict[str, Any]()
        context = context_of(params, corpus, cell, target, val, read, said)
        joined = with_borrowed(context, 2 * len(target), clip=5.0)
        classifier = context.frozen("clean")
    assert read == {Path("models/classifier-0.3-0/clean.safetensors")}, "the state is keyed by what was read"
    assert said == {"smoothing": params.classifier.label_smoothing}, "and by what it was read with"
    own = len(joined) // 3
    assert own % len(target) == 0
    assert all(text.equal(target[index % len(target)]) for index, text in enumerate(list(joined)[:own]))
    borrowed = list(joined)[own:]
    assert len(borrowed) == 2 * own
    known = {tuple(text.tolist()) for text in source}
    assert {tuple(text.tolist()) for text in borrowed} <= known

    def log_ratio(texts: list[torch.Tensor]) -> float:
        with torch.no_grad():
            return float(np.mean([classifier(text[None], torch.zeros(1)).item() for text in texts]))

    assert log_ratio(borrowed) > log_ratio(list(source))


def test_mlflow_holds_one_parent_and_one_child_for_every_cell(trained: Path) -> None:
    client = MlflowClient(f"sqlite:///{trained}/mlflow.db")
    experiment = client.get_experiment_by_name("gtl-transfer")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if run.data.tags["kind"] == "study"]
    assert len(parents) == 1
    cells = [run for run in runs if run.data.tags["kind"] == "cell"]
    assert len(cells) == len({run.data.tags["key"] for run in cells}) == 15
    for run in cells:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.params.get("gamma", "None") == run.data.tags["gamma"]
        point = {axis: run.data.params.get(axis, "None") for axis in ("method", "fraction", "seed")}
        assert point.items() <= run.data.tags.items()
        assert {"method", "fraction", "seed", "profile", "data_hash", "git_commit"} <= set(run.data.tags)
        assert run.data.metrics["nelbo"] > 0
        assert not {"fraction", "seed"} & set(run.data.metrics), "what is a tag is no metric as well"
    chosen = client.search_runs(
        [experiment.experiment_id], "tags.kind = 'cell' and tags.method = 'gtl' and tags.fraction = '0.3'"
    )
    assert len(chosen) == 1
    trainings = [run for run in runs if run.data.tags["kind"] == "train"]
    assert trainings
    of_cell = {run.info.run_id: run for run in cells}
    for run in trainings:
        assert client.get_metric_history(run.info.run_id, "val_score"), run.info.run_name
        parent = of_cell.get(run.data.tags["mlflow.parentRunId"])
        point = {axis: run.data.tags[axis] for axis in ("method", "fraction", "seed")}
        if parent is None:
            assert point["method"] not in {cell.data.tags["method"] for cell in cells}
        else:
            assert point.items() <= parent.data.tags.items()


def test_dvc_shows_a_row_a_method_and_share_with_four_columns(trained: Path) -> None:
    rows = read_json(trained / "reports" / "transfer.json")
    found = {path.stem: read_json(path) for path in (trained / "reports" / "metrics").iterdir()}
    assert found.keys() == {Cell(row["method"], row["fraction"], 0).name.removesuffix("-0") for row in rows}
    assert all(list(columns) == ["examples", "mauve", "nelbo", "domain_score"] for columns in found.values())
    row = next(row for row in rows if (row["method"], row["fraction"]) == ("gtl", 0.3))
    assert found["gtl-0.3"] == {key: row[key] for key in found["gtl-0.3"]}
    drawn = read_json(trained / "reports" / "curves.json")
    assert {(point["method"], point["examples"]) for point in drawn} == {
        (row["method"], row["examples"]) for row in rows if row["fraction"] is not None
    }


def test_mlflow_draws_a_methods_metrics_against_target_examples(workspace: Path) -> None:
    """One run a method; a point lies at its number of examples, once, however often the report is written."""
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    experiment = client.get_experiment_by_name("gtl-transfer")
    assert experiment is not None

    def found() -> dict[str, dict[int, float]]:
        runs = client.search_runs([experiment.experiment_id], "tags.kind = 'curve'")
        assert len({run.data.tags["method"] for run in runs}) == len(runs)
        history = {run.data.tags["method"]: client.get_metric_history(run.info.run_id, "nelbo") for run in runs}
        assert all(len({point.step for point in points}) == len(points) for points in history.values())
        return {method: {point.step: point.value for point in points} for method, points in history.items()}

    rows = read_json(workspace / "reports" / "transfer.json")
    expected: dict[str, dict[int, float]] = {}
    for row in rows:
        expected.setdefault(row["method"], {})[row["examples"]] = row["nelbo"]
    assert found() == expected and set(expected["source"]) == {0} and len(expected["gtl"]) == 2
    path = workspace / "cells" / "gtl-0.3-0" / "row.json"
    with inside(workspace):
        make_report(tiny())
        assert found() == expected
        write_json(path, {**read_json(path), "nelbo": 3.25})
        make_report(tiny())
    (examples,) = (row["examples"] for row in rows if (row["method"], row["fraction"]) == ("gtl", 0.3))
    expected["gtl"][examples] = 3.25
    assert found() == expected


def test_a_missing_cell_is_a_hole_in_the_report(workspace: Path) -> None:
    shutil.rmtree(workspace / "cells" / "lora-0.3-0")
    with inside(workspace):
        make_report(tiny())
    page = (workspace / "reports" / "report.md").read_text()
    assert "cells/lora-0.3-0" in page


def test_the_report_says_what_trainings_warned_of_and_what_it_was_made_with(workspace: Path) -> None:
    shown = {"gtl-0.3-0/result.json": "the first bound", "classifier-0.3-0/noised.json": "the second bound"}
    told = {**shown, "gtl-0.9-0/result.json": "of no cell of this grid"}
    for name, warning in told.items():
        path = workspace / "models" / name
        write_json(path, {**(read_json(path) if path.exists() else {}), "warning": warning})
    with inside(workspace):
        make_report(tiny())
    for page in ("report.md", "report.html"):
        text = (workspace / "reports" / page).read_text()
        assert "models/gtl-0.3-0: the first bound" in text and "models/classifier-0.3-0: the second bound" in text
        assert "of no cell" not in text
        assert f"torch {torch.__version__}" in text and re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", text)
        for fraction in tiny().sweep.fractions:
            assert f"Samples at {100 * fraction:g} %" in " ".join(text.split())


def test_sampling_from_the_command_line_writes_text_seed_and_versions(workspace: Path) -> None:
    with inside(workspace):
        asked = SampleRequest(count=3, length=10, gamma=1.0, n_ratio=8, prompt="we study [MASK] [MASK] of", seed=3)
        texts = sample_cell(tiny(), Cell("gtl", 0.3, 0), asked)
        again = sample_cell(tiny(), Cell("gtl", 0.3, 0), asked)
    assert texts == again
    assert all(text.startswith("we study") for text in texts)
    rows = [json.loads(line) for line in (workspace / "samples" / "samples.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    assert all(row["seed"] == 3 and row["gamma"] == 1.0 and row["models"] for row in rows)
    chosen = read_json(workspace / "cells" / "gtl-0.3-0" / "row.json")["temperature"]
    assert all(row["temperature"] == chosen for row in rows)


def test_a_trace_shows_the_very_texts_beside_the_unguided_ones(trained: Path, tmp_path: Path) -> None:
    asked = SampleRequest(count=2, length=10, seed=3, prompt="we study", out=tmp_path / "out")
    with inside(trained):
        texts = sample_cell(tiny(), Cell("gtl", 0.3, 0), asked)
        for beside, name in ((None, "Unguided"), ("finetune", "ine-tuning"), ("source", "ource")):
            page = tmp_path / f"{beside}.html"
            assert sample_cell(tiny(), Cell("gtl", 0.3, 0), replace(asked, trace=page, beside=beside)) == texts
            (data,) = re.findall(r'id="data">(.*?)</script>', page.read_text(), re.S)
            runs = json.loads(data)["runs"]
            assert len(runs) == 2 and name in runs[0]["name"] and "GTL" in runs[1]["name"]
            # What was given is no choice; all else of both is.
            given = sum(token != json.loads(data)["mask"] for token in runs[0]["texts"][0]["start"])
            assert given and all(len(text["choices"]) == 10 - given for run in runs for text in run["texts"])
        alone = tmp_path / "alone.html"
        sample_cell(tiny(), Cell("finetune", 0.3, 0), replace(asked, trace=alone))
        (data,) = re.findall(r'id="data">(.*?)</script>', alone.read_text(), re.S)
        assert len(json.loads(data)["runs"]) == 1
        # Without a share of its own there is no cell beside it, and the source's weights are nobody else's.
        nowhere = replace(asked, trace=tmp_path / "none.html", beside="finetune")
        said = "`gtl explore finetune-SHARE-0 --beside source`, or `gtl sample --method finetune --fraction SHARE"
        with pytest.raises(UserError, match=said):
            sample_cell(tiny(), Cell("source", None, 0), nowhere)
        assert not (tmp_path / "none.html").exists()
        with pytest.raises(UserError, match="is none; leave it out, or use --trace"):
            sample_cell(tiny(), Cell("finetune", 0.3, 0), replace(asked, watch=True))


def test_a_prompt_that_names_the_end_goes_on_after_it(trained: Path, tmp_path: Path) -> None:
    with inside(trained):
        asked = SampleRequest(
            count=2, length=28, prompt="we show that [EOS] nothing follows", seed=3, out=tmp_path / "out"
        )
        texts = sample_cell(tiny(), Cell("gtl", 0.3, 0), asked)
    assert all("nothing" in text and "follows" in text for text in texts), texts


def test_sampling_writes_into_its_folder_alone(gtl: Gtl, trained: Path, tmp_path: Path) -> None:
    before = snapshot(trained)
    done = gtl("sample", "--fraction", "0.3", "--count", "2", "--out", str(tmp_path / "out"), cwd=trained)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["samples.jsonl", "samples.txt"]
    assert snapshot(trained) == before


def test_the_learned_planner_and_every_other_order_sample(workspace: Path) -> None:
    with inside(workspace):
        for planner in ("learned", "confidence", "margin", "entropy"):
            params = tiny(f"sampling.planner={planner}", "sampling.positions_per_step=2")
            texts = sample_cell(params, Cell("finetune", 0.3, 0), SampleRequest(count=2))
            assert len(texts) == 2
