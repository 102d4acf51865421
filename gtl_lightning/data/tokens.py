"""Splits -> ragged token arrays on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from gtl_lightning.data.recorded import META, hashes
from gtl_lightning.data.split import SPLITS
from gtl_lightning.data.tokenizer import decode, load_tokenizer, text_only, train_tokenizer
from gtl_lightning.errors import UserError, reason
from gtl_lightning.files import atomic_path, replacing, settle, write_json
from gtl_lightning.inputs import open_regular
from gtl_lightning.records import ANY, Values, read_record

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "decode",
    "encode_chunks",
    "load_tokenizer",
    "read_texts",
    "save_tokenizer",
    "tokenize_splits",
    "train_tokenizer",
    "unknown_index",
]

_CHUNK = 2048  # texts encoded at a time: enough for every core, few enough for memory
_LARGEST_UINT16 = 1 << 16
_MOST_UNKNOWN = 0.5
_FEW_TOKENS = 200  # too few to judge a tokenizer by
_KNOWN_WORDS = 1 << 20  # distinct words whose ids are remembered


def tokenize_splits(
    splits: Path | str, out: Path | str, *, name: str | None, vocab_size: int, length: int, kind: str = "wordpiece"
) -> dict[str, Any]:
    """Tokenise every split: tokens/{split}.tokens.npy (flat), .offsets.npy, meta.json and tokenizer/ in `out`.

    A text is cut to `length` tokens; the end token follows where the whole text leaves room for it.

    Args:
        splits: folder that `split_snapshot` wrote.
        out: folder for the arrays.
        name: a Hugging Face tokenizer; None trains one of `vocab_size` ids on source_train.
        vocab_size: ids of the trained tokenizer.
        length: most tokens per text, end token included.
        kind: of the trained tokenizer, "wordpiece" or "bpe".

    Returns:
        meta.json: vocab_size (every id), mask_index, pad_index, eos_index, length, name, the archives of either domain
        as the splits say them, and by split its examples, tokens and cut texts. `files` names each other file with its
        sha256: whatever is keyed by this one is keyed by the tokens, and who reads a file can tell whether it is the
        one (`recorded.check_tokens`).

    Raises:
        UserError: a missing split, a tokenizer that cannot be used, or an unwritable folder.
    """
    # ours to set: without it the library turns its threads off in any process that was forked before
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    splits, out = Path(splits), Path(out)
    settle(splits)
    if kind not in ("wordpiece", "bpe"):
        raise UserError(f"tokenizer kind {kind!r} is unknown; use wordpiece or bpe")
    if length < 2:
        raise UserError(f"length = {length} leaves no room for a text and its end; use at least 2")
    if name is None:
        texts = _SplitTexts(splits / "source_train.parquet")
        tokenizer = train_tokenizer(texts, vocab_size, "bpe" if kind == "bpe" else "wordpiece")
    else:
        tokenizer = load_tokenizer(name)
    ids = tokenizer.get_vocab().values()
    meta: dict[str, Any] = {
        "vocab_size": max(ids) + 1,
        "mask_index": tokenizer.mask_token_id,
        "pad_index": tokenizer.pad_token_id,
        "eos_index": tokenizer.eos_token_id,
        "length": length,
        "name": name or f"trained {kind}",
        "domains": _domains(splits),
        "splits": {},
    }
    dtype = np.uint16 if meta["vocab_size"] <= _LARGEST_UINT16 else np.int32
    with replacing(out) as staged:
        for split in SPLITS:
            chunks = encode_chunks(tokenizer, read_texts(splits / f"{split}.parquet"), length, meta["eos_index"])
            meta["splits"][split] = _write_ragged(staged, split, chunks, np.dtype(dtype), meta["eos_index"])
        save_tokenizer(tokenizer, staged / "tokenizer")
        meta["files"] = hashes(staged)
        write_json(staged / META, meta)
    return meta


def _domains(splits: Path) -> dict[str, str]:
    """`source` and `target` -> the archives of its texts, where `split_snapshot` left its summary."""
    summary = splits / "summary.json"
    if not summary.is_file():
        return {}
    parts = read_record(summary, {"splits": Values(ANY)})["splits"]
    return {side: ", ".join(sorted(parts.get(f"{side}_train", {}))) for side in ("source", "target")}


def read_texts(path: Path | str) -> Iterator[list[str]]:
    """Texts of one split in rank order, in chunks.

    Raises:
        UserError: the file is missing or is no parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_regular(path, "run `gtl split` first") as raw:
        try:
            with pq.ParquetFile(raw, page_checksum_verification=True) as file:
                if file.schema_arrow.field("text").type != pa.string():
                    raise pa.ArrowInvalid("its texts are none")
                for batch in file.iter_batches(_CHUNK, columns=["text"]):
                    if batch.column(0).null_count:
                        raise pa.ArrowInvalid("a text is missing")
                    yield batch.column(0).to_pylist()
        except (pa.ArrowException, KeyError, IndexError, OSError, UnicodeError) as error:
            raise UserError(f"{path} is damaged or no split ({reason(error)}); run `gtl split` again") from error


def encode_chunks(
    tokenizer: PreTrainedTokenizerFast, chunks: Iterable[Sequence[str]], length: int, eos_index: int
) -> Iterator[list[list[int]]]:
    """Token ids of texts, cut to `length`, `eos_index` appended where there is room.

    Raises:
        UserError: the tokenizer knows too few of the texts' tokens: what is learned of them would be no text.
    """
    with text_only(tokenizer) as backend:
        encode = _encode_by_word(backend) if _splits_at_blanks(backend) else _encode_whole(backend)
        for texts in chunks:
            read = list(encode(texts))
            _check_read(tokenizer, texts, read)
            rows = [[*ids, eos_index] if len(ids) < length else ids[:length] for ids in read]
            _check_known(tokenizer, rows)
            yield rows


def unknown_index(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Id of what a text has that is in no token; None where there is none, or where it ends every text too (gpt2)."""
    unknown = cast("int | None", tokenizer.unk_token_id)
    return None if unknown == tokenizer.eos_token_id else unknown


def _check_read(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], read: Sequence[list[int]]) -> None:
    """A tokenizer that has no unknown token leaves out what it does not know."""
    nothing = sum(not ids and bool(text.strip()) for text, ids in zip(texts, read, strict=True))
    if nothing > _MOST_UNKNOWN * len(texts):
        raise UserError(
            f"{_named(tokenizer)} makes no token at all of {nothing} of {len(texts)} texts; give the tokenizer of such "
            "texts"
        )


def _check_known(tokenizer: PreTrainedTokenizerFast, rows: Sequence[list[int]]) -> None:
    unknown, count = unknown_index(tokenizer), sum(map(len, rows))
    if unknown is None or count < _FEW_TOKENS:
        return
    share = sum(row.count(unknown) for row in rows) / count
    if share > _MOST_UNKNOWN:
        raise UserError(
            f"{_named(tokenizer)} knows too little of these texts: {share:.0%} of their tokens are "
            f"{tokenizer.unk_token}; give the tokenizer of such texts, or write them as it does (case, blanks)"
        )


def _named(tokenizer: PreTrainedTokenizerFast) -> str:
    return f"the tokenizer {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"


def _splits_at_blanks(backend: Tokenizer) -> bool:
    from tokenizers import models, normalizers, pre_tokenizers

    return (
        isinstance(backend.model, models.WordPiece)
        and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(backend.normalizer, normalizers.BertNormalizer)
    )


def _encode_whole(backend: Tokenizer) -> Callable[[Sequence[str]], Iterator[list[int]]]:
    def encode(texts: Sequence[str]) -> Iterator[list[int]]:
        for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False):
            yield encoding.ids

    return encode


def _encode_by_word(backend: Tokenizer) -> Callable[[Sequence[str]], Iterator[list[int]]]:
    """Encode every distinct word once; the same ids as encoding whole texts where no token crosses a blank."""
    known: dict[str, tuple[int, ...]] = {}  # tuples of numbers cost the garbage collector nothing

    def encode(texts: Sequence[str]) -> Iterator[list[int]]:
        words = [text.split(" ") for text in texts]
        if len(known) > _KNOWN_WORDS:
            known.clear()
        new = list(set(chain.from_iterable(words)).difference(known))
        known.update(
            (word, tuple(encoding.ids))
            for word, encoding in zip(new, backend.encode_batch_fast(new, add_special_tokens=False), strict=True)
        )
        for row in words:
            yield list(chain.from_iterable(map(known.__getitem__, row)))

    return encode


def _write_ragged(
    out: Path, split: str, chunks: Iterable[list[list[int]]], dtype: np.dtype[Any], eos_index: int
) -> dict[str, int]:
    total = cut = 0
    offsets: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
    with atomic_path(out / f"{split}.tokens.npy") as temporary, open(temporary, "wb") as file:
        # numpy pads the header so that its size does not depend on the number of rows, which is known at the end
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (0,)})
        for rows in chunks:
            sizes = np.fromiter(map(len, rows), np.int64, len(rows))
            flat = np.fromiter(chain.from_iterable(rows), dtype, int(sizes.sum()))
            ends = np.cumsum(sizes)
            cut += int((flat[ends - 1] != eos_index).sum())
            offsets.append(total + ends)
            total += len(flat)
            file.write(flat.tobytes())
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (total,)})
    joined = np.concatenate(offsets)
    with atomic_path(out / f"{split}.offsets.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, joined)
    return {"examples": len(joined) - 1, "tokens": total, "cut": cut}


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer's files.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # tokenizers raises the system's errors as bare ones, the number in their text
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error


class _SplitTexts:
    """The texts of a split, read anew at every pass, so that training a tokenizer needs no copy of them in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(read_texts(self.path))
