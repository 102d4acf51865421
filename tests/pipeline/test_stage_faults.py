"""The machine's faults as stages meet them: one line, and nothing half done."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gtl_lightning.errors import UserError
from gtl_lightning.files import load_tensors, save_tensors, temporary_folder, write_text
from gtl_lightning.networks import MaskedDenoiser, save_network
from gtl_lightning.stages.register import register_best
from gtl_lightning.stages.train import train_source
from gtl_lightning.workspace.corpus import Corpus, load_denoiser
from gtl_lightning.workspace.paths import Cell, data_hash, read_samples
from gtl_lightning.workspace.selection import chosen_setting
from tests.pipeline.conftest import inside, tiny


@pytest.fixture
def workspace(tokenised: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenised, tmp_path / "workspace"))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mebibytes", [500, 1024])
def test_too_little_address_space_is_one_line_before_torch_is_loaded(workspace: Path, mebibytes: int) -> None:
    command = f"ulimit -v {1024 * mebibytes}; exec {sys.executable} -m gtl_lightning.cli train source"
    done = subprocess.run(
        ["sh", "-c", command], cwd=workspace, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert f"error: this process may use {mebibytes} MiB of address space" in line
    assert not (workspace / ".state").exists()


def test_damaged_state_of_a_finished_training_does_not_reach_models(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = workspace / "models" / "source" / "network.safetensors"
    with inside(workspace):
        train_source(tiny())
        before = {name: tensor.clone() for name, tensor in load_tensors(made)[0].items()}
        (best,) = workspace.glob(".state/source-0-network-*/best.safetensors")
        content = bytearray(best.read_bytes())
        content[len(content) // 2] ^= 1
        best.write_bytes(content)
        shutil.rmtree(workspace / "models")
        train_source(tiny())
    assert "best.safetensors is not what was written: this fit had ended, and is made again" in caplog.text
    again = load_tensors(made)[0]
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("shape", "weights and configuration do not fit"),
        ("dtype", "is torch.float16, not torch.float32"),
        ("missing", "weights missing or left over"),
        ("nan", "holds NaN or infinite numbers"),
        ("bit", "is damaged"),
    ],
)
def test_altered_weights_of_the_source_are_one_line(workspace: Path, spoil: str, said: str) -> None:
    path = workspace / "models" / "source" / "network.safetensors"
    with inside(workspace):
        save_network(path, MaskedDenoiser(Corpus.open(tiny()).backbone(tiny().networks.denoiser)))
        assert isinstance(load_denoiser("source"), MaskedDenoiser)
        tensors, meta = load_tensors(path)
        name = max(tensors, key=lambda key: tensors[key].numel())
        if spoil == "shape":
            tensors[name] = tensors[name][:-1]
        elif spoil == "dtype":
            tensors[name] = tensors[name].half()
        elif spoil == "missing":
            del tensors[name]
        elif spoil == "nan":
            tensors[name] = torch.full_like(tensors[name], torch.nan)
        if spoil == "bit":
            content = bytearray(path.read_bytes())
            content[-9] ^= 1
            path.write_bytes(content)
        else:
            save_tensors(path, tensors, meta)
        line = refused(lambda: load_denoiser("source"))
    assert "models/source/network.safetensors" in line and said in line


@pytest.mark.parametrize("content", ["[]", "{", '{"sha256": 5}', '{"sha256": NaN}', "5"])
def test_foreign_provenance_is_one_line(tmp_path: Path, content: str) -> None:
    write_text(tmp_path / "data" / "provenance.json", content)
    with inside(tmp_path):
        assert "data/provenance.json" in refused(data_hash)


@pytest.mark.parametrize("content", ["[]", "{}", '{"splits": {}}', "{"])
def test_foreign_tokens_meta_is_one_line(tmp_path: Path, content: str) -> None:
    write_text(tmp_path / "tokens" / "meta.json", content)
    with inside(tmp_path):
        assert "tokens/meta.json" in refused(lambda: Corpus.open(tiny()))


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"nelbo_val": null}', '{"nelbo_val": NaN}', '{"nelbo_val": "3.1"}', "{"]
)
def test_a_cell_whose_row_is_foreign_is_not_registered(tmp_path: Path, content: str) -> None:
    write_text(tmp_path / "cells" / "gtl-1.0-0" / "row.json", content)
    with inside(tmp_path):
        assert "gtl-1.0-0/row.json" in refused(lambda: register_best(tiny()))


@pytest.mark.parametrize("content", ["[]", "{}", '{"temperature": 1.0}', '{"temperature": null, "sample_gamma": 1.0}'])
def test_a_cell_whose_row_is_foreign_is_not_sampled(tmp_path: Path, content: str) -> None:
    write_text(tmp_path / "cells" / "gtl-1.0-0" / "row.json", content)
    assert "row.json" in refused(lambda: chosen_setting(tiny(), Cell("gtl", 1.0, 0), tmp_path))


def test_a_cut_line_of_samples_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"text": "a"}\n{"text": "b')
    assert "samples.jsonl, line 2 is not valid JSON" in refused(lambda: read_samples(tmp_path))
    (tmp_path / "samples.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    assert "samples.jsonl, line 2: 'text' is a number" in refused(lambda: read_samples(tmp_path))


def test_a_file_in_place_of_every_folder_that_training_writes(workspace: Path) -> None:
    with inside(workspace):
        for name in (".state", "models"):
            (workspace / name).write_text("")
            assert f"cannot write {name}" in refused(lambda: train_source(tiny()))
            (workspace / name).unlink()


def test_a_profile_with_an_apostrophe_trains(workspace: Path) -> None:
    with inside(workspace):
        train_source(tiny().model_copy(update={"profile": "it's"}))
    assert (workspace / "models" / "source" / "network.safetensors").exists()


def test_no_folder_for_temporary_files_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))

    def make() -> None:
        with temporary_folder():
            pass

    assert "TMPDIR" in refused(make)
