"""Each mistake: one clear line that names it, exit code 2, nothing lost."""

import gzip
import math
import re
import shutil
import socket
from pathlib import Path

import pytest

from gtl_lightning.data.sample import write_sample
from gtl_lightning.data.snapshot import import_snapshot
from gtl_lightning.files import load_tensors, read_json, save_tensors
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.params import write_params
from gtl_lightning.workspace.text import encode_prompt
from tests.pipeline.conftest import Gtl, inside, tiny
from tests.unit.trees import snapshot


def refused(done: object, *named: str) -> None:
    """Exit code 2 and one line on standard error that holds every one of `named`."""
    assert done.returncode == 2, done.stderr  # type: ignore[attr-defined]
    lines = done.stderr.strip().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for name in named:
        assert name in lines[0]


@pytest.fixture
def workspace(tokenised: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenised, tmp_path / "workspace"))


def write(workspace: Path, *overrides: str) -> None:
    write_params(tiny(*overrides), workspace / "params.yaml")


def test_unknown_parameter(gtl: Gtl, workspace: Path) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("near_duplicate:", "near_duplicates:"))
    refused(gtl("split", cwd=workspace), "params.yaml", "data.near_duplicates")


def test_value_out_of_range(gtl: Gtl, workspace: Path) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("near_duplicate: 0.8", "near_duplicate: 8"))
    refused(gtl("split", cwd=workspace), "data.near_duplicate = 8")


def test_missing_snapshot(gtl: Gtl, workspace: Path) -> None:
    (workspace / "data" / "snapshot.jsonl.gz").unlink()
    refused(gtl("split", cwd=workspace), "snapshot.jsonl.gz")


@pytest.mark.parametrize(
    ("content", "named"), [(b"", "empty"), (b"id,title\n1,a\n", "JSON"), (gzip.compress(b"", mtime=0), "empty")]
)
def test_snapshot_that_is_empty_or_not_json(content: bytes, named: str, gtl: Gtl, workspace: Path) -> None:
    (workspace / "snapshot").write_bytes(content)
    refused(gtl("data", "import", "snapshot", cwd=workspace), named)


def test_truncated_gzip(gtl: Gtl, workspace: Path) -> None:
    path = workspace / "data" / "snapshot.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    refused(gtl("split", cwd=workspace), "snapshot.jsonl.gz is not what was written")
    refused(gtl("data", "import", str(path), cwd=workspace), "truncated")


def test_domain_without_a_record(gtl: Gtl, workspace: Path) -> None:
    write(workspace, "data.target=[astro-ph]")
    refused(gtl("split", cwd=workspace), "astro-ph", "physics")


def test_fraction_below_the_minimum(gtl: Gtl, workspace: Path) -> None:
    write(workspace, "sweep.fractions=[0.3, 0.01]")
    refused(gtl("train", "vanilla", "--fraction", "0.01", cwd=workspace), "0.01", "min_examples")


def test_tokenizer_that_does_not_exist(gtl: Gtl, workspace: Path) -> None:
    write(workspace, "tokenizer.name=no-such-tokenizer")
    refused(gtl("tokenize", cwd=workspace), "no-such-tokenizer")


def test_n_ratio_over_the_vocabulary(gtl: Gtl, workspace: Path) -> None:
    params = workspace / "params.yaml"
    params.write_text(re.sub(r"(?m)^  n_ratio:", "  n_ratio: 100000", params.read_text()))
    refused(gtl("train", "source", cwd=workspace), "sampling.n_ratio = 100000", "tokenizer.vocab_size = 512")


def test_n_ratio_over_the_vocabulary_that_the_texts_have(gtl: Gtl, workspace: Path) -> None:
    """A trained tokenizer may find fewer pieces than it is allowed."""
    found = read_json(workspace / "tokens" / "meta.json")["vocab_size"]
    write(workspace, "tokenizer.vocab_size=5000", f"sampling.n_ratio={found + 1}")
    refused(gtl("train", "source", cwd=workspace), f"sampling.n_ratio = {found + 1}", f"vocabulary of {found}")


def test_stage_without_what_it_needs(gtl: Gtl, workspace: Path) -> None:
    refused(gtl("train", "finetune", "--fraction", "0.3", cwd=workspace), "models/source")
    refused(gtl("evaluate", "gtl", "--fraction", "0.3", cwd=workspace), "models/source")


def test_length_above_the_models(gtl: Gtl, trained: Path, tmp_path: Path) -> None:
    done = gtl("sample", "--fraction", "0.3", "--length", "33", "--out", str(tmp_path / "out"), cwd=trained)
    refused(done, "length 33", "32")


def test_gamma_for_a_method_without_a_ratio(gtl: Gtl, trained: Path) -> None:
    refused(gtl("sample", "--method", "finetune", "--fraction", "0.3", "--gamma", "2", cwd=trained), "--gamma")


def test_unwritable_output_folder(gtl: Gtl, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = gtl("sample", "--fraction", "0.3", "--count", "1", "--out", str(tmp_path / "file"), cwd=trained)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr.strip().splitlines()[-1]


def test_truncated_and_foreign_checkpoints(gtl: Gtl, trained: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    path = workspace / "models" / "source" / "network.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(gtl("evaluate", "source", cwd=workspace), "network.safetensors", "truncated")
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])  # a bit of a weight
    refused(gtl("evaluate", "source", cwd=workspace), "network.safetensors", "does not fit its hash")
    shutil.copy(workspace / "models" / "planner" / "network.safetensors", path)
    refused(gtl("evaluate", "source", cwd=workspace), "network.safetensors", "PositionNetwork")


def test_checkpoint_with_a_weight_that_is_no_number(gtl: Gtl, trained: Path, tmp_path: Path) -> None:
    """Neither an empty sample nor a row without a likelihood: the line, and what was there stays."""
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    path = workspace / "models" / "source" / "network.safetensors"
    tensors, header = load_tensors(path)
    tensors["output.bias"][-1] = math.nan
    save_tensors(path, tensors, header)
    row = workspace / "cells" / "source-0" / "row.json"
    before = row.read_text()
    refused(
        gtl("sample", "--method", "source", "--count", "3", "--out", "out", cwd=workspace),
        "models/source/network.safetensors: output.bias",
        "NaN",
    )
    assert not (workspace / "out").exists()
    refused(gtl("evaluate", "source", cwd=workspace), "models/source/network.safetensors: output.bias", "NaN")
    assert row.read_text() == before


def test_unreachable_tracking_server(gtl: Gtl, workspace: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = gtl("train", "source", cwd=workspace, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    refused(done, f"127.0.0.1:{port}", "MLFLOW_TRACKING_URI")


def test_nan_loss_names_the_step_and_keeps_the_last_good_checkpoint(gtl: Gtl, workspace: Path) -> None:
    write(
        workspace,
        "train.source={steps: 40, batch: 16, lr: 10.0, weight_decay: 1000.0, warmup: 0, check_every: 1, patience: 40}",
    )
    done = gtl("train", "source", cwd=workspace)
    assert done.returncode == 2
    assert "step" in done.stderr.strip().splitlines()[-1]
    assert not (workspace / "models").exists()


def test_too_much_damage_stops_and_says_where_to_look(gtl: Gtl, tmp_path: Path) -> None:
    with inside(tmp_path):
        write_sample(Path("data"), seed=0, source_records=100, target_records=100)
        write_params(tiny())
        with gzip.open("data/snapshot.jsonl.gz") as file:
            lines = file.readlines()
        lines[::10] = [b"{broken\n"] * len(lines[::10])
        Path("damaged.jsonl").write_bytes(b"".join(lines))
        import_snapshot("damaged.jsonl", "data")
    refused(gtl("split", cwd=tmp_path), "quarantine.jsonl", "max_bad_share")


def test_parameters_in_another_code(gtl: Gtl, workspace: Path) -> None:
    path = workspace / "params.yaml"
    path.write_bytes(path.read_bytes().replace(b"gtl-transfer", b"gtl-\xfcbung"))
    refused(gtl("split", cwd=workspace), "params.yaml is not UTF-8", "0xfc")


def test_a_gpu_that_is_not_there(gtl: Gtl, workspace: Path) -> None:
    write(workspace, "machine.accelerator=gpu")
    before = snapshot(workspace)
    for words in (("source",), ("judge",), ("classifier", "--fraction", "0.3"), ("vanilla", "--fraction", "0.3")):
        refused(gtl("train", *words, cwd=workspace, CUDA_VISIBLE_DEVICES=""), "machine.accelerator = gpu", "no GPU")
    assert snapshot(workspace) == before


@pytest.mark.parametrize(("address", "named"), [("http://host:port", "http://host:port"), ("nonsense", "nonsense")])
def test_a_tracking_address_that_is_none(address: str, named: str, gtl: Gtl, workspace: Path) -> None:
    refused(gtl("train", "source", cwd=workspace, MLFLOW_TRACKING_URI=address), named)


def test_an_empty_tracking_address_and_no_git_are_no_obstacle(gtl: Gtl, workspace: Path) -> None:
    write(workspace, "train.source={steps: 2, batch: 4, lr: 0.001, warmup: 0, check_every: 1, patience: 1}")
    done = gtl("train", "source", cwd=workspace, MLFLOW_TRACKING_URI="", PATH=str(workspace))
    assert done.returncode == 0, done.stderr
    assert (workspace / "models" / "source" / "network.safetensors").is_file()
    assert (workspace / "mlflow.db").is_file()


def test_a_prompt_is_text_and_its_gaps_alone_are_masks(tokenised: Path) -> None:
    with inside(tokenised):
        corpus = Corpus.open(tiny())
        specials = {corpus.mask_index, corpus.pad_index, corpus.eos_index}
        plain = encode_prompt("we show that [EOS] nothing [PAD] follows", corpus, tokenised).tolist()
        gap = encode_prompt("we show that [MASK] nothing", corpus, tokenised).tolist()
    assert not specials & set(plain)
    assert len(plain) > 5  # each of the five words, and what stands in brackets
    assert gap.count(corpus.mask_index) == 1
    assert not {corpus.pad_index, corpus.eos_index} & set(gap)
