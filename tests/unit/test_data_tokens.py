"""Tokenizers and token arrays: ragged round trip, specials, any Hugging Face tokenizer, bad input."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gtl_lightning.data import hub, tokens
from gtl_lightning.data.split import SPLITS
from gtl_lightning.data.tokenizer import encode
from gtl_lightning.data.tokens import decode, encode_chunks, load_tokenizer, tokenize_splits, train_tokenizer
from gtl_lightning.errors import UserError

TEXTS = [
    "the flow of a fluid is turbulent.",
    "a laser pulse heats the plasma, and the plasma emits.",
    "the [MASK] of a [PAD] is [EOS] here",
    "pulse",
]


def write_splits(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True)
    for split in SPLITS:
        rows = texts if split != "judge_source" else []
        table = {
            "id": pa.array([f"{split}{i}" for i in range(len(rows))], pa.string()),
            "archive": pa.array(["cs"] * len(rows), pa.string()),
            "text": pa.array(rows, pa.string()),
            "rank": pa.array(range(len(rows)), pa.int64()),
        }
        pq.write_table(pa.table(table), folder / f"{split}.parquet")
    return folder


def rows_of(folder: Path, split: str) -> list[list[int]]:
    flat, offsets = np.load(folder / f"{split}.tokens.npy"), np.load(folder / f"{split}.offsets.npy")
    return [flat[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize(("kind", "vocab_size"), [("wordpiece", 60), ("wordpiece", 200), ("bpe", 300)])
def test_ragged_round_trip(tmp_path: Path, kind: str, vocab_size: int) -> None:
    splits = write_splits(tmp_path / "splits", TEXTS)
    meta = tokenize_splits(splits, tmp_path / "t", name=None, vocab_size=vocab_size, length=80, kind=kind)
    tokenizer = load_tokenizer(tmp_path / "t" / "tokenizer")
    assert meta["vocab_size"] <= vocab_size
    assert meta == json.loads((tmp_path / "t" / "meta.json").read_text())
    assert len({meta["mask_index"], meta["pad_index"], meta["eos_index"]}) == 3
    rows = rows_of(tmp_path / "t", "target_test")
    assert len(rows) == len(TEXTS)
    for row, text in zip(rows, TEXTS, strict=True):
        assert row[-1] == meta["eos_index"]
        assert not {meta["mask_index"], meta["pad_index"], meta["eos_index"]} & set(row[:-1])
        assert decode(tokenizer, row).lower().replace(" ", "") == text.lower().replace(" ", "")
    assert meta["splits"]["target_test"] == {"examples": 4, "tokens": sum(map(len, rows)), "cut": 0}
    assert rows_of(tmp_path / "t", "judge_source") == []
    assert np.load(tmp_path / "t" / "target_test.tokens.npy", mmap_mode="r").dtype == np.uint16


@pytest.mark.parametrize("length", [2, 7, 8, 9, 10])
def test_end_of_text_only_where_the_whole_text_fits(tmp_path: Path, length: int) -> None:
    splits = write_splits(tmp_path / "splits", ["the flow of a fluid is turbulent ."])  # eight words
    meta = tokenize_splits(splits, tmp_path / "t", name=None, vocab_size=200, length=length)
    (row,) = rows_of(tmp_path / "t", "target_val")
    assert len(row) == min(length, 9)
    assert (row[-1] == meta["eos_index"]) == (length >= 9)
    assert meta["splits"]["target_val"]["cut"] == (length < 9)


def test_a_small_language_gets_whole_words() -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    ids = next(encode_chunks(tokenizer, [["the turbulent plasma emits."]], 20, 3))[0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["the", "turbulent", "plasma", "emits", ".", "[EOS]"]
    spelled = next(encode_chunks(tokenizer, [["hat"]], 20, 3))[0]
    assert tokenizer.convert_ids_to_tokens(spelled) == ["h", "##a", "##t", "[EOS]"]


def test_encoding_word_by_word_equals_encoding_whole_texts() -> None:
    tokenizer = train_tokenizer(TEXTS, 60)
    texts = [*TEXTS, "", "Naïve 中文 x_1=$\\alpha$ [SEP]", "a" * 300, "unseen zzz"]
    backend = tokenizer.backend_tokenizer
    assert tokens._splits_at_blanks(backend)
    backend.encode_special_tokens = True
    assert list(tokens._encode_by_word(backend)(texts)) == list(tokens._encode_whole(backend)(texts))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_is_the_same_in_every_process(kind: str) -> None:
    # the trainer's hash maps differ from process to process; ties among merges must not
    code = (
        "import json, random\nfrom gtl_lightning.data.tokens import train_tokenizer\n"
        "rng = random.Random(0)\n"
        "texts = [''.join(rng.choices('abcdefghij', k=9)) + ' x' for _ in range(600)]\n"
        f"print(json.dumps(train_tokenizer(texts, 400, {kind!r}).get_vocab(), sort_keys=True))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(json.loads(runs[0])) == 400


@pytest.mark.parametrize(("kind", "vocab_size"), [("wordpiece", 200), ("bpe", 300)])
def test_a_text_that_names_specials_stays_text(kind: Any, vocab_size: int) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size, kind)
    text = "the [EOS] of a [PAD] and [MASK] is"
    ids = encode(tokenizer, text)
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id} & set(ids)
    assert decode(tokenizer, ids).lower().replace(" ", "") == text.lower().replace(" ", "")
    (row,) = next(encode_chunks(tokenizer, [[text]], 100, tokenizer.eos_token_id))
    assert row == [*ids, tokenizer.eos_token_id], "a prompt and a text to train on are one and the same"


def test_decode_stops_at_the_end_and_drops_specials() -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    the, flow = tokenizer.convert_tokens_to_ids(["the", "flow"])
    pad, mask, eos = tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.eos_token_id
    assert decode(tokenizer, np.array([the, mask, flow, pad, eos, the])) == "the flow"
    assert decode(tokenizer, []) == ""


def save_foreign(folder: Path, model: str, **specials: str) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "the": 1, "flow": 2, "</s>": 3, "<m>": 4, "<p>": 5}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **specials)
    wrapped.save_pretrained(str(folder / model))
    return folder / model


def test_a_tokenizer_without_mask_is_given_one(tmp_path: Path) -> None:
    folder = save_foreign(
        tmp_path, "gpt", eos_token="</s>", pad_token="</s>"
    )  # pad doubles as end, as often with GPT-2
    splits = write_splits(tmp_path / "splits", ["the flow", "flow"])
    meta = tokenize_splits(splits, tmp_path / "t", name=str(folder), vocab_size=0, length=8)
    assert (meta["mask_index"], meta["pad_index"], meta["eos_index"], meta["vocab_size"]) == (6, 7, 3, 8)
    assert rows_of(tmp_path / "t", "source_train") == [[1, 2, 3], [2, 3]]
    again = load_tokenizer(tmp_path / "t" / "tokenizer")
    assert (again.mask_token_id, again.pad_token_id, again.eos_token_id) == (6, 7, 3)


def test_the_separator_serves_as_end(tmp_path: Path) -> None:
    folder = save_foreign(tmp_path, "bert", sep_token="</s>", pad_token="<p>", mask_token="<m>")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (4, 5, 3)
    assert len(tokenizer) == 6


def test_a_tokenizer_with_no_specials_at_all(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_foreign(tmp_path, "bare"))
    added = {tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id}
    assert added == {6, 7, 8}


def test_large_vocabularies_are_stored_in_32_bits(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {f"w{i}": i for i in range(70_000)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="w0")),
        mask_token="w1",
        pad_token="w2",
        eos_token="w3",
        unk_token="w0",
    ).save_pretrained(str(tmp_path / "large"))
    meta = tokenize_splits(
        write_splits(tmp_path / "splits", ["w69999"]),
        tmp_path / "t",
        name=str(tmp_path / "large"),
        vocab_size=0,
        length=4,
    )
    assert meta["vocab_size"] == 70_000
    assert rows_of(tmp_path / "t", "target_val") == [[69_999, 3]]
    assert np.load(tmp_path / "t" / "target_val.tokens.npy").dtype == np.int32


def test_a_folder_that_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_an_unknown_name_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"'nobody/nothing' is not on this disk and .* cannot be reached"):
        load_tokenizer("nobody/nothing")


def test_an_unreachable_hub_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not hub.hub_reachable(timeout=1.0)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "kind", "message"),
    [
        ([], 100, "wordpiece", "no text to train"),
        ([""], 100, "wordpiece", "no text to train"),
        (TEXTS, 20, "wordpiece", "vocab_size = 20 is too small"),
        (TEXTS, 200, "bpe", "vocab_size = 200 is too small"),
    ],
)
def test_training_that_cannot_work(texts: list[str], vocab_size: int, kind: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_tokenizer(iter(texts), vocab_size, kind)


def test_missing_damaged_or_foreign_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source_train\.parquet does not exist"):
        tokenize_splits(tmp_path, tmp_path / "t", name=None, vocab_size=100, length=8)
    (tmp_path / "source_train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="is damaged or no split"):
        tokenize_splits(tmp_path, tmp_path / "t", name=None, vocab_size=100, length=8)


def test_options_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="length = 1 leaves no room"):
        tokenize_splits(tmp_path, tmp_path / "t", name=None, vocab_size=100, length=1)
    with pytest.raises(UserError, match="kind 'words' is unknown"):
        tokenize_splits(tmp_path, tmp_path / "t", name=None, vocab_size=100, length=8, kind="words")


def test_unwritable_folder(tmp_path: Path) -> None:
    splits = write_splits(tmp_path / "splits", TEXTS)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        tokenize_splits(splits, tmp_path / "file" / "t", name=None, vocab_size=100, length=8)
