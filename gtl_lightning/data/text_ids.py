"""What the ids of a denoiser's tokenizer are for: what is never predicted, what stands around a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gtl_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TextIds:
    """The ids of a tokenizer that has a mask, a padding and an end (`load_tokenizer`).

    Attributes:
        mask_index: of the mask.
        pad_index: of the padding.
        start_index: of what the tokenizer puts before a text; None where it puts nothing.
        end_index: of what it puts behind one.
        first_index: of what a model that predicts the token after each reads before the first: a start, else an end.
        excluded: ids that no text has, mask and padding apart; the end and the unknown token are of texts.
        size: ids that there are, the highest and one.
    """

    mask_index: int
    pad_index: int
    start_index: int | None
    end_index: int | None
    first_index: int
    excluded: tuple[int, ...]
    size: int


def text_ids(tokenizer: PreTrainedTokenizerFast) -> TextIds:
    """What a tokenizer says of its ids, and does to a text."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    known, size = set(vocabulary.values()), max(vocabulary.values()) + 1
    backend = tokenizer.backend_tokenizer
    word = next(word for word in ("a", *sorted(vocabulary)) if backend.encode(word, add_special_tokens=False).ids)
    bare, whole = (backend.encode(word, add_special_tokens=around).ids for around in (False, True))
    at = next((at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), 0)
    front, behind = whole[:at], whole[at + len(bare) :]
    special = {*tokenizer.all_special_ids, *_added(tokenizer)}
    mask: Any = tokenizer.mask_token_id
    pad: Any = tokenizer.pad_token_id
    never = special | {index for index in range(size) if index not in known}
    excluded = sorted(never - {tokenizer.eos_token_id, tokenizer.unk_token_id, mask, pad})
    start = front[-1] if front else None
    first: Any = start if start is not None else tokenizer.bos_token_id
    if first is None:
        first = tokenizer.eos_token_id
    return TextIds(mask, pad, start, behind[0] if behind else None, first, tuple(excluded), size)


def check_mask(said: int | None, config: dict[str, Any], name: object) -> None:
    """Refuse a denoiser without a mask, or whose configuration has another than its tokenizer, which `said` its own.

    Raises:
        UserError: saying which ids they have.
    """
    own = config.get("mask_token_id")
    if config.get("model_type") == "mdlm":
        own = config["vocab_size"] - 1
    if said is None and own is None:
        raise UserError(f"{name} has no mask token, in its tokenizer or its configuration; give a masked denoiser")
    if said is not None and own is not None and said != own:
        raise UserError(
            f"{name}: its tokenizer and its rows disagree: the mask is id {said} of the one, {own} of the other; give "
            "the tokenizer that belongs to it"
        )


def _added(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
