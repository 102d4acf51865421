"""Between texts and tokens, with the tokenizer that the tokenise stage left."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gtl_lightning.data.recorded import check_tokens
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.paths import TOKENS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast


@cache
def tokenizer(root: Path = Path()) -> PreTrainedTokenizerFast:
    """The tokenizer of tokens/ below `root`.

    Raises:
        UserError: missing, or not the one that was written.
    """
    from gtl_lightning.data.tokenizer import load_tokenizer

    folder = root / TOKENS
    check_tokens(folder, [path.relative_to(folder).as_posix() for path in (folder / "tokenizer").rglob("*")])
    return load_tokenizer(folder / "tokenizer")


def decode_all(sequences: Iterable[Tensor], root: Path = Path()) -> list[str]:
    """Token sequences -> texts."""
    from gtl_lightning.data.tokenizer import decode

    return [decode(tokenizer(root), sequence.tolist()) for sequence in sequences]


def encode_prompt(text: str, corpus: Corpus, root: Path = Path()) -> Tensor:
    """A prompt -> Long[l]; every `[MASK]` in it is one position to fill, all else is text, "[EOS]" included.

    Raises:
        UserError: nothing is left of it after tokenising.
    """
    import torch

    from gtl_lightning.data.tokenizer import encode

    ids: list[int] = []
    for index, part in enumerate(text.split("[MASK]")):
        ids += [corpus.mask_index] if index else []
        ids += encode(tokenizer(root), part)
    if not ids:
        raise UserError(f"--prompt {text!r} holds no token; leave it out for free text")
    return torch.tensor(ids)
