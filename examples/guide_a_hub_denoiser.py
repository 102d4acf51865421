"""Five lines for a denoiser from a hub: load it, load texts, train the ratio, sample with guidance, save.

    python examples/guide_a_hub_denoiser.py
    python examples/guide_a_hub_denoiser.py FOLDER SOURCE.txt TARGET.txt

FOLDER is a checkpoint as transformers saves one (BERT, RoBERTa, ModernBERT, ESM, ...), an MDLM, LLaDA, Dream or dLLM,
or OWNER/NAME of a hub; no code that comes with it is run. The files have a text a line. Without them a tiny BERT is
made first, which somebody trained on words that count upwards; wanted are words that count downwards, of which there
are 90.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gtl_lightning import Guidance, load_denoiser, nelbo, sample, select_gamma, train_ratio

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LENGTH = 8


class Outcome(NamedTuple):
    """What came out.

    Attributes:
        gamma: chosen on validation texts.
        unguided: held-out NELBO of the denoiser, nats a token.
        guided: of the guided denoiser.
        x: guided samples, Long[32,l].
    """

    gamma: float
    unguided: float
    guided: float
    x: Tensor


def five_lines(folder: str, source: list[str], target: list[str], out: Path) -> Outcome:
    """Load, train, sample with guidance, save; what they came to on a quarter of the target texts."""
    half, quarter = len(target) // 2, 3 * len(target) // 4
    wanted, validation, held_out = target[:half], target[half:quarter], target[quarter:]
    read: dict[str, Any] = {"tokenizer": folder, "length": LENGTH}

    denoiser = load_denoiser(folder)
    ratio = train_ratio(denoiser, source, wanted, steps=100, **read)
    gamma = select_gamma(denoiser, ratio, validation, **read).gamma
    guidance = Guidance(ratio, gamma=gamma)
    x = sample(denoiser, batch=32, length=LENGTH, mask_index=denoiser.mask_index, guidance=guidance, generator=seeded())
    ratio.save(out)

    unguided, guided = (nelbo(denoiser, held_out, each, **read).nats_per_token for each in (None, guidance))
    logging.info("gamma %g; held-out NELBO, nats a token: %.3f unguided, %.3f guided", gamma, unguided, guided)
    return Outcome(gamma, unguided, guided, x)


def main(folder: str | None = None, source: str | None = None, target: str | None = None) -> Outcome:
    """The five lines, on what is given or on a model and texts made here."""
    with tempfile.TemporaryDirectory() as made:
        if folder and source and target:
            texts, wanted = (Path(path).read_text().splitlines() for path in (source, target))
            return five_lines(folder, texts, wanted, Path("ratio.safetensors"))
        up, down = counting(300, 1, seeded()), counting(180, -1, seeded())
        tiny_bert(Path(made) / "bert", up)
        return five_lines(f"{made}/bert", up, down, Path(made) / "ratio.safetensors")


def seeded() -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(0)


def counting(count: int, step: int, generator: torch.Generator) -> list[str]:
    """Texts of 7 words; a third of the words is any."""
    first = torch.randint(len(WORDS), (count, 1), generator=generator)
    row = (first + step * torch.arange(LENGTH - 1)) % len(WORDS)
    other = torch.randint(len(WORDS), row.shape, generator=generator)
    row = torch.where(torch.rand(row.shape, generator=generator) < 1 / 3, other, row)
    return [" ".join(WORDS[index] for index in each) for each in row.tolist()]


def tiny_bert(folder: Path, texts: list[str]) -> None:
    """Somebody's model: BertForMaskedLM, 200 steps of a loss at masked words, saved as transformers saves one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    words = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    words.save_pretrained(folder)
    generator = seeded()
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    sizes |= {"vocab_size": len(vocabulary), "max_position_embeddings": LENGTH + 2}
    still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes, **still)
    model = BertForMaskedLM(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.1, generator=generator)
    ids = torch.tensor(words(texts)["input_ids"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        x = ids[torch.randint(len(ids), (64,), generator=generator)]
        masked = (torch.rand(x.shape, generator=generator) < torch.rand(len(x), 1, generator=generator)) & (x > 4)
        logits = model(x.masked_fill(masked, 4)).logits
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits[masked], x[masked]).backward()
        optimiser.step()
    model.save_pretrained(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(*sys.argv[1:])
