"""What is no denoiser, or cannot be had, is refused in one line that says what to do; nothing of it is run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gtl_lightning import UserError, load_denoiser
from gtl_lightning.data.tokenizer import load_tokenizer
from gtl_lightning.workspace.closure import ROOT
from tests.adapters_kit import BERT, bert, llada, mdlm, qwen, tokenizer
from tests.pretrained_kit import folder as causal


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_denoiser(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_causal_model_is_told_how_it_becomes_a_denoiser(tmp_path: Path) -> None:
    name = causal(tmp_path / "llama")
    assert "is a causal model (llama)" in refusal(name) and f"gtl ar2diff --from {name}" in refusal(name)


def test_a_causal_model_that_nothing_converts_is_not_sent_there(tmp_path: Path) -> None:
    name = causal(tmp_path / "model")
    for other in ({"model_type": "mistral"}, {"model_type": "bert", "is_decoder": True}):
        change(tmp_path / "model" / "config.json", **other)
        said = refusal(name)
        assert "is a causal model" in said and f"--from {name}" not in said and "llama, qwen2" in said


def test_a_name_that_is_empty_and_a_configuration_that_is_cut_are_named(tmp_path: Path) -> None:
    assert "the name of the model is empty" in refusal("")
    bert(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    for damaged in (config.read_text()[:40], "[]"):
        config.write_text(damaged)
        said = refusal(tmp_path / "model")
        assert f"{config} is no JSON object" in said and "delete" not in said


def test_any_other_code_is_refused_and_none_is_run(tmp_path: Path) -> None:
    """A BERT with code of its own; and a kind that no class here reads."""
    bert(tmp_path / "bert")
    (tmp_path / "bert" / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    change(tmp_path / "bert" / "config.json", auto_map={"AutoModelForMaskedLM": "own.Model"})
    assert "brings code of its own (`auto_map`" in refusal(tmp_path / "bert")
    llada(tmp_path / "other")
    change(tmp_path / "other" / "config.json", model_type="lladamoe")
    assert "auto_map" in refusal(tmp_path / "other")
    assert not (tmp_path / "executed").exists()


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    llada(tmp_path / "model")
    (tmp_path / "model" / "model-00002-of-00002.safetensors").unlink()
    assert "lacks 1 of its 2 files of weights (model-00002-of-00002.safetensors)" in refusal(tmp_path / "model")


def test_weights_that_are_missing_or_damaged_or_another_model_s(tmp_path: Path) -> None:
    bert(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    whole = load_file(path)
    save_file({name: value for name, value in whole.items() if not name.startswith("cls.")}, path)
    assert "lacks weights of a BertForMaskedLM" in refusal(tmp_path / "model") and "head" in refusal(tmp_path / "model")
    path.write_bytes(b"\0" * 40)
    assert f"{path} is damaged" in refusal(tmp_path / "model")
    weights, _ = qwen(tmp_path / "dream", "Dream")
    save_file({**weights, "model.extra.weight": torch.ones(2)}, tmp_path / "dream" / "model.safetensors")
    assert "has no place for (model.extra.weight)" in refusal(tmp_path / "dream")
    change(tmp_path / "dream" / "config.json", intermediate_size=25)
    assert "\n" not in refusal(tmp_path / "dream")


def test_a_variant_that_needs_more_than_tokens_is_refused(tmp_path: Path) -> None:
    llada(tmp_path / "gated", scale_logits=True)
    assert "LLaDA of scale_logits True" in refusal(tmp_path / "gated")
    qwen(tmp_path / "qwen3-bd3lm", "a2d-qwen3")
    assert "block mask" in refusal(tmp_path / "qwen3-bd3lm")


def test_no_mask_or_another_one_or_fewer_rows_than_ids(tmp_path: Path) -> None:
    bert(tmp_path / "model")
    unmasked = {key: value for key, value in BERT.items() if key != "mask_token"}
    tokenizer(unmasked, "[CLS]", "[SEP]").save_pretrained(tmp_path / "model")
    assert "has no mask token" in refusal(tmp_path / "model")
    tokenizer(BERT, words=[f"w{index}" for index in range(60)]).save_pretrained(tmp_path / "model")
    assert "its tokenizer and its rows disagree: id 64, and 40 rows" in refusal(tmp_path / "model")
    llada(tmp_path / "llada")
    other = tokenizer({"unk_token": "<unk>", "eos_token": "<end>", "mask_token": "<m>", "pad_token": "<pad>"})
    other.save_pretrained(tmp_path / "llada")
    assert "disagree: the mask is id 2 of the one, 26 of the other" in refusal(tmp_path / "llada")
    mdlm(tmp_path / "mdlm")
    said = refusal(tmp_path / "mdlm")
    assert "has no tokenizer of its own" in said and "--tokenizer NAME" in said
    bert(tmp_path / "own")
    tokenizer(BERT, "[CLS]", "[SEP]", words=["a", "b"]).save_pretrained(tmp_path / "words")
    assert "has a tokenizer of its own" in refusal(tmp_path / "own", tokenizer=str(tmp_path / "words"))
    assert (
        load_denoiser(tmp_path / "own", tokenizer=str(tmp_path / "own")).reading
        == load_denoiser(tmp_path / "own").reading
    )


def test_weights_of_other_shapes_than_the_configuration_says(tmp_path: Path) -> None:
    bert(tmp_path / "model")
    change(tmp_path / "model/config.json", vocab_size=50)
    assert "its weights have other shapes than its config.json says" in refusal(tmp_path / "model")


class Runs:
    """A pickle that does something when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", [bert, mdlm, partial(qwen, kind="Dream")], ids=["bert", "mdlm", "dream"])
def test_the_callers_random_numbers_go_on_where_they_were(kind: Any, tmp_path: Path) -> None:
    kind(tmp_path / "model")
    words = Path(f"{tmp_path / 'model'}-words")
    state = torch.get_rng_state()
    load_denoiser(tmp_path / "model", **({"tokenizer": str(words)} if words.exists() else {}))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pickle_is_opened_as_tensors_alone(tmp_path: Path) -> None:
    """The same weights give the same denoiser; one that would run something is refused and runs nothing."""
    bert(tmp_path / "model")
    path, old = tmp_path / "model" / "model.safetensors", load_denoiser(tmp_path / "model")
    torch.save(load_file(path), tmp_path / "model" / "pytorch_model.bin")
    path.unlink()
    assert load_denoiser(tmp_path / "model").fingerprint() == old.fingerprint()
    with open(tmp_path / "model" / "pytorch_model.bin", "wb") as file:
        pickle.dump({"weight": Runs(tmp_path / "executed")}, file)
    assert "holds more than weights" in refusal(tmp_path / "model")
    torch.save({"weight": Runs(tmp_path / "executed")}, tmp_path / "model" / "pytorch_model.bin")
    assert "nothing of it was run" in refusal(tmp_path / "model")
    torch.save([torch.ones(2)], tmp_path / "model" / "pytorch_model.bin")
    assert "no weights by name" in refusal(tmp_path / "model")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "model" / "pytorch_model.bin").rename(tmp_path / "model" / "weights.pt")
    assert "in a pickle alone (weights.pt)" in refusal(tmp_path / "model")


ON_A_HUB = """
import errno, logging, os, sys, time
from pathlib import Path
from tests.hub import running
logging.basicConfig(level=logging.INFO)

def said(name, revision=None):
    try:
        made = load_denoiser(name, revision)
    except UserError as error:
        print("refused:", error)
    else:
        print(type(made).__name__, made.fingerprint())

arrived, until = set(), time.monotonic() + 60

def full(url, temp_file, **given):
    "The weights are the last, whoever is the quickest."
    if url.endswith("model.safetensors"):
        while not {"tokenizer.json", "tokenizer_config.json"} <= arrived and time.monotonic() < until:
            time.sleep(0.01)
        temp_file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    fetch(url, temp_file, **given)
    arrived.add(url.rpartition("/")[-1])

with running() as hub:
    os.environ["HF_ENDPOINT"] = hub.address
    commit = hub.publish(Path(sys.argv[1]), "somebody/bert").sha
    del hub.publish(Path(sys.argv[1]), "somebody/pickle").head["model.safetensors"]
    print(commit)
    import huggingface_hub.file_download as download
    from gtl_lightning import UserError, load_denoiser
    fetch = download.http_get
    said("somebody/bert", "nosuch")
    said("somebody/bert@nosuch")
    said("somebody/nothing")
    said("somebody/pickle")
    download.http_get = full
    said("somebody/bert", commit)
    download.http_get = fetch
    before = len(hub.seen)
    said("somebody/bert", commit)
    print(hub.files_asked(since=before))
    print([line for line in hub.seen if "pytorch_model" in line])
    said("somebody/bert")
said("somebody/bert", commit)
said("somebody/bert")
said("somebody/other")
from gtl_lightning.data.tokenizer import load_tokenizer
from gtl_lightning.networks.adapters.origin import Origin, files_hash
from gtl_lightning.sources.hub import Hub, imported
settings = Hub(name="somebody/bert", revision=commit, sha256=files_hash(Path(sys.argv[1])))
try:
    print(imported(load_tokenizer(f"somebody/bert@{commit}"), settings).origin.folder.name)
except UserError as error:
    print("refused:", error)
try:
    Origin("somebody/other", commit, "0" * 64).folder
except UserError as error:
    print("refused:", error)
"""


def test_from_a_hub_by_revision_resumed_after_a_full_disk_and_then_without_the_hub(tmp_path: Path) -> None:
    """What was fetched before the disk was full is not asked for again; a pickle that lies there too never is."""
    model = tmp_path / "bert"
    bert(model)
    (model / "pytorch_model.bin").write_bytes(b"x" * 100)
    own = f"MaskedLMDenoiser {load_denoiser(model).fingerprint()}"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", ON_A_HUB, str(model)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr  # the client's requests, warnings and bars
    commit, unknown, at, nothing, pickled, full, fetched, again, pickles, newest, *last = done.stdout.splitlines()
    offline, kept, other, pinned, gone = last
    assert "somebody/bert@nosuch was not fetched: the hub has no such revision" in unknown
    assert at == unknown and "or there is no such repository" in nothing
    assert "has no safetensors, and pickles are not fetched" in pickled
    assert "No space left on device; make room" in full and "goes on from the files that were fetched" in full
    assert fetched == newest == offline == kept == own
    assert again == "['model.safetensors']" and pickles == "[]"
    assert "'somebody/other' is no folder here" in other and "cannot be reached" in other
    assert pinned == commit
    assert "gtl source import somebody/other --revision" in gone


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    bert(tmp_path)
    assert "is a folder, which has no revisions" in refusal(tmp_path, "main")


def test_a_tokenizer_that_is_given_as_it_is_is_looked_at_as_one_by_name(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    model = str(tmp_path / "bert")
    own = load_tokenizer(model)
    assert load_denoiser(model, tokenizer=own).mask_index == load_denoiser(model).mask_index
    padless = load_tokenizer(model)
    padless.pad_token = padless.eos_token
    assert "lacks a padding of its own; give its name" in refusal(model, tokenizer=padless)
    other = load_tokenizer(model)
    other.add_tokens(["another"])
    assert "the one that is given is another; leave that out" in refusal(model, tokenizer=other)
