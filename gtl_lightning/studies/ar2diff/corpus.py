"""Text of the study: records of two fields, a tokenizer of their words, rows to train on and rows of both tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.data.loading import TextDataModule
from gtl_lightning.data.pairs import Pair, paired_rows, read_pairs
from gtl_lightning.data.sample import write_sample
from gtl_lightning.data.snapshot import SNAPSHOT as SNAPSHOT_NAME
from gtl_lightning.data.tokenizer import encode, train_tokenizer
from gtl_lightning.errors import UserError
from gtl_lightning.fields import Training
from gtl_lightning.networks.block import BackboneConfig
from gtl_lightning.studies.ar2diff.settings import Texts
from gtl_lightning.workspace.paths import SNAPSHOT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Corpus:
    """Records cut in three, the held-out and tested ones last, whatever the seed.

    Attributes:
        train, val, test: pairs of the first and second field.
        tokenizer: of the words of `train`.
    """

    train: list[Pair]
    val: list[Pair]
    test: list[Pair]
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def open(cls, text: Texts) -> Corpus:
        """The file's records, those in data/, or the generated sample's where there are none.

        Raises:
            UserError: a file that cannot be read, a field that it does not have, too few records.
        """
        pairs = _read(text)
        cut = len(pairs) - text.held_out - text.tested
        if cut < text.causal.batch:
            raise UserError(
                f"text: {len(pairs)} records have both fields, and held_out = {text.held_out} and tested = "
                f"{text.tested} leave {max(cut, 0)} to train on; lower them or give more"
            )
        train = pairs[:cut]
        tokenizer = train_tokenizer([field for pair in train for field in pair], text.vocabulary)
        return cls(train, pairs[cut : cut + text.held_out], pairs[cut + text.held_out :], tokenizer)

    @property
    def end_index(self) -> int:
        """Id of the end token, which a target's end is learned by."""
        return int(self.tokenizer.eos_token_id)

    @property
    def fingerprint(self) -> str:
        """Short hash of all records, and of how they are cut."""
        return hashlib.sha256(json.dumps([self.train, self.val, self.test]).encode()).hexdigest()[:12]

    def backbone(self, text: Texts, length: int) -> BackboneConfig:
        """Of networks over these tokens."""
        return BackboneConfig(
            max(self.tokenizer.get_vocab().values()) + 1,
            length,
            mask_index=self.tokenizer.mask_token_id,
            pad_index=self.tokenizer.pad_token_id,
            **text.network.model_dump(),
        )

    def texts(self, text: Texts, training: Training, seed: int) -> TextDataModule:
        """Examples of `text.length` tokens, cut from the first fields one after the other."""
        train, val = (self.examples(pairs, text.length) for pairs in (self.train, self.val))
        return self.module(list(train), list(val[: text.held_out]), training, seed)

    def module(
        self, train: Sequence[NDArray[np.int64]], val: Sequence[NDArray[np.int64]], training: Training, seed: int
    ) -> TextDataModule:
        """Batches of rows, of one length or of several."""
        pad = int(self.tokenizer.pad_token_id)
        train_data, val_data = (
            TokenDataset.from_arrays(np.concatenate(rows), np.cumsum([0, *map(len, rows)]), pad)
            for rows in (train, val)
        )
        return TextDataModule(
            train_data, val_data, batch=training.batch, steps_per_epoch=training.check_every, seed=seed, pad_index=pad
        )

    def rows(self, pairs: Sequence[Pair], *, length: int, prefix: int) -> NDArray[np.int64]:
        """Long[n,length], as `data.pairs.paired_rows` has them."""
        return paired_rows(self.tokenizer, pairs, length=length, prefix=prefix)

    def examples(self, pairs: Sequence[Pair], length: int) -> NDArray[np.int64]:
        """Long[n,length], the first fields one after the other, cut.

        Raises:
            UserError: they make none.
        """
        ids: list[int] = []
        for pair in pairs:
            ids += [*encode(self.tokenizer, pair.given), self.end_index]
        rows = np.array(ids[: len(ids) // length * length], np.int64).reshape(-1, length)
        if not len(rows):
            raise UserError(f"text.length = {length}: the records make no example of that length; lower it")
        return rows


def turned(pairs: Sequence[Pair]) -> list[Pair]:
    """What was wanted given, and what was given wanted."""
    return [Pair(pair.wanted, pair.given) for pair in pairs]


def _read(text: Texts) -> list[Pair]:
    fields: tuple[Any, ...] = (text.first, text.second, text.records)
    if text.file is not None:
        return read_pairs(text.file, *fields)
    if SNAPSHOT.exists():
        return read_pairs(SNAPSHOT, *fields)
    with TemporaryDirectory() as folder:
        write_sample(folder, seed=0)
        return read_pairs(Path(folder) / SNAPSHOT_NAME, *fields)
