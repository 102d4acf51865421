"""Token arrays on disk as ragged sequences, memory-mapped. Needs no Lightning, so that evaluation starts quickly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gtl_lightning.errors import UserError, reason
from gtl_lightning.inputs import named_regular

_EMPTY_ARRAY_BYTES = 128


class TokenDataset(Dataset[Tensor]):
    """Ragged token sequences of one split, by rank; nothing is read before it is asked for.

    Args:
        folder: what `tokenize_splits` wrote.
        split: its name.
        pad_index: fills batches.
        vocab_size: ids that there are, where the arrays are to be looked at for others.

    Raises:
        UserError: missing or damaged arrays.
    """

    def __init__(self, folder: Path | str, split: str, pad_index: int, vocab_size: int | None = None) -> None:
        tokens, offsets = (_load(Path(folder) / f"{split}.{part}.npy") for part in ("tokens", "offsets"))
        if not _are_offsets(offsets, tokens):
            raise UserError(f"{Path(folder) / split}.tokens.npy and its offsets disagree; run `gtl tokenize` again")
        if vocab_size is not None and len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise UserError(
                f"{Path(folder) / split}.tokens.npy holds ids outside of the vocabulary of {vocab_size}; "
                "run `gtl tokenize` again"
            )
        self._set(tokens, offsets, pad_index)

    @classmethod
    def from_arrays(cls, tokens: NDArray[Any], offsets: NDArray[np.int64], pad_index: int) -> TokenDataset:
        """A data set of given arrays: flat tokens and offsets [n + 1]."""
        dataset = cls.__new__(cls)
        dataset._set(tokens, offsets, pad_index)
        return dataset

    def subset(self, n: int) -> TokenDataset:
        """The first `n` examples by rank."""
        if not 0 < n <= len(self):
            raise UserError(f"a subset of {n} examples of {len(self)} was asked for; choose 1 to {len(self)}")
        return self.from_arrays(self._tokens, self._offsets[: n + 1], self.pad_index)

    def tail(self, start: int) -> TokenDataset:
        """The examples from rank `start` on."""
        if not 0 <= start < len(self):
            raise UserError(f"the examples from {start} on of {len(self)} were asked for; choose 0 to {len(self) - 1}")
        return self.from_arrays(self._tokens, self._offsets[start:], self.pad_index)

    def take(self, ranks: NDArray[np.int64]) -> TokenDataset:
        """A copy of the examples at `ranks`, in that order, repeats included."""
        starts, sizes = self._offsets[ranks], self.lengths_of(ranks)
        tokens = [self._tokens[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        return self.from_arrays(np.concatenate(tokens), np.cumsum([0, *sizes]), self.pad_index)

    def joined(self, other: TokenDataset) -> TokenDataset:
        """A copy of these examples, and behind them those of `other`."""
        tokens = [data._tokens[data._offsets[0] : data._offsets[-1]] for data in (self, other)]
        lengths = np.concatenate([self.lengths, other.lengths])
        return self.from_arrays(np.concatenate(tokens), np.cumsum([0, *lengths]), self.pad_index)

    def interleaved(self, other: TokenDataset) -> TokenDataset:
        """Pairs of examples of one length as one example: a_0 b_0 a_1 b_1 ...; a batch `x` is x[:, ::2] and x[:, 1::2].

        Raises:
            UserError: another number of examples, or a pair of different lengths.
        """
        if not np.array_equal(self.lengths, other.lengths):
            raise UserError("the texts of pairs are of different number or lengths; cut both of a pair to one length")
        pairs = [data._tokens[data._offsets[0] : data._offsets[-1]] for data in (self, other)]
        return self.from_arrays(np.stack(pairs, 1).ravel(), 2 * (self._offsets - self._offsets[0]), self.pad_index)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example: [n]."""
        return np.diff(self._offsets)

    @property
    def flat(self) -> Tensor:
        """The tokens of all examples, one after the other: a copy."""
        return torch.from_numpy(self._tokens[self._offsets[0] : self._offsets[-1]].astype(np.int64))

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Examples padded to the longest of them: Long[b, l]."""
        rows = np.asarray(indices, np.int64)
        starts, sizes = self._offsets[rows], self.lengths_of(rows)
        out = np.full((len(rows), int(sizes.max(initial=0))), self.pad_index, np.int64)
        for row, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
            out[row, :size] = self._tokens[start : start + size]
        return torch.from_numpy(out)

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the given examples."""
        return np.asarray(self._offsets[rows + 1] - self._offsets[rows])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.batch([index])[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def _set(self, tokens: NDArray[Any], offsets: NDArray[np.int64], pad_index: int) -> None:
        self._tokens, self._offsets, self.pad_index = tokens, offsets, pad_index


def _are_offsets(offsets: NDArray[Any], tokens: NDArray[Any]) -> bool:
    """Whether `offsets` cut all of `tokens` into texts, none of them empty."""
    integers = all(array.ndim == 1 and array.dtype.kind in "iu" for array in (offsets, tokens))
    return bool(
        integers
        and len(offsets)
        and offsets[0] == 0
        and offsets[-1] == len(tokens)
        and (np.diff(offsets.astype(np.int64)) > 0).all()
    )


def _load(path: Path) -> NDArray[Any]:
    with named_regular(path, "run `gtl tokenize` first") as name:
        try:
            return np.asarray(np.load(name, mmap_mode="r"))
        except (ValueError, EOFError, OSError, SyntaxError, TypeError, OverflowError, MemoryError) as error:
            # an empty array is whole and yet cannot be mapped
            if "empty file" in str(error) and path.stat().st_size >= _EMPTY_ARRAY_BYTES:
                return np.asarray(np.load(name))
            raise UserError(
                f"{path} is truncated or no array file ({reason(error)}); run `gtl tokenize` again"
            ) from error
