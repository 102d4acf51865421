"""Tiny decoders of the four families with random weights, and a tokenizer for them, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gtl_lightning.networks import seeded
from gtl_lightning.networks.adapters.model import Reading
from gtl_lightning.networks.families import FAMILIES
from gtl_lightning.networks.pretrained import PretrainedDenoiser

ROWS, POSITIONS = 40, 24
WORDS = [f"w{index}" for index in range(ROWS - 8)]
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}


ENDS = {"bos_token_id": 1, "eos_token_id": 1}


def decoder(kind: str, rows: int = ROWS, seed: int = 0, **changed: Any) -> Any:
    """A model of `kind` in eval mode; weights large enough that positions differ."""
    names = {"gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS, **ENDS})}
    more = {"qwen3": {"head_dim": 8}}.get(kind, {})
    own = {**SMALL, **ENDS, "num_key_value_heads": 1, **more}
    config_name, size = names.get(kind, (f"{kind.capitalize()}Config", own))
    config = getattr(transformers, config_name)(vocab_size=rows, initializer_range=0.3, **{**size, **changed})
    with seeded(seed):
        return getattr(transformers, FAMILIES[kind])(config).eval()


def tokenizer(*special: str, words: list[str] = WORDS, **named: str) -> PreTrainedTokenizerFast:
    """Words at blanks; `<unk>` and `<end>`, then `special` tokens, then the words."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<end>", *special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", **named)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def folder(path: Path, kind: str = "llama", *special: str, rows: int = ROWS, **changed: Any) -> Path:
    """A checkpoint with both, as others publish theirs."""
    decoder(kind, rows, **changed).save_pretrained(path)
    tokenizer(*special).save_pretrained(path)
    return path


MASK, PAD, START = ROWS - 1, ROWS - 2, 1


def denoiser(
    kind: str, shift: bool = True, excluded: tuple[int, ...] = (0,), *, sink: bool = False, **changed: Any
) -> PretrainedDenoiser:
    """Of such a decoder."""
    reading = Reading(MASK, PAD, START, excluded, shift, sink=sink)
    return PretrainedDenoiser(decoder(kind, **changed), reading).eval()


def texts(count: int = 3, length: int = 7, seed: int = 0) -> torch.Tensor:
    """Long[count, length] of tokens that are neither special nor excluded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, PAD, (count, length), generator=generator)
