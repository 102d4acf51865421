"""LLaDA, Dream, dLLM: decoders that were trained to read both sides, as the classes of transformers that they are.

Their own code is not needed: LLaDA is a Llama under other names, Dream a Qwen2, dLLM's models those that they were made
from (docs/method.md section 5).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from gtl_lightning.errors import UserError
from gtl_lightning.networks.adapters.weights import filled, read_weights
from gtl_lightning.networks.block import seeded
from gtl_lightning.networks.families import FAMILIES, loading, quiet

LLADA, DREAM, DLLM = "llada", "Dream", "a2d-"
BLOCK = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
"""LLaDA's name of a layer in a block -> Llama's."""
OUTSIDE = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
"""LLaDA's name of a layer outside the blocks -> Llama's."""
LLADA_IS = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "rope": True,
    "input_emb_norm": False,
    "scale_logits": False,
    "multi_query_attention": None,
    "clip_qkv": None,
}
"""What a LLaDA's configuration says where it is a Llama; another value is another network."""


def shifted(config: dict[str, Any]) -> bool:
    """Whether a state predicts the token after the one it stands at: Dream's do, and what says so of itself."""
    return config["model_type"] == DREAM or config.get("shift") is True


def sunk(config: dict[str, Any]) -> bool:
    """Whether the start, where one is read, reads itself alone: what says so of itself."""
    return config.get("sink") is True


def native(config: dict[str, Any]) -> str | None:
    """The family of transformers that a model of both sides is of; None for any other."""
    kind = str(config.get("model_type"))
    if kind == LLADA:
        return "llama"
    if kind == DREAM:
        return "qwen2"
    if kind.startswith(DLLM) and kind.removeprefix(DLLM) in FAMILIES:
        return kind.removeprefix(DLLM)
    return kind if kind in FAMILIES and config.get("is_causal") is False else None


def read_decoder(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The model of a folder, in fp32.

    Raises:
        UserError: damaged, shards missing, or a network of another kind than its type says.
    """
    family, state = native(config), read_weights(folder)
    assert family is not None
    if config["model_type"] == LLADA:
        config, state = llada_config(config, folder), {llama_name(name): value for name, value in state.items()}
    settings = _settings(family, config, folder)
    model: nn.Module = filled(FAMILIES[family], settings, state, folder, spare=("rotary_emb.inv_freq",))
    return model


def blank_decoder(sizes: dict[str, Any]) -> nn.Module:
    """A model of a configuration of transformers, its weights at random."""
    import transformers

    with quiet(), seeded(0):
        model: nn.Module = getattr(transformers, FAMILIES[sizes["model_type"]])(
            _settings(sizes["model_type"], sizes, "its configuration")
        )
    return model


def llama_name(name: str) -> str:
    """A weight of LLaDA by Llama's name; one that is none keeps its own.

    >>> llama_name("model.transformer.blocks.3.ff_proj.weight")
    'model.layers.3.mlp.gate_proj.weight'
    """
    found = re.fullmatch(r"model\.transformer\.(?:blocks\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    names = OUTSIDE if found is None or found[1] is None else BLOCK
    if found is None or found[2] not in names:
        return name
    block = "" if found[1] is None else f"model.layers.{found[1]}."
    return f"{block}{names[found[2]]}.{found[3]}"


def llada_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """LLaDA's configuration in Llama's words.

    Raises:
        UserError: a variant that is no Llama, or a size that is missing.
    """
    for key, value in LLADA_IS.items():
        if config.get(key, value) not in (value, None if value is False else value):
            raise UserError(f"{folder} is a LLaDA of {key} {config[key]!r}, which is not read; give one of {value!r}")
    try:
        return {
            "vocab_size": config.get("embedding_size") or config["vocab_size"],
            "hidden_size": config["d_model"],
            "intermediate_size": config["mlp_hidden_size"],
            "num_hidden_layers": config["n_layers"],
            "num_attention_heads": config["n_heads"],
            "num_key_value_heads": config.get("n_kv_heads") or config["n_heads"],
            "max_position_embeddings": config["max_sequence_length"],
            "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
            "rope_theta": config.get("rope_theta", 10000.0),
            "tie_word_embeddings": bool(config.get("weight_tying", False)),
            "attention_bias": bool(config.get("include_qkv_bias") or config.get("include_bias")),
            "mlp_bias": bool(config.get("include_bias")),
        }
    except KeyError as error:
        raise UserError(f"{folder}/config.json says no {error}, which a LLaDA has; give a whole checkpoint") from error


def _settings(family: str, config: dict[str, Any], name: Path | str) -> Any:
    from transformers import CONFIG_MAPPING

    said = {key: value for key, value in config.items() if key not in ("auto_map", "model_type", "architectures")}
    with loading(name), quiet():
        return CONFIG_MAPPING[family].from_dict({**said, "is_causal": False})
