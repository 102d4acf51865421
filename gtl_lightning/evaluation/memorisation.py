"""What is copied from the training subset: longest shared token span, and nearest training neighbour.

Real texts share spans and neighbours as well: compute both for held-out real texts and report them beside the
samples' values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gtl_lightning.errors import UserError

CHUNK = 1024  # samples a block of similarities


@dataclass(frozen=True)
class Memorisation:
    """Per-sample values and their summary.

    Attributes:
        spans: Long[n] longest copied span of each sample, in tokens.
        cosines: Float[n] cosine of each sample's features to its nearest training text.
    """

    spans: np.ndarray
    cosines: np.ndarray

    def summary(self) -> dict[str, float]:
        """Flat numbers for the report: mean, 95th percentile and maximum of both."""
        return {
            "span_mean": float(self.spans.mean()),
            "span_p95": float(np.percentile(self.spans, 95)),
            "span_max": float(self.spans.max()),
            "cosine_mean": float(self.cosines.mean()),
            "cosine_p95": float(np.percentile(self.cosines, 95)),
            "cosine_max": float(self.cosines.max()),
        }


def memorisation(
    samples: Sequence[Tensor | np.ndarray],
    training: Sequence[Tensor | np.ndarray],
    *,
    sample_features: np.ndarray,
    training_features: np.ndarray,
) -> Memorisation:
    """`copied_spans` and `nearest_cosines` of the same samples against the target subset that was trained on.

    Raises:
        UserError: as these two; or samples and their features differ in number.
    """
    if len(samples) != len(sample_features):
        raise UserError(
            f"{len(samples)} samples but {len(sample_features)} feature rows; compute them from the same texts"
        )
    return Memorisation(copied_spans(samples, training), nearest_cosines(sample_features, training_features))


def copied_spans(samples: Sequence[Tensor | np.ndarray], training: Sequence[Tensor | np.ndarray]) -> np.ndarray:
    """Long[n]: length of the longest run of tokens that a sample shares with any training sequence.

    All suffixes of samples and training are sorted together (prefix doubling, O(N log N log l)). The longest match of a
    sample's suffix is then the one with its nearest training suffix, before or after it; these two are compared.

    Args:
        samples: n sequences of token ids without padding; an empty one gets 0.
        training: sequences of token ids without padding.

    Raises:
        UserError: no sample or no training sequence.
    """
    if not len(samples) or not len(training):
        raise UserError("copied spans need at least one sample and one training sequence")
    longest = max(len(row) for row in samples)
    # Ids from 2 on; 0 ends a training sequence and 1 a sample, so that no match runs over an end.
    text = np.concatenate([part for rows, end in ((training, 0), (samples, 1)) for part in _terminated(rows, end)])
    first = sum(len(row) + 1 for row in training)
    order = np.argsort(_suffix_ranks(text, longest), kind="stable")
    of_training = order < first
    place = np.arange(len(order))
    none = len(order)
    before = np.maximum.accumulate(np.where(of_training, place, -1))
    after = np.minimum.accumulate(np.where(of_training, place, none)[::-1])[::-1]
    at = np.flatnonzero(~of_training)
    start = order[at]
    best = np.zeros(len(start), dtype=np.int64)
    for neighbour in (before[at], after[at]):
        exists = (neighbour >= 0) & (neighbour < none)
        best[exists] = np.maximum(best[exists], _common_prefix(text, start[exists], order[neighbour[exists]], longest))
    lengths = np.array([len(row) + 1 for row in samples])
    by_position = np.empty(len(start), dtype=np.int64)
    by_position[start - first] = best
    return np.maximum.reduceat(by_position, np.concatenate([[0], np.cumsum(lengths)[:-1]]))


def nearest_cosines(features: np.ndarray, training_features: np.ndarray) -> np.ndarray:
    """Float[n]: cosine similarity of each row of Float[n,d] to the nearest row of Float[m,d].

    Raises:
        UserError: an empty matrix, different dimensions, or values that are not finite.
    """
    a, b = np.asarray(features, dtype=np.float32), np.asarray(training_features, dtype=np.float32)
    if a.ndim != 2 or b.ndim != 2 or not len(a) or not len(b) or a.shape[1] != b.shape[1]:
        raise UserError(f"features {a.shape} and training features {b.shape} do not fit; use one featurizer for both")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("features hold values that are not finite; check the featurizer and the texts")
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return np.concatenate([(a[at : at + CHUNK] @ b.T).max(axis=1) for at in range(0, len(a), CHUNK)])


def _terminated(rows: Sequence[Tensor | np.ndarray], end: int) -> list[np.ndarray]:
    return [np.append(np.asarray(row, dtype=np.int64) + 2, end) for row in rows]


def _suffix_ranks(text: np.ndarray, longest: int) -> np.ndarray:
    """Long[N]: rank of each suffix by its first `longest` tokens or more; equal prefixes share a rank."""
    base = int(text.max()) + 2
    # As many tokens as fit into 62 bits are packed into the first key: fewer rounds of sorting.
    width = min(len(text), max(1, int(62 // np.log2(base))))
    key = np.zeros(len(text), dtype=np.int64)
    for shift in range(width):
        key = key * base
        key[: len(text) - shift] += text[shift:] + 1
    ranks = np.unique(key, return_inverse=True)[1]
    while width < longest:
        later = np.zeros_like(ranks)
        later[: max(0, len(ranks) - width)] = ranks[width:] + 1
        ranks = np.unique(ranks * (len(ranks) + 2) + later, return_inverse=True)[1]
        width *= 2
    return ranks


def _common_prefix(text: np.ndarray, a: np.ndarray, b: np.ndarray, longest: int) -> np.ndarray:
    """Long[m]: tokens shared from positions a and b on; ends differ, so they stop every match."""
    length = np.zeros(len(a), dtype=np.int64)
    active = np.arange(len(a))
    for _ in range(longest):
        active = active[text[a[active] + length[active]] == text[b[active] + length[active]]]
        if not len(active):
            break
        length[active] += 1
    return length
