"""Text -> ragged token arrays on disk, with a tokenizer trained on the source or any fast Hugging Face tokenizer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gtl_lightning.data.hub import endpoint, hub_reachable
from gtl_lightning.data.split import SPLITS
from gtl_lightning.errors import UserError
from gtl_lightning.files import atomic_path, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, UNK, MASK, EOS = SPECIALS = ("[PAD]", "[UNK]", "[MASK]", "[EOS]")

_CHUNK = 2048  # texts encoded at a time: enough for every core, few enough for memory
_LARGEST_UINT16 = 1 << 16
_KNOWN_WORDS = 1 << 20  # distinct words whose ids are remembered


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, kind: Literal["wordpiece", "bpe"] = "wordpiece"
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most `vocab_size` ids, specials included.

    WordPiece lower-cases. Where every word of the texts finds room it takes whole words (and single characters for
    unseen ones) instead of merges, so that small vocabularies are not spent on the pieces that merges pass through.

    Raises:
        UserError: no text, or a vocabulary too small for the specials and the alphabet.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if iter(texts) is texts:  # a stream would be spent after the first of two passes
        texts = list(texts)
    if not any(texts):
        raise UserError("no text to train a tokenizer on; check the source_train split")
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        words = _count_words(tokenizer, texts, enough=vocab_size)
        pieces = [*SPECIALS, *_alphabet(words)]
        # the alphabet is wanted whole, as pieces of unseen words; a word of one letter is in it already
        whole = sorted(set(words) - set(pieces), key=lambda word: (-words[word], word))
        if len(pieces) > vocab_size:
            raise UserError(
                f"tokenizer vocab_size = {vocab_size} is too small: specials and characters take {len(pieces)} ids; raise it"
            )
        if len(pieces) + len(whole) <= vocab_size:
            vocab = {piece: index for index, piece in enumerate(chain(pieces, whole))}
            tokenizer.model = models.WordPiece(vocab, unk_token=UNK)
            tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
        else:
            trainer: Any = trainers.WordPieceTrainer(
                vocab_size=vocab_size, special_tokens=list(SPECIALS), show_progress=False
            )
            tokenizer.train_from_iterator(texts, trainer)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < len(alphabet) + len(SPECIALS):
            raise UserError(f"tokenizer vocab_size = {vocab_size} is too small for byte-level BPE; use at least 512")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """Load any tokenizer by folder, cached name or hub name; it is given a mask, a pad and an end where it lacks them.

    A missing mask or pad becomes a new id; a missing end is the separator if there is one, else a new id.

    Raises:
        UserError: not found here nor on the hub, or it has no fast form.
    """
    from transformers import AutoTokenizer

    tokenizer: Any
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), local_files_only=True)
    except Exception as local:  # transformers raises whatever its parts raise
        if Path(name).is_dir():
            raise UserError(f"folder {name} holds no tokenizer that can be loaded ({_line(local)})") from local
        if not hub_reachable():
            raise UserError(
                f"tokenizer {name!r} is not on this disk and {endpoint()} cannot be reached; give a folder, or set "
                "tokenizer.name to null to train one"
            ) from local
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(name))
        except Exception as error:
            raise UserError(f"tokenizer {name!r} cannot be loaded ({_line(error)}); give another name") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"tokenizer {name!r} has no fast form (tokenizer.json); give one that has")
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    # padding must be told apart from text, so a pad that doubles as end or unknown (a habit with GPT-2) is replaced
    if tokenizer.pad_token is None or tokenizer.pad_token_id in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": tokenizer.sep_token or EOS})
    loaded: PreTrainedTokenizerFast = tokenizer
    return loaded


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
        meta.json: vocab_size (every id), mask_index, pad_index, eos_index, length, name, and by split its examples,
        tokens and cut texts.

    Raises:
        UserError: a missing split, a tokenizer that cannot be used, or an unwritable folder.
    """
    # ours to set: without it the library turns its threads off in any process that was forked before
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    splits, out = Path(splits), Path(out)
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
        "splits": {},
    }
    dtype = np.uint16 if meta["vocab_size"] <= _LARGEST_UINT16 else np.int32
    for split in SPLITS:
        chunks = encode_chunks(tokenizer, read_texts(splits / f"{split}.parquet"), length, meta["eos_index"])
        meta["splits"][split] = _write_ragged(out, split, chunks, np.dtype(dtype), meta["eos_index"])
    try:
        tokenizer.save_pretrained(str(out / "tokenizer"))
    except OSError as error:
        raise UserError(f"cannot write {out / 'tokenizer'}: {error.strerror or error}") from error
    write_json(out / "meta.json", meta)
    return meta


def read_texts(path: Path | str) -> Iterator[list[str]]:
    """Texts of one split in rank order, in chunks.

    Raises:
        UserError: the file is missing or is no parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; run `gtl split` first")
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_CHUNK, columns=["text"]):
                yield batch.column(0).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(f"{path} is damaged or no split ({_line(error)}); run `gtl split` again") from error


def encode_chunks(
    tokenizer: PreTrainedTokenizerFast, chunks: Iterable[Sequence[str]], length: int, eos_index: int
) -> Iterator[list[list[int]]]:
    """Token ids of texts, cut to `length`, `eos_index` appended where there is room."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    # an abstract that speaks of "[MASK]" means the word: its text must not turn into special ids
    backend.encode_special_tokens = True
    encode = _encode_by_word(backend) if _splits_at_blanks(backend) else _encode_whole(backend)
    try:
        for texts in chunks:
            yield [[*ids, eos_index] if len(ids) < length else ids[:length] for ids in encode(texts)]
    finally:
        backend.encode_special_tokens = False


def decode(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> str:
    """Token ids -> text: up to the end token, without pads, masks and other specials."""
    text: list[int] = []
    special = set(tokenizer.all_special_ids)
    for index in (int(index) for index in ids):
        if index == tokenizer.eos_token_id:
            break
        if index not in special:
            text.append(index)
    return str(tokenizer.backend_tokenizer.decode(text, skip_special_tokens=True))


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
    known: dict[str, list[int]] = {}

    def encode(texts: Sequence[str]) -> Iterator[list[int]]:
        words = [text.split(" ") for text in texts]
        if len(known) > _KNOWN_WORDS:
            known.clear()
        new = list(dict.fromkeys(word for row in words for word in row if word not in known))
        known.update(
            (word, encoding.ids)
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


class _SplitTexts:
    """The texts of a split, read anew at every pass, so that training a tokenizer needs no copy of them in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(read_texts(self.path))


def _count_words(tokenizer: Tokenizer, texts: Iterable[str], enough: int) -> Mapping[str, int]:
    """Counts of pre-tokenised words, or only those of the first texts once more than `enough` differ."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(
            word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        )
        if len(counts) > enough:
            break
    return counts


def _alphabet(words: Iterable[str]) -> list[str]:
    letters = sorted({letter for word in words for letter in word})
    inner = sorted({letter for word in words for letter in word[1:]} | {c for c in letters if c.isalnum()})
    return [*letters, *("##" + letter for letter in inner)]


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, mask_token=MASK, eos_token=EOS
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
