"""What a large denoiser of other people takes: memory and seconds to open it, to train a ratio beside it, to guide it.

`python -m gtl_lightning.bench.large FOLDER` writes a LLaDA of 1.0 B random weights there, in bf16 and in shards, and
logs what it took. Nothing of it is any good: only its size is that of a model.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from gtl_lightning.networks.adapters.decoders import BLOCK, LLADA, OUTSIDE
from gtl_lightning.resources import peak_resident

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Size:
    """Of a LLaDA; the default has 1.0 B weights, LLaDA-8B's vocabulary and a quarter of its width and depth.

    Attributes:
        width: of the hidden states.
        inner: width of the gated MLP.
        blocks: of the transformer.
        heads: of the attention.
        rows: of the embedding, and of the output, which is another.
        mask: id of the mask; the tokenizer has as many words before it.
        shards: files.
    """

    width: int = 2048
    inner: int = 6144
    blocks: int = 9
    heads: int = 16
    rows: int = 126_464
    mask: int = 126_336
    shards: int = 5


def random_llada(folder: Path, size: Size | None = None) -> int:
    """A checkpoint in LLaDA's published layout, with a tokenizer of words w0, w1, ...; how many weights it has."""
    from safetensors.torch import save_file

    size = size or Size()
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    names, count = list(_shapes(size)), 0
    weight_map: dict[str, str] = {}
    for shard, part in groupby(enumerate(names), lambda each: each[0] * size.shards // len(names)):
        file, weights = f"model-{shard + 1:05d}-of-{size.shards:05d}.safetensors", {}
        for _, (name, shape) in part:
            drawn = torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=generator)
            weights[name], weight_map[name] = drawn.bfloat16(), file
            count += drawn.numel()
        save_file(weights, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "model_type": LLADA,
        "d_model": size.width,
        "mlp_hidden_size": size.inner,
        "n_layers": size.blocks,
        "n_heads": size.heads,
        "vocab_size": size.rows,
        "embedding_size": size.rows,
        "max_sequence_length": 4096,
        "rope_theta": 500_000.0,
        "mask_token_id": size.mask,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _tokenizer(folder, size)
    return count


def measured(folder: Path, size: Size, texts: int = 24, length: int = 48, batch: int = 4) -> dict[str, float]:
    """Open it in bf16, train `gtl-head` for one step, draw two guided texts.

    Returns:
        GiB that the process had resident at most until then, and seconds of processor time: `open_gib`, `open_seconds`,
        and likewise `step_...`, `sample_...`.
    """
    from gtl_lightning import Guidance, TokenRatio, load_denoiser, sample, train_ratio

    found: dict[str, float] = {}
    start = time.process_time()

    def done(part: str) -> None:
        nonlocal start
        # A training measures its own peak, for which the process's is set back.
        most = max(peak_resident() / 2**30, *(value for key, value in found.items() if key.endswith("_gib")), 0.0)
        found[f"{part}_gib"], found[f"{part}_seconds"] = most, time.process_time() - start
        start = time.process_time()

    denoiser = load_denoiser(folder, dtype=torch.bfloat16)
    done("open")
    generator, half = torch.Generator().manual_seed(0), size.mask // 2
    source = 2 + torch.randint(half - 2, (texts, length), generator=generator)
    target = half + torch.randint(half, (texts, length), generator=generator)
    trained = train_ratio(
        denoiser,
        source,
        target[batch:],
        held_out=target[:batch],
        length=length,
        batch=batch,
        steps=1,
        check_every=1,
        progress=False,
        accelerator="cpu",
    )
    done("step")
    guidance = Guidance(TokenRatio(trained.network))
    mask = denoiser.mask_index
    sample(denoiser, batch=2, length=length, mask_index=mask, positions_per_step=8, guidance=guidance)
    done("sample")
    return found


def _shapes(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    wide, prefix = (size.inner, size.width), "model.transformer."
    shapes = {"attn_norm": (size.width,), "ff_norm": (size.width,), "ff_proj": wide, "up_proj": wide}
    shapes["ff_out"] = (size.width, size.inner)
    for block in range(size.blocks):
        for name in BLOCK:
            yield f"{prefix}blocks.{block}.{name}.weight", shapes.get(name, (size.width, size.width))
    for name in OUTSIDE:
        yield f"{prefix}{name}.weight", (size.width,) if name == "ln_f" else (size.rows, size.width)


def _tokenizer(folder: Path, size: Size) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<end>", *(f"w{index}" for index in range(size.mask - 2)), "<mask>"]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", pad_token="<end>")
    made.add_special_tokens({"additional_special_tokens": ["<mask>"]})
    made.save_pretrained(folder)


def main() -> None:
    """Write the checkpoint that the command names, and measure it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = Path(sys.argv[1])
    log.info("%.3f B weights", random_llada(folder) / 1e9)
    log.info(", ".join(f"{name} {value:.2f}" for name, value in measured(folder, Size()).items()))


if __name__ == "__main__":
    main()
