"""Near-duplicate texts: MinHash over word shingles, vectorised; candidates are verified by their exact similarity.

Broder (1997), On the resemblance and containment of documents: the chance that two sets share the least element under
a random order is their Jaccard similarity. Words are compared by letters and digits alone, in lower case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS_PER_SHINGLE = 3
BANDS, ROWS = 12, 3  # at similarity 0.8 a pair is missed with chance (1 - 0.8^3)^12 = 1e-4, at 0.7 with 6e-3

_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_LAST = np.uint32(0xFFFFFFFF)


def signatures(texts: Sequence[bytes]) -> NDArray[np.uint32]:
    """MinHash signatures of UTF-8 texts: [texts, BANDS * ROWS]. Best called with some 256 KB of text at a time."""
    multipliers, offsets = _permutations()
    result = np.full((len(texts), BANDS * ROWS), _LAST, np.uint32)
    hashes, first = _hashes(texts)
    filled = np.flatnonzero(first[1:] > first[:-1])
    if not len(filled):
        return result
    inside = _inside(first)
    # A worded text has a shingle of its own, so that leaving out those that cross into the next empties none.
    starts = np.concatenate([[0], np.cumsum(inside)])[first[filled]]
    low = (hashes[inside] >> np.uint64(32)).astype(np.uint32)
    buffer = np.empty_like(low)
    for column, (multiplier, offset) in enumerate(zip(multipliers, offsets, strict=True)):
        np.multiply(low, multiplier, out=buffer)
        buffer += offset
        result[filled, column] = np.minimum.reduceat(buffer, starts)
    return result


def similarity(one: bytes, other: bytes) -> float:
    """Exact Jaccard similarity of two texts' shingle sets; 0 where a text has no word."""
    a, b = _shingle_set(one), _shingle_set(other)
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)


def group(signature: NDArray[np.uint32], text: Callable[[int], bytes], threshold: float) -> NDArray[np.int64]:
    """Group near-duplicates (transitively): for each text the smallest index of its group.

    Args:
        signature: [n, BANDS * ROWS] of `signatures`.
        text: index -> UTF-8 text, asked for candidates only.
        threshold: exact Jaccard similarity from which two texts belong together.
    """
    parent = np.arange(len(signature))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    apart: set[tuple[int, int]] = set()

    def together(one: int, other: int) -> bool:
        a, b = sorted((root(one), root(other)))
        if a == b:
            return True
        if (one, other) in apart:
            return False
        if similarity(text(one), text(other)) < threshold:
            apart.add((one, other))
            return False
        parent[b] = a
        return True

    for band in range(BANDS):
        for bucket in _buckets(signature[:, band * ROWS : (band + 1) * ROWS]):
            waiting = bucket
            while len(waiting) > 1:
                head = int(waiting[0])
                waiting = [int(member) for member in waiting[1:] if not together(head, int(member))]
    return np.array([root(index) for index in range(len(parent))], np.int64)


def _buckets(rows: NDArray[np.uint32]) -> list[list[int]]:
    """Indices, ascending, that agree in all columns and are not alone; texts without words have no bucket."""
    worded = np.flatnonzero((rows != _LAST).any(axis=1))
    key = np.zeros(len(worded), np.uint64)
    for column in rows[worded].T:
        key = (key ^ column) * _MIX
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    edges = np.flatnonzero(np.diff(key[order])) + 1
    starts = np.concatenate([[0], edges])
    sizes = np.diff(np.concatenate([starts, [len(order)]]))
    return [
        worded[order[start : start + size]].tolist()
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True)
    ]


def _hashes(texts: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Shingle hashes, one per word (the shingle that begins there), and where each text's words begin: [texts + 1].

    Letters are packed without the separators, so that any substring's polynomial hash is a difference of prefix sums
    (modulo 2^64, where the odd base has an inverse). A text shorter than a shingle is one shingle as a whole.
    """
    raw = np.frombuffer(b" ".join(texts).lower() + b" ", np.uint8)
    begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
    values = _byte_values()[raw]
    letter = values != 0
    packed = values[letter]
    power, inverse = _powers(1 << max(len(packed), 1 << 18).bit_length())
    prefix = np.zeros(len(packed) + 1, np.uint64)
    np.cumsum(packed * power[: len(packed)], out=prefix[1:])
    starts = letter.copy()
    starts[1:] &= ~letter[:-1]
    raw_starts = np.flatnonzero(starts)
    position = np.cumsum(letter) - 1
    word = np.append(position[raw_starts], len(packed))
    first = np.searchsorted(raw_starts, begins)
    count = len(word) - 1
    end = np.minimum(np.arange(count) + WORDS_PER_SHINGLE, count)
    short = np.flatnonzero(np.diff(first) < WORDS_PER_SHINGLE)
    for text in short:
        end[first[text] : first[text + 1]] = first[text + 1]
    hashes = (prefix[word[end]] - prefix[word[:-1]]) * inverse[word[:-1]]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MIX
    return hashes, first


def _inside(first: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which words begin a shingle that lies within its text: [words]."""
    inside = np.ones(int(first[-1]), bool)
    long = np.flatnonzero(np.diff(first) >= WORDS_PER_SHINGLE)
    for back in range(1, WORDS_PER_SHINGLE):
        inside[first[long + 1] - back] = False
    for text in np.flatnonzero((np.diff(first) < WORDS_PER_SHINGLE) & (np.diff(first) > 1)):
        inside[first[text] + 1 : first[text + 1]] = False
    return inside


def _shingle_set(text: bytes) -> NDArray[np.uint64]:
    hashes, first = _hashes([text])
    return np.unique(hashes[_inside(first)])


@lru_cache(maxsize=1)
def _byte_values() -> NDArray[np.uint64]:
    values = np.random.default_rng(0).integers(1, 1 << 63, 256, np.uint64)
    for byte in range(128):
        if not chr(byte).isalnum():
            values[byte] = 0
    return values


@lru_cache(maxsize=1)
def _permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 1 << 32, (2, BANDS * ROWS), np.uint32)
    return draws[0] | np.uint32(1), draws[1]


@lru_cache(maxsize=2)
def _powers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    def powers(base: int) -> Any:
        steps = np.full(size, base, np.uint64)
        steps[0] = 1
        return np.multiply.accumulate(steps)

    return powers(int(_BASE)), powers(pow(int(_BASE), -1, 1 << 64))
