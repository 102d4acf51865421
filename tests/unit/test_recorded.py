"""Hashes that were recorded are compared: records at the split, token arrays and tokenizer at every reading, splits."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from gtl_lightning.data import recorded
from gtl_lightning.data.sample import write_sample
from gtl_lightning.data.split import SPLITS
from gtl_lightning.data.tokens import read_texts
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json, sha256_file
from gtl_lightning.stages import data as stages
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.params import configure
from gtl_lightning.workspace.text import tokenizer

PARAMS = configure(overrides=("data.min_examples=2", "evaluation.mauve_buckets=8"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_sample("data", seed=0, source_records=400, target_records=600)
    return tmp_path


def one_line(error: pytest.ExceptionInfo[UserError], *said: str) -> None:
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in said)


def test_records_other_than_those_taken_in_are_not_split(workspace: Path) -> None:
    with gzip.open("data/snapshot.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    rows[0]["abstract"] = "another text, in a file that is whole ."
    with gzip.open("data/snapshot.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(UserError) as caught:
        stages.split(PARAMS)
    one_line(caught, "data/snapshot.jsonl.gz", "data/provenance.json", "gtl data import")
    assert not Path("splits").exists()
    Path("data/provenance.json").unlink()
    with pytest.raises(UserError) as caught:
        stages.split(PARAMS)
    one_line(caught, "data/provenance.json does not exist")


def test_a_split_whose_texts_have_a_flipped_bit_is_refused(workspace: Path) -> None:
    """Parquet's pages have checksums, which neither writer nor reader uses unless told to."""
    stages.split(PARAMS)
    path = Path("splits/source_train.parquet")
    whole = path.read_bytes()
    start, end = len(whole) // 10, len(whole) * 8 // 10  # inside the pages
    for place in range(start, end, (end - start) // 40):
        path.write_bytes(whole)
        flip(path, place)
        with pytest.raises(UserError, match=r"splits/source_train\.parquet is damaged"):
            list(read_texts(path))


@pytest.fixture
def tokens(workspace: Path) -> Path:
    stages.split(PARAMS)
    stages.tokenize(PARAMS)
    return workspace / "tokens"


def test_every_file_of_the_tokens_has_its_hash_in_meta(tokens: Path) -> None:
    files = read_json(tokens / "meta.json")["files"]
    assert files == {name: digest for name, digest in recorded.hashes(tokens).items() if name != "meta.json"}
    assert {f"{split}.{part}.npy" for split in SPLITS for part in ("tokens", "offsets")} < files.keys()
    assert files["tokenizer/tokenizer.json"] == sha256_file(tokens / "tokenizer" / "tokenizer.json")


@pytest.mark.parametrize("part", ["tokens", "offsets"])
def test_arrays_with_a_flipped_bit_are_refused(tokens: Path, part: str) -> None:
    corpus = Corpus.open(PARAMS)
    corpus.dataset("target_train")
    flip(tokens / f"target_train.{part}.npy", 200)
    with pytest.raises(UserError) as caught:
        corpus.dataset("target_train")
    one_line(caught, f"tokens/target_train.{part}.npy", "tokens/meta.json", "gtl tokenize")
    corpus.dataset("target_test")


def test_tokens_are_read_by_the_tokenizer_that_lies_there_now(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, after another vocabulary and in another workspace: ids of one are other words of another."""
    first = tokenizer()
    assert tokenizer() is first
    here = Path.cwd()
    elsewhere = Path(shutil.copytree(here, here.with_name(f"{here.name}-elsewhere")))
    smaller = PARAMS.tokenizer.model_copy(update={"vocab_size": len(first) - 50})
    stages.tokenize(PARAMS.model_copy(update={"tokenizer": smaller}))
    assert tokenizer().get_vocab() != first.get_vocab()
    monkeypatch.chdir(elsewhere)
    assert tokenizer().get_vocab() == first.get_vocab()


def test_a_changed_or_added_file_of_the_tokenizer_is_refused(tokens: Path) -> None:
    tokenizer()
    path = tokens / "tokenizer" / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"the"', '"hte"'))
    with pytest.raises(UserError) as caught:
        tokenizer()
    one_line(caught, "tokens/tokenizer/tokenizer.json", "gtl tokenize")
    path.write_text(text)
    (tokens / "tokenizer" / "code.py").write_text("")
    with pytest.raises(UserError, match=r"tokens/tokenizer/code\.py is not what was written"):
        tokenizer()
