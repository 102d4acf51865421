"""Prefix -> target tasks: two fields of a record as one row of tokens, what is given in front, what is wanted behind.

A row has a fixed length. What is given fills its front, padded on the left, so that all targets begin at one place;
the rest is the target, and where that ends the end token fills it: the end is learned and predicted like a token.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gtl_lightning.data.tables import Row, rows
from gtl_lightning.data.tokenizer import encode
from gtl_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """Two fields of a record; runs of blanks are one blank."""

    given: str
    wanted: str


def read_pairs(where: Path | str, given: str, wanted: str, most: int) -> list[Pair]:
    """The first `most` records of a table of any form of `data.tables` that hold a text in both fields.

    Raises:
        UserError: a table that cannot be read, a field that it does not have, or no record with a text in both.
    """
    return pairs_of(rows(str(where)), where, given, wanted, most)


def pairs_of(records: Iterable[Row | bytes], where: Path | str, given: str, wanted: str, most: int) -> list[Pair]:
    """`read_pairs` of records that are at hand; `where` is what messages call them.

    Raises:
        UserError: as `read_pairs`.
    """
    found: list[Pair] = []
    empty = 0
    seen: set[str] = set()
    for record in records:
        if len(found) == most:
            break
        fields = record if isinstance(record, dict) else {}
        seen.update(fields)
        pair = Pair(*(_text(fields.get(name)) for name in (given, wanted)))
        if all(pair):
            found.append(pair)
        else:
            empty += 1
    for name in (given, wanted):
        if name not in seen and not found:
            raise UserError(f"{where}: no field {name!r}; its fields are {', '.join(sorted(seen)[:20]) or 'none'}")
    if not found:
        raise UserError(f"{where}: no record has a text in both {given!r} and {wanted!r}; name other fields")
    if empty:
        log.warning("%s: %d records without a text in both %r and %r are left out", where, empty, given, wanted)
    return found


def paired_rows(
    tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair], *, length: int, prefix: int
) -> NDArray[np.int64]:
    """Long[n,length]: `prefix` places of what is given, its beginning, and the target, cut to what remains.

    Raises:
        UserError: the prefix fills the length or has no place in it.
    """
    if not 1 <= prefix < length:
        raise UserError(
            f"prefix = {prefix} of length = {length} leaves no room for a target, or for what is given; "
            f"choose 1 to {length - 1}"
        )
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    found = np.full((len(pairs), length), pad, np.int64)
    found[:, prefix:] = end
    for row, pair in zip(found, pairs, strict=True):
        given, wanted = encode(tokenizer, pair.given)[:prefix], encode(tokenizer, pair.wanted)[: length - prefix]
        row[prefix - len(given) : prefix] = given
        row[prefix : prefix + len(wanted)] = wanted
    return found


def _text(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
