"""The embedded sample: marked, reproducible, small, readable by the pipeline."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from gtl_lightning.data.sample import ARCHIVES, MAX_WORDS, exact_nll, grammar, vocabulary, write_sample
from gtl_lightning.data.split import split_snapshot
from gtl_lightning.data.tokens import train_tokenizer
from gtl_lightning.errors import UserError
from gtl_lightning.laws.grammar import to_text, to_words


def test_bytes_are_reproducible_and_every_record_says_generated(tmp_path: Path) -> None:
    for folder in "ab":
        write_sample(tmp_path / folder, seed=0, source_records=120, target_records=60)
    other = write_sample(tmp_path / "c", seed=1, source_records=120, target_records=60)
    contents = [(tmp_path / folder / "snapshot.jsonl.gz").read_bytes() for folder in "abc"]
    assert contents[0] == contents[1] != contents[2]
    records = [json.loads(line) for line in gzip.decompress(contents[0]).splitlines()]
    assert len({record["id"] for record in records}) == len(records) == other["records"] == 180
    assert all(record["generated"] is True and record["id"].startswith("sample-") for record in records)
    assert (other["kind"], other["generated"]) == ("sample", True)


def test_the_default_sample_is_small(tmp_path: Path) -> None:
    write_sample(tmp_path, seed=0)
    assert (tmp_path / "snapshot.jsonl.gz").stat().st_size < 900_000


def test_the_sample_can_be_split(tmp_path: Path) -> None:
    write_sample(tmp_path / "data", seed=0, source_records=1000, target_records=500)
    summary = split_snapshot(
        tmp_path / "data/snapshot.jsonl.gz", tmp_path / "splits", source=["cs", "math"], target=["physics"]
    )
    assert summary["quarantine"].get("near-duplicate", 0) < 15
    assert set(summary["quarantine"]) <= {"near-duplicate"}


def test_words_and_text_are_inverse() -> None:
    texts, _ = grammar("cs").sample(300, np.random.default_rng(0))
    assert [to_text(to_words(text)) for text in texts] == texts
    assert to_words("The  Laser, here .") == ["the", "laser", ",", "here", "."]


def test_a_text_fits_the_default_length_as_whole_words() -> None:
    texts, _ = grammar("physics").sample(500, np.random.default_rng(0))
    corpus = [text for archive in ARCHIVES for text in grammar(archive).sample(2000, np.random.default_rng(1))[0]]
    tokenizer = train_tokenizer(corpus, 512)
    sizes = [len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    assert sizes == [len(to_words(text)) for text in texts]
    assert max(sizes) <= MAX_WORDS < 32


def test_every_word_can_occur_everywhere_in_every_archive() -> None:
    for archive in ARCHIVES:
        law = grammar(archive)
        assert law.words == vocabulary()
        assert (law.emission > 0).all() and (law.transition > 0).all() and (law.end > 0).all()


def test_unknown_words_empty_and_overlong_texts_are_masked() -> None:
    texts, _ = grammar("cs").sample(2, np.random.default_rng(0))
    result = exact_nll([texts[0], texts[0] + " zebra", "", "the " * (MAX_WORDS + 1), texts[1].upper()], "cs")
    assert result.known.tolist() == [True, False, False, False, True]
    assert np.isinf(result.nats).tolist() == [False, True, True, True, False]
    assert result.words[2:4].tolist() == [0, MAX_WORDS + 1]
    total = result.nats[[0, 4]].sum() / result.words[[0, 4]].sum()
    assert result.mean_per_word == pytest.approx(total)
    assert np.isnan(exact_nll(["zebra"], "cs").mean_per_word)


def test_unknown_archive() -> None:
    with pytest.raises(UserError, match="no archive 'bio'"):
        exact_nll(["the"], "bio")


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_sample(tmp_path / "file" / "data", seed=0, source_records=2, target_records=1)
