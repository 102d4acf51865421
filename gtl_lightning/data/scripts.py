"""The words of texts of any script, in one form, as they are compared with one another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese and Khmer, kana, and the ideographs of Chinese and Japanese, as in a class of `re`."""
_MARKED = range(0x300, 0x20000)
"""Where Unicode has marks; beyond it only selectors."""


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case and composed; where a script puts no blanks, each letter is a word.

    A mark (the vowel signs of India's scripts are some, and an accent without a composed form) belongs to the letter
    before it; one that stands on no letter is no word. No word holds a sign of ASCII.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _word().findall(folded)


@lru_cache(maxsize=1)
def _word() -> re.Pattern[str]:
    # Compiled when the first text asks for it: going through Unicode takes some 30 ms.
    marks, spaced = "".join(_marks()), rf"[^\W_{_UNSPACED}]"
    return re.compile(rf"{spaced}+(?:[{marks}]+{spaced}*)*|[^\W_][{marks}]*")


def _marks() -> Iterator[str]:
    """The marks, in ranges as in a class of `re`, which has none; without selectors, which choose a letter's look."""
    codes = (
        code
        for code in _MARKED
        if unicodedata.category(mark := chr(code))[0] == "M" and "SELECTOR" not in unicodedata.name(mark)
    )
    # Of neighbours the code and the place differ by the same.
    for _, run in groupby(enumerate(codes), lambda one: one[1] - one[0]):
        neighbours = [chr(code) for _, code in run]
        yield f"{neighbours[0]}-{neighbours[-1]}"
