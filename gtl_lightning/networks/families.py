"""The families of decoders that are read through transformers' own classes; no code that comes with a model is run."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from gtl_lightning.errors import UserError, lacks_memory, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
"""`model_type` of a configuration -> transformers' class."""
_DAMAGE = (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, ArithmeticError, struct.error)
"""What reading a damaged model raises; the last two by heads of no width, and where a GGUF is cut."""
_TABLES = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
"""What older versions wrote beside the weights: the class makes it by itself."""
LORA_TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    **dict.fromkeys(
        ("llama", "qwen2", "qwen3"),
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
}
"""The attention and MLP projections of every block."""


def positions(config: Any) -> int:
    """Tokens, a start counted, that a model reads: those that it has positions for, and no more than its window.

    Where some layers look back a window alone, a longer text would be read through it or past it, as a mask is given
    or not: two networks. Where rotations are stretched for the longest row of a batch (`longrope`), no row is longer
    than those that they are not stretched for: its law would depend on the rows beside it.
    """
    most: int = config.max_position_embeddings
    said = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "longrope" in (said.get("rope_type"), said.get("type")):
        stretched = said.get("original_max_position_embeddings")
        most = min(most, stretched or getattr(config, "original_max_position_embeddings", None) or most)
    return min(most, window(config) or most)


def window(config: Any) -> int | None:
    """Positions that the layers with the least sight look back; None where all see everything."""
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return config.sliding_window if sliding else None


def check_length(length: int, config: Any, shift: bool) -> None:
    """Refuse more tokens than a model reads.

    Raises:
        UserError: naming both numbers.
    """
    most = positions(config) - shift
    if length > most:
        start = " and the start before them" if shift else ""
        what = "of" if positions(config) == config.max_position_embeddings else "that some layers look back in"
        raise UserError(
            f"texts of {length} tokens{start} do not fit the {positions(config)} positions {what} this "
            f"{config.model_type}; use a length of at most {most}"
        )


def read_config(folder: Path | str, gguf: str | None = None) -> Any:
    """The configuration of a causal language model of `FAMILIES`; no code that comes with it.

    Args:
        folder: where its files lie.
        gguf: name of a file in it that is all of it.

    Raises:
        UserError: another kind of model, or a file that cannot be read.
    """
    from transformers import AutoConfig

    with loading(Path(folder) / (gguf or "")):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, gguf_file=gguf)
    family(config.to_dict(), folder)
    return config


def read_model(folder: Path | str, gguf: str | None = None) -> PreTrainedModel:
    """A model of `FAMILIES` in fp32 on the CPU, from safetensors or GGUF. Arguments as in `read_config`.

    Raises:
        UserError: as `read_config`; weights that are damaged, do not fit, are not there, are of another model or hold
            numbers that are not finite.
    """
    import transformers

    config = read_config(folder, gguf)
    cls: Any = getattr(transformers, family(config.to_dict(), folder))
    with loading(Path(folder) / (gguf or "")), quiet():
        model, info = cls.from_pretrained(
            str(folder),
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="sdpa",
            dtype=torch.float32,
            gguf_file=gguf,
            output_loading_info=True,
        )
    check_complete(info, folder, cls.__name__)
    _check_left(info["unexpected_keys"], f"{model.base_model_prefix}.", folder, cls.__name__)
    _check_finite(model, folder)
    # What was read out of quantised weights has none of them: it is written in full.
    vars(model.config).pop("quantization_config", None)
    vars(model).pop("hf_quantizer", None)
    return cast("PreTrainedModel", model.eval())


@contextmanager
def loading(folder: Path | str) -> Iterator[None]:
    """What transformers raises inside is one line that names the folder."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (*_DAMAGE, StrictDataclassError, SafetensorError) as error:
        if lacks_memory(error):
            raise
        if "ignore_mismatched_sizes" in str(error):
            raise UserError(
                f"{folder}: its weights have other shapes than its config.json says (vocabulary, width or depth); "
                "fetch both again, of one revision"
            ) from error
        raise UserError(f"{folder} holds no model that can be loaded ({reason(error)}); give another") from error


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing of what is looked at here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_complete(info: Mapping[str, Collection[str]], folder: Path | str, name: str) -> None:
    """Refuse a model of which transformers would have drawn weights at random.

    Args:
        info: what `from_pretrained` says of its loading.
        folder: where the weights came from.
        name: the class.

    Raises:
        UserError: naming the first of them.
    """
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{folder} lacks weights of a {name} ({missing[0]}, {len(missing)} in all); give it whole, with its head"
        )


def _check_left(keys: Collection[str], own: str, folder: Path | str, name: str) -> None:
    """Refuse weights of the body that the class has no place for: it would compute something else without a word."""
    left = sorted(key for key in keys if key.startswith(own) and not key.endswith(_TABLES))
    if left:
        raise UserError(
            f"{folder} holds weights that a {name} of its config.json has no place for ({left[0]}, {len(left)} in "
            "all); fetch both again, of one revision"
        )


def _check_finite(model: torch.nn.Module, folder: Path | str) -> None:
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise UserError(f"{folder}: {name} holds NaN or infinite numbers; give another checkpoint")


def family(config: dict[str, Any], name: object) -> str:
    """The class of a configuration.

    Raises:
        UserError: an encoder-decoder, or another family.
    """
    kind = config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise UserError(
            f"{name} is an encoder-decoder ({kind}); give a decoder of one of the families {', '.join(FAMILIES)}"
        )
    if kind not in FAMILIES:
        raise UserError(f"{name} is a model of type {kind!r}; give a decoder of one of {', '.join(FAMILIES)}")
    return FAMILIES[kind]
