"""A denoiser of anyone's from its folder or hub name, as a source: whatever its kind, by one function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gtl_lightning.data.checkpoint import checkpoint
from gtl_lightning.data.text_ids import TextIds, check_mask, text_ids
from gtl_lightning.data.tokenizer import fast_tokenizer, load_tokenizer
from gtl_lightning.errors import UserError
from gtl_lightning.networks.adapters.decoders import shifted
from gtl_lightning.networks.adapters.model import ModelDenoiser, Reading
from gtl_lightning.networks.adapters.opening import adapter, read_config
from gtl_lightning.networks.pretrained import NOTE, PretrainedDenoiser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
"""Files that say that a folder has a tokenizer."""


def load_denoiser(
    name: Path | str,
    revision: str | None = None,
    *,
    tokenizer: PreTrainedTokenizerFast | str | None = None,
    shift: bool | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ModelDenoiser:
    """A denoiser in eval mode, a `core.protocols.Source`: it is sampled, guided, fine-tuned and measured as any other.

    It is what `gtl ar2diff` wrote; a masked language model of transformers (BERT, RoBERTa, ModernBERT, ESM, ...); an
    MDLM; a LLaDA, a Dream, a dLLM of Llama, Qwen2 or Qwen3. No code that comes with it is run. Weights are read from
    safetensors; a `pytorch_model.bin` in a folder is opened as tensors alone, and none is fetched.

    Its texts are read by the tokenizer in the same folder: `train_ratio(denoiser, ..., tokenizer=name)`.

    Args:
        name: a folder, or OWNER/NAME of a hub.
        revision: of the hub's: branch, tag or commit; None is what the cache has, else the main branch.
        tokenizer: where the folder has none (MDLM's is gpt2's): its name, its folder, or itself.
        shift: whether a state predicts the token after the one it stands at; None takes what its kind does.
        device: where it goes.
        dtype: of the weights; the law is in fp32 whatever it is.

    Raises:
        UserError: missing, damaged, a causal model, a kind without an adapter, code of its own, no mask token, a
            tokenizer of other ids, a hub that cannot be reached, a revision that it has not.
    """
    found = checkpoint(str(name), revision, pickled=True)
    return opened(found.folder, found.name, tokenizer, shift).to(device, dtype)


load_pretrained = load_denoiser
"""Its name where only `gtl ar2diff` wrote denoisers."""


def opened(
    folder: Path, name: str, tokenizer: PreTrainedTokenizerFast | str | None = None, shift: bool | None = None
) -> ModelDenoiser:
    """The denoiser of a folder, by what its configuration and its tokenizer say.

    Raises:
        UserError: as `load_denoiser`.
    """
    if (folder / NOTE).is_file():
        return PretrainedDenoiser.load(folder)
    config = read_config(folder)
    kind = adapter(config, name)
    ids = _ids(folder, name, config, tokenizer)
    shift = shifted(config) if shift is None else shift
    start = ids.first_index if shift else ids.start_index
    reading = Reading(ids.mask_index, ids.pad_index, start, ids.excluded, shift, ids.end_index, ids.size)
    return kind.open(folder, reading)


def _ids(folder: Path, name: str, config: dict[str, Any], tokenizer: PreTrainedTokenizerFast | str | None) -> TextIds:
    if tokenizer is None and not any((folder / file).is_file() for file in TOKENIZERS):
        raise UserError(f"{name} has no tokenizer of its own; give the one that it was trained with (tokenizer NAME)")
    if tokenizer is None or isinstance(tokenizer, str):
        where = str(folder) if tokenizer is None else tokenizer
        if fast_tokenizer(where).mask_token_id is None:
            check_mask(None, config, name)
        tokenizer = load_tokenizer(where)
    check_mask(tokenizer.mask_token_id, config, name)
    return text_ids(tokenizer)
