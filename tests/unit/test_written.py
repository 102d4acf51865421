"""Generated texts beside their references: hand-computed cases; pairs of fields as rows of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from gtl_lightning.data.pairs import Pair, paired_rows, read_pairs
from gtl_lightning.data.tokenizer import decode, train_tokenizer
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.written import agreement

PAIRS = [Pair("one two three four five", "one four"), Pair("six", "two three four"), Pair("five six", "one")]


def told(error: pytest.ExceptionInfo[UserError]) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    """`the cat mat` of 5 and 4 words: P 3/4, R 3/5, F 2/3; order counts; nothing in common is 0."""
    found = agreement(["the cat the mat", "b a", "x"], ["the cat sat on mat", "a b", "y"])
    assert found.rouge_l == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    assert agreement(["a b", "b a"], ["a b", "a b"]).rouge_l == pytest.approx(75.0)


def test_chrf_is_the_f_of_character_n_grams() -> None:
    """abc beside abd: 2/3, 1/2 and 0 of 1-, 2- and 3-grams on both sides. abcd beside ab: precision counts a fifth."""
    assert agreement(["abc"], ["abd"]).chrf == pytest.approx(100 * 7 / 18)
    precision, recall = (2 / 4 + 1 / 3) / 2, 1.0
    assert agreement(["abcd"], ["ab"]).chrf == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))
    assert agreement(["a b c"], ["abc"]).chrf == pytest.approx(100.0)


def test_exact_is_the_share_of_texts_that_are_their_reference() -> None:
    found = agreement(["a b", " a b ", "a  b", ""], ["a b"] * 4)
    assert found.exact == 50.0
    perfect = agreement(["a b c d e f"], ["a b c d e f"])
    assert (perfect.rouge_l, perfect.chrf, perfect.exact) == pytest.approx((100, 100, 100))


@pytest.mark.parametrize(("generated", "references"), [(["a"], []), ([], []), (["a"], ["a", "b"]), (["a"], [" "])])
def test_what_cannot_be_compared_is_one_line(generated: list[str], references: list[str]) -> None:
    with pytest.raises(UserError, match="references|empty") as error:
        agreement(generated, references)
    told(error)


def test_a_row_has_what_is_given_in_front_and_a_target_whose_end_is_told() -> None:
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair], 60)
    found = paired_rows(tokenizer, PAIRS, length=7, prefix=4)
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert found.shape == (3, 7)
    assert decode(tokenizer, found[0, :4]) == "one two three four"  # cut behind
    assert (found[1, :3] == pad).all() and decode(tokenizer, found[1, 3:4]) == "six"
    assert [decode(tokenizer, row[4:]) for row in found] == ["one four", "two three four", "one"]
    assert (found[:, 4:] != pad).all()
    assert [int((row[4:] == end).sum()) for row in found] == [1, 0, 2]
    assert decode(tokenizer, paired_rows(tokenizer, PAIRS, length=5, prefix=4)[1, 4:]) == "two"


@pytest.mark.parametrize("prefix", [7, 8, 0, -1])
def test_a_prefix_that_fills_the_length_is_one_line(prefix: int) -> None:
    with pytest.raises(UserError, match=rf"prefix = {prefix} of length = 7.*1 to 6") as error:
        paired_rows(train_tokenizer(["a b"], 30), PAIRS, length=7, prefix=prefix)
    told(error)


def test_fields_are_found_by_name_and_what_is_missing_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "pairs.jsonl"
    records = [{"q": "a  b\n", "a": "c"}, {"q": "d", "a": " "}, {"q": "e"}, {"q": 5, "a": "f"}, {"q": "g", "a": "h"}]
    table.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_pairs(table, "q", "a", 10) == [Pair("a b", "c"), Pair("g", "h")]
    assert "3 records" in caplog.text
    assert read_pairs(table, "q", "a", 1) == [Pair("a b", "c")]
    assert read_pairs(table, "a", "q", 1) == [Pair("c", "a b")]
    with pytest.raises(UserError, match=r"no field 'title'; its fields are a, q") as error:
        read_pairs(table, "q", "title", 10)
    assert "pairs.jsonl" in told(error)
    table.write_text('{"q": "a", "a": ""}\n')
    with pytest.raises(UserError, match="no record has a text in both 'q' and 'a'") as error:
        read_pairs(table, "q", "a", 10)
    told(error)
    commas = tmp_path / "pairs.csv"
    commas.write_text("q,a\nx,y\n")
    assert read_pairs(commas, "q", "a", 10) == [Pair("x", "y")]


def test_ends_are_tokens_and_padding_is_none() -> None:
    tokenizer = train_tokenizer(["a b"], 30)
    found = paired_rows(tokenizer, [Pair("a", "b")], length=6, prefix=2)
    assert found.dtype == np.int64 and found[0].tolist().count(tokenizer.pad_token_id) == 1


@pytest.mark.parametrize("text", ["Привет мир это тест", "量子场论的重正化", "über die Größe"])
def test_a_text_of_any_script_is_like_itself(text: str) -> None:
    """Words of a to z alone would leave nothing that agrees."""
    assert agreement([text], [text]).rouge_l == pytest.approx(100)
    assert 0 < agreement([text[: len(text) // 2]], [text]).rouge_l < 100


@pytest.mark.parametrize(("generated", "reference"), [("का की", "के को"), ("கி", "கூ"), ("กิน", "กันต์")])
def test_words_that_differ_in_their_vowel_signs_are_others(generated: str, reference: str) -> None:
    assert agreement([generated], [reference]).rouge_l < 50
    assert agreement([generated], [generated]).rouge_l == pytest.approx(100)


def test_a_text_scores_the_same_whatever_stands_beside_it() -> None:
    """Of two pairs the first alone goes into the difference: the second agrees either way."""
    found = [agreement(["x_1 is good", other], ["x 1 is good", other]).rouge_l for other in ("plain", "plain –")]
    assert found == [pytest.approx(100)] * 2


ASCII = st.text(st.characters(max_codepoint=127), min_size=1).filter(str.strip)


@given(ASCII, ASCII)
@example("x_1 is Good", "x 1 IS\x1fgood")
def test_texts_of_ascii_score_as_the_package_has_it(generated: str, reference: str) -> None:
    wanted = RougeScorer(["rougeL"]).score(reference, generated)["rougeL"].fmeasure
    assert agreement([generated], [reference]).rouge_l == pytest.approx(100 * wanted)
