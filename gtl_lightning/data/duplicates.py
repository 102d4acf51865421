"""Near-duplicate texts: MinHash over word shingles, vectorised; candidates are verified by their exact similarity.

Broder (1997), On the resemblance and containment of documents: the chance that two sets share the least element under
a random order is their Jaccard similarity. Words are compared by letters and digits alone, in lower case, of whatever
script, each with its marks; where a script puts no blanks between words, each letter is one (`scripts.words`).

What counts as a duplicate: texts of equal shingle sets, always; two others when they agree in all rows of a band (fall
into one bucket), are compared there, and their exact similarity reaches the threshold; and whatever hangs together
through such pairs. In a bucket every text is compared with the first one, those not joined to it with the first of
them, and so on for `ROUNDS` rounds, which no bucket of ordinary text needs. In larger ones (boilerplate that differs in
a number) each text left is then compared with its `NEIGHBOURS` nearest in the order of the rest of the signature, and
pairs further apart are let be. So a text costs at most (ROUNDS + NEIGHBOURS) comparisons a band, whatever texts say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gtl_lightning.data.lines import Progress, unseen
from gtl_lightning.data.scripts import words

WORDS_PER_SHINGLE = 3
BANDS, ROWS = 12, 3  # at similarity 0.8 a pair is missed with chance (1 - 0.8^3)^12 = 1e-4, at 0.7 with 6e-3
LOOSE, LOOSE_ROWS = 0.7, 2  # below 0.7: 18 bands of two; at 0.5 a pair is missed with chance (1 - 0.5^2)^18 = 6e-3
ROUNDS, NEIGHBOURS = 64, 4

_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_LAST = np.uint32(0xFFFFFFFF)
_BATCH_BYTES = 1 << 17  # one batch's arrays stay in the processor's cache


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


def group(
    signature: NDArray[np.uint32],
    text: Callable[[int], bytes],
    threshold: float,
    progress: Progress = unseen,
) -> NDArray[np.int64]:
    """Group near-duplicates (transitively): for each text the smallest index of its group.

    Args:
        signature: [n, BANDS * ROWS] of `signatures`.
        text: index -> UTF-8 text, asked for candidates only, at most once per band and once before.
        threshold: exact Jaccard similarity from which two texts belong together, `LEAST_SIMILARITY` at least.
        progress: told (done, total).
    """
    rows = ROWS if threshold >= LOOSE else LOOSE_ROWS
    bands = BANDS * ROWS // rows
    first = _first_equal(signature, text)
    distinct = np.flatnonzero(first == np.arange(len(first)))
    roots = _Roots(first.tolist())
    total = bands * len(distinct)
    for band in range(bands):
        done = band * len(distinct)
        for places in _buckets(signature[distinct, band * rows : (band + 1) * rows]):
            bucket = distinct[places]
            for share in _join_similar(bucket, roots, signature, text, threshold, (band + 1) * rows):
                progress(done + int(share * len(bucket)), total)
            done += len(bucket)
        progress((band + 1) * len(distinct), total)
    return np.array([roots.of(index) for index in range(len(first))], np.int64)


def _join_similar(
    bucket: NDArray[np.int64],
    roots: _Roots,
    signature: NDArray[np.uint32],
    text: Callable[[int], bytes],
    threshold: float,
    behind: int,
) -> Iterator[float]:
    """Join what is similar in one bucket, as the module's head says; yields the share of the work that is done.

    The rest of the signature begins at its column `behind`.
    """
    members = bucket.tolist()
    if len({roots.of(index) for index in members}) == 1:
        return
    sets = _Sets.of(text(index) for index in members)
    waiting = list(range(len(members)))
    for turn in range(ROUNDS):
        if len(waiting) < 2:
            return
        head = members[waiting[0]]
        near = (sets.similarities() >= threshold).tolist()
        left = []
        for place, other in enumerate(waiting[1:], 1):
            if roots.of(members[other]) == roots.of(head):
                continue
            if near[place]:
                roots.join(head, members[other])
            else:
                left.append(place)
        sets = sets.take(np.array(left, np.int64))
        waiting = [waiting[place] for place in left]
        yield turn / ROUNDS
    if len(waiting) < 2:
        return
    columns = np.roll(signature[bucket[waiting]], -behind, axis=1)
    order = np.lexsort(columns.T[::-1])
    for step in range(1, min(NEIGHBOURS, len(waiting) - 1) + 1):
        near = (sets.take(order[:-step]).similarities(sets.take(order[step:])) >= threshold).tolist()
        for place, is_near in enumerate(near):
            if is_near:
                roots.join(members[waiting[order[place]]], members[waiting[order[place + step]]])


class _Sets:
    """Shingle sets of texts, one behind the other: numbers of shingles, ascending within a set, and the sets' sizes."""

    def __init__(self, shingles: NDArray[np.int64], sizes: NDArray[np.int64], different: int) -> None:
        self._shingles, self._sizes, self._different = shingles, sizes, different
        self._starts = np.cumsum(sizes) - sizes

    @classmethod
    def of(cls, texts: Iterable[bytes]) -> _Sets:
        """The sets of texts that have words."""
        parts = [_shingle_sets(batch) for batch in _batches(texts)]
        known, numbers = np.unique(np.concatenate([values for values, _ in parts]), return_inverse=True)
        return cls(numbers, np.concatenate([sizes for _, sizes in parts]), len(known))

    def take(self, rows: NDArray[np.int64]) -> _Sets:
        """Some of the sets, in that order."""
        sizes = self._sizes[rows]
        ends = np.cumsum(sizes)
        within = np.arange(int(sizes.sum())) - np.repeat(ends - sizes, sizes)
        return _Sets(self._shingles[np.repeat(self._starts[rows], sizes) + within], sizes, self._different)

    def similarities(self, others: _Sets | None = None) -> NDArray[np.float64]:
        """Jaccard similarity of every set with the first one, or with the set at its place in `others`: [sets]."""
        if others is None:
            in_first = np.zeros(self._different, bool)
            in_first[self._shingles[: self._sizes[0]]] = True
            hit, size = in_first[self._shingles], self._sizes[0]
        else:
            mine, theirs = self._keys(), others._keys()
            hit, size = theirs[np.searchsorted(theirs, mine).clip(max=len(theirs) - 1)] == mine, others._sizes
        shared = np.add.reduceat(hit, self._starts, dtype=np.int64)
        return np.asarray(shared / (self._sizes + size - shared))

    def _keys(self) -> NDArray[np.int64]:
        # ascending, and equal where both the place and the shingle are
        return np.repeat(np.arange(len(self._sizes)) * self._different, self._sizes) + self._shingles


class _Roots:
    """Groups as trees (union-find); the smallest index of a group is its root."""

    def __init__(self, parent: list[int]) -> None:
        self._parent = parent

    def of(self, index: int) -> int:
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, one: int, other: int) -> None:
        a, b = sorted((self.of(one), self.of(other)))
        self._parent[b] = a


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
    texts = [text if text.isascii() else _folded(text) for text in texts]
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


def _folded(text: bytes) -> bytes:
    """A text whose letters are not all ASCII, in one form, as its words: no byte of a word is one of ASCII's signs."""
    return " ".join(words(text.decode("utf-8", "surrogatepass"))).encode("utf-8", "surrogatepass")


def _inside(first: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which words begin a shingle that lies within its text: [words]."""
    inside = np.ones(int(first[-1]), bool)
    long = np.flatnonzero(np.diff(first) >= WORDS_PER_SHINGLE)
    for back in range(1, WORDS_PER_SHINGLE):
        inside[first[long + 1] - back] = False
    for text in np.flatnonzero((np.diff(first) < WORDS_PER_SHINGLE) & (np.diff(first) > 1)):
        inside[first[text] + 1 : first[text + 1]] = False
    return inside


def _shingle_sets(texts: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Shingle hashes of each text, without repeats and ascending, one text behind the other, and how many each has."""
    hashes, first = _hashes(texts)
    inside = _inside(first)
    owner = np.repeat(np.arange(len(texts)), np.diff(first))[inside]
    values = hashes[inside]
    order = np.lexsort((values, owner))
    values, owner = values[order], owner[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (owner[1:] != owner[:-1])
    return values[new], np.bincount(owner[new], minlength=len(texts))


def _shingle_set(text: bytes) -> NDArray[np.uint64]:
    return _shingle_sets([text])[0]


def _batches(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    pending = 0
    for text in texts:
        batch.append(text)
        pending += len(text)
        if pending >= _BATCH_BYTES:
            yield batch
            batch, pending = [], 0
    if batch:
        yield batch


def _first_equal(signature: NDArray[np.uint32], text: Callable[[int], bytes]) -> NDArray[np.int64]:
    """For each text the smallest index of those with the same shingles; without words, of the equal ones: [texts]."""
    first = np.arange(len(signature))
    wordless: dict[bytes, int] = {}
    for index in np.flatnonzero((signature == _LAST).all(axis=1)).tolist():
        first[index] = wordless.setdefault(text(index), index)
    for bucket in _buckets(signature):
        known: dict[bytes, int] = {}
        for index in bucket:
            first[index] = known.setdefault(_shingle_set(text(index)).tobytes(), index)
    return first


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
