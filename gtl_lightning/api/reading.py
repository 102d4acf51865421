"""A person's own texts and denoiser, looked at once: what everything below takes for granted is refused here."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from gtl_lightning.core.callables import called, held
from gtl_lightning.core.guard import Guard, check_ids, tensor_of
from gtl_lightning.core.protocols import Denoiser, Source, check_denoiser, untouched
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.batches import as_sequences
from gtl_lightning.networks import Ids, Plain, ids_of
from gtl_lightning.networks.block import NO_PAD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Texts = Tensor | np.ndarray | Sequence[Tensor] | Sequence[Sequence[int]] | Sequence[str]
"""Token ids Long[n,l], n sequences of ids, or n strings, which take a tokenizer."""


@dataclass(frozen=True)
class Reading:
    """How texts are read: what the ids mean.

    Attributes:
        ids: of the mask, and of the padding (NO_PAD: none).
        tokenizer: for strings.
        length: most tokens of a text; None takes the longest as it is.
    """

    ids: Ids
    tokenizer: PreTrainedTokenizerFast | None
    length: int | None

    @classmethod
    def of(
        cls,
        *known: object,
        tokenizer: PreTrainedTokenizerFast | str | None,
        mask_index: int | None,
        pad_index: int | None,
        length: int | None,
    ) -> Reading:
        """What is given; of the rest, what a denoiser or ratio that is `known` says, then the tokenizer.

        A padding that is the tokenizer's end token too is not taken from it: it would take the ends of texts along.

        Raises:
            UserError: nothing says what the mask is, or the padding is the same id.
        """
        if isinstance(tokenizer, str):
            from gtl_lightning.data.tokenizer import load_tokenizer

            tokenizer = load_tokenizer(tokenizer)
        mask = _first(mask_index, *known, name="mask_index", last=getattr(tokenizer, "mask_token_id", None))
        own, end = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        pad = _first(pad_index, *known, name="pad_index", last=None if own == end else own)
        if mask is None:
            raise UserError("nothing says which id is the mask; give mask_index=...")
        if pad == mask:
            raise UserError(f"mask_index and pad_index are both {mask}, and a mask is no padding; give two ids")
        return cls(Ids(mask, NO_PAD if pad is None else pad), tokenizer, length)

    def read(self, texts: Texts, what: str) -> TokenDataset:
        """The texts as token ids.

        Raises:
            UserError: there are none; one has no token, or more than `length`, or holds the mask; strings without a
                tokenizer, or with one whose padding ends texts too; texts of several lengths without a padding; numbers
                that are no ids.
        """
        if isinstance(texts, Mapping) or not all(hasattr(texts, each) for each in ("__len__", "__getitem__")):
            raise UserError(f"{what} is a {type(texts).__name__}; give a list of texts")
        if isinstance(texts, str) or not len(texts):
            raise UserError(f"{what} {'is one string' if isinstance(texts, str) else 'is empty'}; give a list of texts")
        written = isinstance(texts[0], str)
        rows = self._encoded(texts, what) if written else self._unpadded(texts, what)
        lengths = np.array([len(row) for row in rows])
        if self.length is not None and lengths.max() > self.length:
            raise UserError(f"{what} holds a text of {lengths.max()} tokens; length = {self.length} allows no more")
        if self.ids.pad_index == NO_PAD and len(set(lengths.tolist())) > 1:
            raise UserError(f"{what} holds texts of several lengths; give pad_index=..., which fills up the short ones")
        flat = torch.cat(rows)
        if (flat == self.ids.mask_index).any():
            raise UserError(f"{what} holds the mask, id {self.ids.mask_index}; give finished texts")
        return TokenDataset.from_arrays(flat.numpy(), np.cumsum([0, *lengths]), self.ids.pad_index)

    def _unpadded(self, texts: Any, what: str) -> list[Tensor]:
        pad = self.ids.pad_index
        try:
            rows = self._ids(texts)
            for at, row in enumerate(rows):
                text = (row.long() != pad).nonzero()[:, 0]
                if len(text) and len(text) <= text[-1] - text[0]:
                    raise UserError(f"text {at} holds the padding, id {pad}, within it, from where it would be cut out")
            return as_sequences(rows, pad)
        except UserError as error:
            raise UserError(f"{what}: {error}") from error

    def _ids(self, texts: Any) -> Tensor | list[Tensor]:
        whole = isinstance(texts, Tensor | np.ndarray)
        try:
            rows = [torch.as_tensor(texts)] if whole else [torch.as_tensor(row) for row in texts]
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"it holds what are no token ids ({str(error).splitlines()[0]})") from error
        if any(row.is_floating_point() or row.is_complex() or row.dtype == torch.bool for row in rows if row.numel()):
            raise UserError("it holds numbers that are no token ids; give whole numbers")
        if any(row.dim() != 1 + whole or not row.shape[-1] for row in rows):
            raise UserError("it holds a text without tokens, or is no Long[n,l]; give n sequences of ids")
        return rows[0] if whole else rows

    def _encoded(self, texts: Any, what: str) -> list[Tensor]:
        from gtl_lightning.data.tokens import encode_chunks

        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{what} holds what are neither strings nor token ids; give one kind")
        if self.tokenizer is None:
            raise UserError(f"{what} holds strings; give tokenizer=..., or token ids")
        end = getattr(self.tokenizer, "eos_token_id", None)
        if end is None or getattr(self.tokenizer, "backend_tokenizer", None) is None:
            raise UserError("the tokenizer has no end token, or no fast form; give its folder or name, or token ids")
        pad = self.ids.pad_index
        if end == (self.tokenizer.pad_token_id if pad == NO_PAD else pad):
            raise UserError(
                f"the padding, id {end}, is the tokenizer's end token too, so that the ends of texts would count for "
                "nothing; give a tokenizer with a padding of its own (its name or folder will do), or token ids"
            )
        (rows,) = encode_chunks(self.tokenizer, [list(texts)], self.length or sys.maxsize, end)
        return [torch.tensor(row) for row in rows]


def as_source(denoiser: Denoiser, ids: Ids, length: int) -> Source:
    """The denoiser as what trains and reads it takes it, tried on two texts of `length` masks.

    Raises:
        UserError: it is no function; gives another shape than Float[b,l,v], NaN or infinity; names another mask as its
            own; the mask or the padding is none of its ids, or the padding not the `Source`'s own.
    """
    check_denoiser(denoiser)
    guard = Guard(ids.mask_index, denoiser)
    home = device_of(denoiser)
    x_t = torch.full((2, length), ids.mask_index, device=home)
    with torch.no_grad(), guard.run():
        try:
            output = untouched(cast(Any, denoiser), x_t, torch.ones(2, device=home))
        except IndexError as error:
            raise UserError(
                f"the {called(denoiser, 'denoiser')} refuses mask_index = {ids.mask_index} "
                f"({str(error).splitlines()[0]}); it must be one of its ids"
            ) from error
        logits = tensor_of(output, (2, length, "v"), denoiser, "denoiser")
        guard.law(logits)
    vocab_size = logits.shape[-1]
    if ids.pad_index != NO_PAD and not 0 <= ids.pad_index < vocab_size:
        raise UserError(f"pad_index = {ids.pad_index} is no id of the denoiser's {vocab_size} tokens")
    if isinstance(denoiser, torch.nn.Module) and isinstance(denoiser, Source):
        if ids.pad_index not in (NO_PAD, ids_of(denoiser).pad_index):
            own = getattr(denoiser, "pad_index", None)
            raise UserError(f"pad_index = {ids.pad_index}, but that of the {called(denoiser, 'denoiser')} is {own}")
        return denoiser
    return Plain(denoiser, ids, vocab_size)


def check_pair(source: TokenDataset, target: TokenDataset) -> None:
    """Refuse texts that are not of two domains.

    Raises:
        UserError: the same texts on both sides.
    """
    # Each as often, not just the same ones: short texts of two domains may well be the same.
    if Counter(tuple(row.tolist()) for row in source) == Counter(tuple(row.tolist()) for row in target):
        raise UserError("source_texts and target_texts are the same texts, so their ratio is 1; give two domains")


def check_batches(vocab_size: int, **texts: TokenDataset) -> None:
    """Refuse texts that cannot stand in one batch, each by its name.

    Raises:
        UserError: an id outside the vocabulary, or two lengths without a padding.
    """
    for name, each in texts.items():
        check_ids(each.flat, vocab_size, name)
    if len({int(each.lengths[0]) for each in texts.values() if each.pad_index == NO_PAD}) > 1:
        raise UserError(f"{' and '.join(texts)} differ in length; give pad_index=..., which fills up the short ones")


def held_out_of(texts: TokenDataset, share: float, seed: int, what: str) -> tuple[TokenDataset, TokenDataset]:
    """(texts to train on, a share of them to be selected on, at least one), at random.

    Raises:
        UserError: there is but one.
    """
    if len(texts) < 2:
        raise UserError(f"{what} is one text; give at least 2, so that one can be held out")
    order = np.random.default_rng(seed).permutation(len(texts))
    count = max(1, round(share * len(texts)))
    return texts.take(order[count:]), texts.take(order[:count])


def device_of(network: object) -> torch.device:
    """Where the weights lie of the module that a callable is or holds; the processor where there are none."""
    weights = (weight for module in held(network) for weight in (*module.parameters(), *module.buffers()))
    return next((weight.device for weight in weights), torch.device("cpu"))


def _first(given: int | None, *known: object, name: str, last: int | None) -> int | None:
    found = [given, *(getattr(one, name, None) for one in known), last]
    value = next((value for value in found if value is not None), None)
    if value is not None and not (isinstance(value, int) and value >= 0):
        raise UserError(f"{name} = {value!r} is no token id; give a whole number of at least 0")
    return value
