"""Tiny checkpoints with random weights in the layouts that others publish, and plain forward passes of each."""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from gtl_lightning.data.tokens import read_texts
from gtl_lightning.networks import seeded
from gtl_lightning.networks.adapters.masked_lm import masked_lms
from tests.pretrained_kit import SMALL

ROWS = 40
WORDS = [f"w{index}" for index in range(24)]
CODE = "from pathlib import Path\nPath({path!r}).touch()\n"


def random(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights of these shapes; norms near one."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: 1 + value if "norm" in name.lower() and "bias" not in name else value for name, value in made.items()}


def tokenizer(
    special: dict[str, str], *ends: str, at: dict[int, str] | None = None, words: list[str] = WORDS
) -> PreTrainedTokenizerFast:
    """Words at blanks; specials first, in order; `ends` are put around a text; `at` names tokens of given ids."""
    tokens = dict(enumerate([*dict.fromkeys(special.values()), *words])) | (at or {})
    vocabulary = {token: index for index, token in tokens.items()}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        front, behind = ends
        backend.post_processor = processors.TemplateProcessing(
            single=f"{front} $A {behind}", special_tokens=[(token, vocabulary[token]) for token in ends]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    if at:
        made.add_special_tokens({"additional_special_tokens": list(at.values())})
    return made


BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def words_of(splits: Path) -> list[str]:
    """Every word of the splits' texts."""
    texts = chain.from_iterable(chain.from_iterable(map(read_texts, sorted(splits.glob("*.parquet")))))
    return sorted(set(chain.from_iterable(text.split() for text in texts)))


def in_words(splits: Path) -> None:
    """Write the texts of the splits anew in `WORDS`, a word for each."""
    for path in splits.glob("*.parquet"):
        table = pq.read_table(path)
        texts = [
            " ".join(WORDS[sum(map(ord, word)) % len(WORDS)] for word in text.split())
            for text in table["text"].to_pylist()
        ]
        pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", pa.array(texts)), path)


def bert(folder: Path, kind: str = "bert", words: list[str] = WORDS, **changed: Any) -> Any:
    """A masked language model as transformers saves one, with its tokenizer; the model."""
    size = {
        **SMALL,
        "embedding_size": 16,
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 2,
        "n_heads": 2,
        "type_vocab_size": 2,
    }
    config_class: Any = transformers.CONFIG_MAPPING[kind]
    had = config_class().to_dict()
    ids = {
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "mask_token_id": 4,
    }
    own = {key: value for key, value in {**size, **ids}.items() if key in had}
    rows = max(ROWS, len(BERT) + len(words))
    config = config_class(**{**own, "vocab_size": rows, **changed})
    with seeded(0):
        model = getattr(transformers, masked_lms()[kind])(config).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    tokenizer(BERT, "[CLS]", "[SEP]", words=words).save_pretrained(folder)
    return model


def publish(
    folder: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    words: PreTrainedTokenizerFast | None,
    shards: int = 1,
) -> Path:
    """A checkpoint with code of its own, which leaves a file if it is run; in several files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    code = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForMaskedLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    (folder / "own.py").write_text(CODE.format(path=str(folder.parent / "executed")))
    names = sorted(weights)
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
    else:
        files = {
            name: f"model-{index % shards + 1:05d}-of-{shards:05d}.safetensors" for index, name in enumerate(names)
        }
        for file in set(files.values()):
            save_file({name: weights[name] for name in names if files[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    if words is not None:
        words.save_pretrained(folder)
    return folder


# LLaDA, Dream, dLLM: one decoder block under two sets of names

D, HEADS, KV, BLOCKS, WIDE = 16, 4, 2, 2, 24


def decoder_shapes(
    names: dict[str, str], prefix: str, head: int, kv: int, biased: bool, normed: bool
) -> dict[str, tuple[int, ...]]:
    """Of the weights of the blocks, by their published names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(BLOCKS):
        at = f"{prefix}{block}."
        for part, rows in (("q", HEADS * head), ("k", kv * head), ("v", kv * head)):
            shapes[f"{at}{names[part]}.weight"] = (rows, D)
            if biased:
                shapes[f"{at}{names[part]}.bias"] = (rows,)
        shapes |= {f"{at}{names['o']}.weight": (D, HEADS * head)}
        shapes |= {f"{at}{names[part]}.weight": (D,) for part in ("norm1", "norm2")}
        shapes |= {
            f"{at}{names['gate']}.weight": (WIDE, D),
            f"{at}{names['up']}.weight": (WIDE, D),
            f"{at}{names['down']}.weight": (D, WIDE),
        }
        if normed:
            shapes |= {f"{at}{names[part]}.weight": (head,) for part in ("qnorm", "knorm")}
    return shapes


LLADA_NAMES = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "attn_out",
    "norm1": "attn_norm",
    "norm2": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}
QWEN_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "qnorm": "self_attn.q_norm",
    "knorm": "self_attn.k_norm",
}


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotary(x: Tensor, theta: float) -> Tensor:
    """Float[l,heads,d] turned by halves."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Float[l,heads,d] each, every position reads all."""
    score = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hij,jhd->ihd", score.softmax(-1), v).flatten(1)


def decoder(
    ids: Tensor,
    weights: dict[str, Tensor],
    names: dict[str, str],
    prefix: str,
    outside: tuple[str, str, str],
    theta: float,
    eps: float,
) -> Tensor:
    """Long[l] -> logits Float[l,v] of a bidirectional Llama, Qwen2 or Qwen3, by the published names of its weights."""
    embedding, last, output = outside
    x = weights[embedding][ids]
    for block in range(BLOCKS):

        def weight(part: str, kind: str = "weight", at: str = f"{prefix}{block}.") -> Tensor | None:
            return weights.get(f"{at}{names.get(part, part)}.{kind}")

        y = rms(x, weight("norm1"), eps)
        q, k, v = (F.linear(y, weight(part), weight(part, "bias")).unflatten(-1, (-1, D // HEADS)) for part in "qkv")
        if weight("qnorm") is not None:
            q, k = rms(q, weight("qnorm"), eps), rms(k, weight("knorm"), eps)
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        x = x + F.linear(attention(rotary(q, theta), rotary(k, theta), v), weight("o"))
        y = rms(x, weight("norm2"), eps)
        x = x + F.linear(F.silu(F.linear(y, weight("gate"))) * F.linear(y, weight("up")), weight("down"))
    return F.linear(rms(x, weights[last], eps), weights[output])


def llada(folder: Path, **changed: Any) -> tuple[dict[str, Tensor], Any]:
    """A LLaDA; its weights and its reference. Two rows more than the tokenizer has; its padding is its end."""
    prefix, outside = (
        "model.transformer.blocks.",
        tuple(f"model.transformer.{name}.weight" for name in ("wte", "ln_f", "ff_out")),
    )
    shapes = decoder_shapes(LLADA_NAMES, prefix, D // HEADS, HEADS, biased=False, normed=False)
    shapes |= {outside[0]: (ROWS, D), outside[1]: (D,), outside[2]: (ROWS, D)}
    weights = random(shapes)
    config = {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "d_model": D,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "n_layers": BLOCKS,
        "mlp_hidden_size": WIDE,
        "max_sequence_length": 24,
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-5,
        "vocab_size": ROWS,
        "embedding_size": ROWS,
        "mask_token_id": 26,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "block_type": "llama",
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "weight_tying": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "alibi": False,
        "rope": True,
        "attention_layer_norm": False,
        "input_emb_norm": False,
        "scale_logits": False,
        "multi_query_attention": None,
        **changed,
    }
    words = tokenizer({"unk_token": "<unk>", "eos_token": "<end>", "pad_token": "<end>"}, at={26: "<mask>"})
    publish(folder, config, weights, words, shards=2)
    return weights, lambda ids: decoder(ids, weights, LLADA_NAMES, prefix, outside, 500.0, 1e-5)


def qwen(folder: Path, kind: str) -> tuple[dict[str, Tensor], Any]:
    """A Dream (Qwen2) or dLLM's Qwen3; its weights and its reference, which are both without shift."""
    dream, prefix = kind == "Dream", "model.layers."
    outside = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    shapes = decoder_shapes(QWEN_NAMES, prefix, D // HEADS, KV, biased=dream, normed=not dream)
    shapes |= {outside[0]: (ROWS, D), outside[1]: (D,), outside[2]: (ROWS, D)}
    weights = random(shapes, seed=1)
    config = {
        "model_type": kind,
        "hidden_size": D,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "num_hidden_layers": BLOCKS,
        "intermediate_size": WIDE,
        "max_position_embeddings": 24,
        "rope_theta": 700.0,
        "rms_norm_eps": 1e-6,
        "vocab_size": ROWS,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        **(
            {"mask_token_id": 26, "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}
            if dream
            else {"head_dim": D // HEADS}
        ),
    }
    named = {"unk_token": "<unk>", "eos_token": "<end>", "pad_token": "<end>" if dream else "<pad>"}
    words = tokenizer({**named, **({} if dream else {"mask_token": "<|mask|>"})}, at={26: "<mask>"} if dream else None)
    publish(folder, config, weights, words)
    return weights, lambda ids: decoder(ids, weights, QWEN_NAMES, prefix, outside, 700.0, 1e-6)


def mdlm(folder: Path, time_conditioning: bool = False) -> tuple[dict[str, Tensor], Any]:
    """An MDLM, whose tokenizer lies elsewhere and has neither mask nor padding (`folder`-words); its reference."""
    words = tokenizer({"unk_token": "<unk>", "eos_token": "<end>"})
    rows, cond = len(words) + 1, 8
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (rows, D),
        "sigma_map.mlp.0.weight": (cond, 256),
        "sigma_map.mlp.0.bias": (cond,),
        "sigma_map.mlp.2.weight": (cond, cond),
        "sigma_map.mlp.2.bias": (cond,),
        "rotary_emb.inv_freq": (2,),
        "output_layer.norm_final.weight": (D,),
        "output_layer.linear.weight": (rows, D),
        "output_layer.linear.bias": (rows,),
        "output_layer.adaLN_modulation.weight": (2 * D, cond),
        "output_layer.adaLN_modulation.bias": (2 * D,),
    }
    for block in range(BLOCKS):
        shapes |= {
            f"blocks.{block}.{name}": shape
            for name, shape in {
                "norm1.weight": (D,),
                "norm2.weight": (D,),
                "attn_qkv.weight": (3 * D, D),
                "attn_out.weight": (D, D),
                "mlp.0.weight": (4 * D, D),
                "mlp.0.bias": (4 * D,),
                "mlp.2.weight": (D, 4 * D),
                "mlp.2.bias": (D,),
                "adaLN_modulation.weight": (6 * D, cond),
                "adaLN_modulation.bias": (6 * D,),
            }.items()
        }
    weights = random({f"backbone.{name}": shape for name, shape in shapes.items()}, seed=2)
    config = {
        "model_type": "mdlm",
        "vocab_size": rows,
        "model_length": 24,
        "hidden_dim": D,
        "cond_dim": cond,
        "n_blocks": BLOCKS,
        "n_heads": HEADS,
        "dropout": 0.1,
        "time_conditioning": time_conditioning,
        "return_dict": False,
    }
    publish(folder, config, weights, None)
    words.save_pretrained(f"{folder}-words")

    def logits(ids: Tensor, sigma: float = 0.0) -> Tensor:
        w = {name.removeprefix("backbone."): value for name, value in weights.items()}
        rates = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        wave = torch.cat([(sigma * rates).cos(), (sigma * rates).sin()])
        c = F.silu(
            F.linear(
                F.silu(F.linear(wave, w["sigma_map.mlp.0.weight"], w["sigma_map.mlp.0.bias"])),
                w["sigma_map.mlp.2.weight"],
                w["sigma_map.mlp.2.bias"],
            )
        )

        def norm(x: Tensor, name: str) -> Tensor:
            x = x - x.mean(-1, keepdim=True)
            return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name]

        def condition(name: str, parts: int) -> tuple[Tensor, ...]:
            return F.linear(c, w[f"{name}.adaLN_modulation.weight"], w[f"{name}.adaLN_modulation.bias"]).chunk(parts)

        x = w["vocab_embed.embedding"][ids]
        for block in range(BLOCKS):
            at = f"blocks.{block}"
            shift, scale, gate, shift2, scale2, gate2 = condition(at, 6)
            y = norm(x, f"{at}.norm1.weight") * (1 + scale) + shift
            q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in F.linear(y, w[f"{at}.attn_qkv.weight"]).chunk(3, -1))
            x = x + gate * F.linear(attention(rotary(q, 10000.0), rotary(k, 10000.0), v), w[f"{at}.attn_out.weight"])
            y = norm(x, f"{at}.norm2.weight") * (1 + scale2) + shift2
            y = F.gelu(F.linear(y, w[f"{at}.mlp.0.weight"], w[f"{at}.mlp.0.bias"]), approximate="tanh")
            x = x + gate2 * F.linear(y, w[f"{at}.mlp.2.weight"], w[f"{at}.mlp.2.bias"])
        shift, scale = condition("output_layer", 2)
        x = norm(x, "output_layer.norm_final.weight") * (1 + scale) + shift
        return F.linear(x, w["output_layer.linear.weight"], w["output_layer.linear.bias"])

    return weights, logits


def plain_bert(ids: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Long[l] -> logits Float[l,v] of a BERT of two heads."""

    def at(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return (
            x / (x.square().mean(-1, keepdim=True) + 1e-12).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        )

    where = "bert.embeddings."
    x = weights[f"{where}word_embeddings.weight"][ids] + weights[f"{where}token_type_embeddings.weight"][0]
    x = norm(f"{where}LayerNorm", x + weights[f"{where}position_embeddings.weight"][: len(ids)])
    for layer in range(2):
        name = f"bert.encoder.layer.{layer}"
        q, k, v = (at(f"{name}.attention.self.{part}", x).unflatten(-1, (2, -1)) for part in ("query", "key", "value"))
        x = norm(f"{name}.attention.output.LayerNorm", x + at(f"{name}.attention.output.dense", attention(q, k, v)))
        x = norm(
            f"{name}.output.LayerNorm", x + at(f"{name}.output.dense", F.gelu(at(f"{name}.intermediate.dense", x)))
        )
    x = norm("cls.predictions.transform.LayerNorm", F.gelu(at("cls.predictions.transform.dense", x)))
    return F.linear(x, weights[f"{where}word_embeddings.weight"], weights["cls.predictions.bias"])
