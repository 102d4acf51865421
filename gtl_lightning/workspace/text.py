"""Between texts and tokens, with the tokenizer that the tokenise stage left."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gtl_lightning.data.recorded import META, check_tokens
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.paths import TOKENS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast


def tokenizer(root: Path = Path()) -> PreTrainedTokenizerFast:
    """The tokenizer of tokens/ below `root`, read once for as long as its files stay as they are.

    Raises:
        UserError: missing, or not the one that was written.
    """
    folder = (root / TOKENS).absolute()  # the same relative path is another workspace's after a change of folder
    files = sorted(path for path in (folder / META, *(folder / "tokenizer").rglob("*")) if path.is_file())
    stamps = tuple((path, path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino) for path in files)
    return _opened(folder, stamps, root / TOKENS)


@lru_cache(maxsize=1)
def _opened(folder: Path, stamps: tuple[object, ...], shown: Path) -> PreTrainedTokenizerFast:
    from gtl_lightning.data.tokenizer import load_tokenizer

    check_tokens(shown, [path.relative_to(folder).as_posix() for path in (folder / "tokenizer").rglob("*")])
    return load_tokenizer(shown / "tokenizer")


def decode_all(sequences: Iterable[Tensor], root: Path = Path()) -> list[str]:
    """Token sequences -> texts."""
    from gtl_lightning.data.tokenizer import decode

    own = tokenizer(root)
    return [decode(own, sequence.tolist()) for sequence in sequences]


def encode_prompt(text: str, corpus: Corpus, root: Path = Path()) -> Tensor:
    """A prompt -> Long[l]; every `[MASK]` in it is one position to fill, all else is text, "[EOS]" included.

    Raises:
        UserError: nothing is left of it after tokenising.
    """
    import torch

    from gtl_lightning.data.tokenizer import encode

    ids: list[int] = []
    own = tokenizer(root)
    for index, part in enumerate(text.split("[MASK]")):
        ids += [corpus.mask_index] if index else []
        ids += encode(own, part)
    if not ids:
        raise UserError(f"--prompt {text!r} holds no token; leave it out for free text")
    return torch.tensor(ids)
