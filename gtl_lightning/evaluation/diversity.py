"""How varied generated texts are; every number is to be read beside that of real text. Words end at white space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gtl_lightning.errors import UserError

REPEAT_N = 4


@dataclass(frozen=True)
class Diversity:
    """Diversity of a sample of texts.

    Attributes:
        distinct_1, distinct_2, distinct_3: different n-grams over all n-grams of the sample (Li et al.,
            2016). They fall with the size of the sample: compare samples of equal size only.
        self_repetition: mean over texts of the share of 4-grams that occurred before in the same text.
        duplicates: share of texts that repeat another one word for word.
        length_mean, length_std, length_min, length_max: words a text.
    """

    distinct_1: float
    distinct_2: float
    distinct_3: float
    self_repetition: float
    duplicates: float
    length_mean: float
    length_std: float
    length_min: int
    length_max: int


def diversity(texts: Sequence[str]) -> Diversity:
    """Diversity of `texts`; a share of an empty set of n-grams is 0.

    Raises:
        UserError: no text was given.
    """
    if not texts:
        raise UserError("no text to measure the diversity of; give at least one")
    words = [tuple(text.split()) for text in texts]
    lengths = np.array([len(row) for row in words])
    distinct_1, distinct_2, distinct_3 = (
        _distinct([gram for row in words for gram in _grams(row, n)]) for n in (1, 2, 3)
    )
    long_enough = [_grams(row, REPEAT_N) for row in words if len(row) >= REPEAT_N]
    repetition = float(np.mean([1 - _distinct(grams) for grams in long_enough])) if long_enough else 0.0
    return Diversity(
        distinct_1=distinct_1,
        distinct_2=distinct_2,
        distinct_3=distinct_3,
        self_repetition=repetition,
        duplicates=1 - len(set(words)) / len(words),
        length_mean=float(lengths.mean()),
        length_std=float(lengths.std()),
        length_min=int(lengths.min()),
        length_max=int(lengths.max()),
    )


def _grams(words: tuple[str, ...], n: int) -> list[tuple[str, ...]]:
    return [words[at : at + n] for at in range(len(words) - n + 1)]


def _distinct(grams: list[tuple[str, ...]]) -> float:
    return len(set(grams)) / len(grams) if grams else 0.0
