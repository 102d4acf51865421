"""Tokenizers: one trained on the source, the same at every training, or any fast Hugging Face tokenizer."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gtl_lightning.data.hub import NATIVE, config_beside, endpoint, hub_reachable, quiet, refuse_code
from gtl_lightning.errors import UserError, reason
from gtl_lightning.inputs import check_regular

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, UNK, MASK, EOS = SPECIALS = ("[PAD]", "[UNK]", "[MASK]", "[EOS]")

PROBE = "We show that, for 3.14 of 10^5 words,\n  it's w1 (e.g. Uebergang);  state-of-the-art."
"""What two tokenizers that split texts differently read differently."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, kind: Literal["wordpiece", "bpe"] = "wordpiece"
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most `vocab_size` ids, specials included.

    WordPiece lower-cases. Where every word of the texts finds room it takes whole words (and single characters for
    unseen ones) instead of merges, so that small vocabularies are not spent on the pieces that merges pass through.

    Raises:
        UserError: no text, or a vocabulary too small for the specials and the alphabet.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if iter(texts) is texts:  # a stream would be spent after the first of several passes
        texts = list(texts)
    if not any(texts):
        raise UserError("no text to train a tokenizer on; check the source_train split")
    if kind == "wordpiece":
        return _wrap(_train_wordpiece(texts, vocab_size))
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


def fast_tokenizer(name: str | Path, **options: Any) -> PreTrainedTokenizerFast:
    """Load any tokenizer by folder, cached name or hub name, as it is; `options` are of transformers' loader.

    A name on the hub may say a revision, OWNER/NAME@REVISION.

    Raises:
        UserError: not found here nor on the hub, it brings code, or it has no fast form.
    """
    folder = Path(name).is_dir()
    if folder:
        check_regular(Path(name))
    where, _, revision = (str(name), "", "") if folder else str(name).partition("@")
    options |= {"revision": revision} if revision else {}
    tokenizer: Any
    refuse_code(where, local_only=True, revision=revision or None)
    try:
        tokenizer = _loader(where, True, revision).from_pretrained(
            where, local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as local:  # transformers raises whatever its parts raise
        if folder:
            raise UserError(f"folder {name} holds no tokenizer that can be loaded ({reason(local)})") from local
        if not hub_reachable():
            raise UserError(
                f"tokenizer {str(name)!r} is not on this disk and {endpoint()} cannot be reached; give a folder, or "
                "set tokenizer.name to null to train one"
            ) from local
        with quiet():
            refuse_code(where, local_only=False, revision=revision or None)
            try:
                tokenizer = _loader(where, False, revision).from_pretrained(where, trust_remote_code=False, **options)
            except Exception as error:
                raise UserError(
                    f"tokenizer {str(name)!r} cannot be loaded ({reason(error)}); give another name"
                ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"tokenizer {str(name)!r} has no fast form (tokenizer.json); give one that has")
    return tokenizer if "gguf_file" in options else _as_written(tokenizer, where, options)


def _as_written(tokenizer: PreTrainedTokenizerFast, name: str, options: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer, which reads a text as its tokenizer.json says.

    transformers' class of a family builds its own out of the vocabulary, as that family has it; a model of the family
    may come with another (Qwen2's weights and Llama's words), and would be handed other tokens than it was trained on.

    Raises:
        UserError: it cannot read a text of any characters.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import cached_file

    here = {"local_files_only": True, "revision": options.get("revision")}
    written = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **here)
    try:
        if written is None or _ids(Tokenizer.from_file(written)) == _ids(tokenizer.backend_tokenizer):
            return tokenizer
    except Exception as error:  # what tokenizers raises has no class of its own
        raise UserError(
            f"tokenizer {name!r} cannot read every text ({reason(error)}); give one that has an unknown token"
        ) from error
    plain: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
        name, **options, local_files_only=True, trust_remote_code=False
    )
    return plain


def _ids(backend: Tokenizer) -> list[int]:
    """Of `PROBE`, whole, whatever the tokenizer cuts or fills up to; it stays as it is."""
    from tokenizers import Tokenizer

    other = Tokenizer.from_str(backend.to_str())
    other.no_truncation()
    other.no_padding()
    return list(other.encode(PROBE, add_special_tokens=False).ids)


def _loader(name: str, local_only: bool, revision: str) -> Any:
    """transformers' class for a tokenizer: that of a model that is read without its code, or whatever its files say."""
    import transformers

    kind = config_beside(name, local_only=local_only, revision=revision or None).get("model_type")
    if kind not in NATIVE:
        return transformers.AutoTokenizer
    whole = (Path(name) / "tokenizer.json").is_file()
    return getattr(transformers, "PreTrainedTokenizerFast" if whole else NATIVE[kind])


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """As `fast_tokenizer`; it is given a mask, a pad and an end where it lacks them.

    A missing mask is the one that the configuration beside it names, else a new id, as a missing pad; a missing end is
    the separator if there is one, else a new id.

    Raises:
        UserError: as `fast_tokenizer`.
    """
    tokenizer = fast_tokenizer(name)
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": _mask_beside(tokenizer, str(name)) or MASK})
    # padding must be told apart from text, so a pad that doubles as end or unknown (a habit with GPT-2) is replaced
    if tokenizer.pad_token is None or tokenizer.pad_token_id in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": tokenizer.sep_token or EOS})
    return tokenizer


def _mask_beside(tokenizer: PreTrainedTokenizerFast, name: str) -> str | None:
    """The token of the mask that a denoiser's configuration names, where the tokenizer does not say what it is for."""
    where, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    index = config_beside(where, local_only=True, revision=revision or None).get("mask_token_id")
    return None if not isinstance(index, int) else cast("str | None", tokenizer.convert_ids_to_tokens(index))


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


@contextmanager
def text_only(tokenizer: PreTrainedTokenizerFast) -> Iterator[Tokenizer]:
    """The tokenizer's core while it takes every string for text: "[MASK]" in an abstract means the word, not the id."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    try:
        yield backend
    finally:
        backend.encode_special_tokens = False


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """A text somebody wrote -> token ids; none of them becomes special by what the text says."""
    with text_only(tokenizer) as backend:
        return list(backend.encode(text, add_special_tokens=False).ids)


def _train_wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    from tokenizers import models, trainers

    blank = _wordpiece(models.WordPiece(unk_token=UNK))
    letters = sorted(set(blank.normalizer.normalize_str("".join(_characters(texts)))) - {" "})
    pieces = [*SPECIALS, *letters, *("##" + letter for letter in letters if letter not in string.punctuation)]
    if len(pieces) > vocab_size:
        raise UserError(
            f"tokenizer vocab_size = {vocab_size} is too small: specials and characters take {len(pieces)}; raise it"
        )
    words = _count_words(blank, texts, enough=vocab_size)
    whole = sorted(set(words) - set(pieces), key=lambda word: (-words[word], word))
    vocab = {piece: index for index, piece in enumerate(chain(pieces, whole))}
    if len(vocab) > vocab_size:
        # the trainer numbers pieces such as "##a" in random order and breaks ties between merges by number; handed over
        # as special tokens they have fixed numbers, and the rebuilt tokenizer does not know them as special
        trainer: Any = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=pieces, show_progress=False)
        blank.train_from_iterator(texts, trainer)
        vocab = blank.get_vocab()
    return _wordpiece(models.WordPiece(vocab, unk_token=UNK))


def _wordpiece(model: Any) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _characters(texts: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    return sorted(seen)


def _count_words(tokenizer: Tokenizer, texts: Iterable[str], enough: int) -> Mapping[str, int]:
    """Counts of pre-tokenised words, or only those of the first texts once more than `enough` differ."""
    counts: Counter[str] = Counter()
    for text in texts:
        pairs = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        counts.update(word for word, _ in pairs)
        if len(counts) > enough:
            break
    return counts


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, mask_token=MASK, eos_token=EOS
    )
