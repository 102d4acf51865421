"""Scripts that put no blanks between words: where words are counted, each of their signs is one."""

from __future__ import annotations

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese and Khmer, kana, and the ideographs of Chinese and Japanese, as in a class of `re`."""
