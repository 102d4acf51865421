"""A denoiser of anyone's from its folder or hub name, as a source: whatever its kind, by one function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gtl_lightning.data.checkpoint import checkpoint
from gtl_lightning.networks.adapters.model import ModelDenoiser
from gtl_lightning.sources.hub import opened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
