"""Grouping near-duplicates: the groups of comparing bucket by bucket, in a linear number of comparisons."""

import random
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gtl_lightning.data import duplicates
from gtl_lightning.data.duplicates import BANDS, group, signatures, similarity
from gtl_lightning.data.scripts import words

ROWS = duplicates.ROWS


def notices(n: int) -> list[bytes]:
    """Boilerplate that differs in a few words: similar enough for every bucket, too different for duplicates."""
    rng = random.Random(0)
    causes = ["equation", "lemma", "theorem", "section", "figure", "table", "proposition", "proof", "corollary"]
    return [
        f"This paper has been withdrawn by the author due to a crucial error in {rng.choice(causes)} "
        f"{rng.randrange(10**6)} of version {rng.randrange(9)}; see arXiv {rng.randrange(10**6)} for details".encode()
        for _ in range(n)
    ]


def families(seed: int) -> list[bytes]:
    """Random texts, each with variants of a few changed words, chains of them, and exact copies."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(400)]
    texts = []
    for _ in range(40):
        text = rng.choices(words, k=rng.randrange(3, 60))
        for _ in range(rng.randrange(1, 6)):
            texts.append(" ".join(text).encode())
            text = [rng.choice(words) if rng.random() < 0.04 else word for word in text]
    rng.shuffle(texts)
    return texts


def pair_by_pair(texts: list[bytes], threshold: float) -> list[int]:
    """The definition without a bound on rounds: in every bucket the first against all, then the first left, ..."""
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        return index if parent[index] == index else root(parent[index])

    signature = signatures(texts)
    rows = ROWS if threshold >= duplicates.LOOSE else duplicates.LOOSE_ROWS
    for band in range(BANDS * ROWS // rows):
        buckets: dict[bytes, list[int]] = {}
        for index, row in enumerate(signature[:, band * rows : (band + 1) * rows]):
            buckets.setdefault(row.tobytes(), []).append(index)
        for bucket in buckets.values():
            while len(bucket) > 1:
                head, left = bucket[0], []
                for other in bucket[1:]:
                    a, b = sorted((root(head), root(other)))
                    if a != b and similarity(texts[head], texts[other]) >= threshold:
                        parent[b] = a
                    elif a != b:
                        left.append(other)
                bucket = left
    return [root(index) for index in range(len(texts))]


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_groups_as_pair_by_pair(seed: int, threshold: float) -> None:
    texts = families(seed)
    found = group(signatures(texts), texts.__getitem__, threshold)
    assert found.tolist() == pair_by_pair(texts, threshold)
    assert len(set(found.tolist())) < len(texts)


class Counting:
    """A text source that counts how often it is asked."""

    def __init__(self, texts: list[bytes]) -> None:
        self.texts, self.asked = texts, 0

    def __call__(self, index: int) -> bytes:
        self.asked += 1
        return self.texts[index]


@pytest.mark.parametrize("make", [notices, lambda n: notices(1) * n], ids=["alike", "equal"])
@pytest.mark.parametrize("n", [100, 400])
def test_a_text_is_read_once_per_band_whatever_texts_say(make: Callable[[int], list[bytes]], n: int) -> None:
    source = Counting(make(n))
    group(signatures(source.texts), source, 0.8)
    assert source.asked <= (BANDS + 1) * n


def test_a_text_is_compared_with_a_fixed_number_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    original = duplicates._Sets.similarities

    def counting(self: Any, others: Any = None) -> NDArray[np.float64]:
        nonlocal compared
        result = original(self, others)
        compared += len(result)
        return result

    monkeypatch.setattr(duplicates._Sets, "similarities", counting)
    texts = notices(1500)
    group(signatures(texts), texts.__getitem__, 0.8)
    limit = BANDS * (duplicates.ROUNDS + duplicates.NEIGHBOURS) * len(texts)
    assert compared <= limit
    assert limit < 1500 * 1499 // 2 * BANDS  # so that comparing every pair would not pass


def test_duplicates_in_large_buckets_are_found_among_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = notices(600)
    twins = [text.replace(b"details", b"particulars of it") for text in texts[300:]]
    assert min(similarity(a, b) for a, b in zip(texts[300:], twins, strict=True)) >= 0.8
    everything = texts + twins
    monkeypatch.setattr(duplicates, "ROUNDS", 0)  # as if every bucket were past its rounds
    found = group(signatures(everything), everything.__getitem__, 0.8)
    assert (found[600:] == found[300:600]).mean() > 0.9
    monkeypatch.setattr(duplicates, "NEIGHBOURS", 0)
    without = group(signatures(everything), everything.__getitem__, 0.8)
    assert (without[600:] == without[300:600]).mean() == 0


def test_equal_texts_are_one_group_however_many() -> None:
    texts = [text for text in notices(200) for _ in range(3)]
    random.Random(1).shuffle(texts)
    found = group(signatures(texts), texts.__getitem__, 1.0)
    assert found.tolist() == [texts.index(text) for text in texts]


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8])
def test_pairs_just_above_the_threshold_are_found(threshold: float) -> None:
    rng = random.Random(3)
    texts = []
    while len(texts) < 400:
        words = [f"w{rng.randrange(10**6)}" for _ in range(120)]
        changed = [f"v{rng.randrange(10**6)}" if rng.random() < (1 - threshold) / 6 else word for word in words]
        one, other = " ".join(words).encode(), " ".join(changed).encode()
        if threshold <= similarity(one, other) < threshold + 0.1:
            texts += [one, other]
    found = group(signatures(texts), texts.__getitem__, threshold)
    assert np.mean(found[1::2] == found[::2]) > 0.98


def test_pairs_of_any_script_are_found() -> None:
    """Where blanks part no words a character is one; one changed of 120 leaves most shingles."""
    rng = random.Random(0)
    scripts = {"Chinese": (0x4E00, 0x9000), "Japanese": (0x3042, 0x3094), "Thai": (0x0E01, 0x0E2E)}
    for low, high in scripts.values():
        text = [chr(rng.randrange(low, high)) for _ in range(120)]
        other = [*text[:60], chr(low), *text[61:]]
        assert similarity("".join(text).encode(), "".join(other).encode()) > 0.9
        unlike = [chr(rng.randrange(low, high)) for _ in range(120)]
        assert similarity("".join(text).encode(), "".join(unlike).encode()) < 0.1
        texts = ["".join(one).encode() for one in (text, other, unlike)]
        assert group(signatures(texts), texts.__getitem__, 0.8).tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Квантовая теория поля", "КВАНТОВАЯ ТЕОРИЯ ПОЛЯ"),
        (
            unicodedata.normalize("NFC", "théorie des catégories"),
            unicodedata.normalize("NFD", "théorie des catégories"),
        ),
        ("we call it “exact” — don’t we", 'we call it "exact" - don\'t we'),
        ("an eﬃcient ﬂow", "an efficient flow"),
        ("die Größe des Raums", "DIE GRÖSSE DES RAUMS"),
        ("x̂ is an estimate", unicodedata.normalize("NFD", "X̂ is an estimate")),
        ("it´s ❤️ and 葛\U000e0100", "it's and 葛"),
    ],
)
def test_words_are_compared_in_one_form(one: str, other: str) -> None:
    texts = [one.encode(), other.encode(), b"something else entirely"]
    assert similarity(texts[0], texts[1]) == 1
    assert group(signatures(texts), texts.__getitem__, 0.8).tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("वह लड़का अच्छा है", "वह लड़की अच्छी है"),
        ("সে কাল আসে", "সে কিল আসি"),
        ("கி கூ கே", "கூ கே கி"),
        ("เขากินข้าว", "เขากันข้าว"),
        ("كَتَبَ", "كُتِبَ"),
        ("x̂ of y", "x̃ of y"),
        ("\U00011103\U00011127 \U00011107", "\U00011103\U00011128 \U00011107"),  # Chakma, beyond 16 bits
    ],
)
def test_texts_that_differ_in_their_marks_are_two(one: str, other: str) -> None:
    """Vowel signs are marks in many scripts, no letters; without them different sentences would be equal."""
    texts = [one.encode(), other.encode()]
    assert group(signatures(texts), texts.__getitem__, 0.8).tolist() == [0, 1]


def test_a_mark_belongs_to_the_letter_before_it_and_alone_is_no_word() -> None:
    assert words("เขากิน ข้าว") == ["เ", "ข", "า", "กิ", "น", "ข้", "า", "ว"]
    assert words("वह लड़की है।") == ["वह", "लड़की", "है"]
    assert words("\u0301a \u0301 b_\u0301c ¨") == ["a", "b", "c"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_word_holds_a_sign_of_ascii(text: str) -> None:
    assert all(character.isalnum() for word in words(text) for character in word if character.isascii())


def test_of_texts_without_words_the_equal_ones_are_one() -> None:
    texts = [b"+ = - !", b"...", b"+ = - !", b"words", "→ ∎".encode(), "→ ∎".encode()]
    assert group(signatures(texts), texts.__getitem__, 0.8).tolist() == [0, 1, 0, 3, 4, 4]


def test_progress_goes_up_to_the_end() -> None:
    texts = [*families(0), *notices(200)]
    seen: list[tuple[int, int]] = []
    group(signatures(texts), texts.__getitem__, 0.8, lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0
