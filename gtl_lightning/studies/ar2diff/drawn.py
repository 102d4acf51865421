"""Texts that each system of the stage `ar2diff-text` draws with nothing given, and their MAUVE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gtl_lightning.data.tokenizer import decode
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.features import load_featurizer
from gtl_lightning.evaluation.mauve import mauve_score
from gtl_lightning.networks import CausalLM, UniformDenoiser
from gtl_lightning.networks.writing import by_continuing, by_redrawing, by_revealing
from gtl_lightning.studies.ar2diff.corpus import Corpus
from gtl_lightning.studies.ar2diff.settings import Texts
from gtl_lightning.studies.ar2diff.study import Row
from gtl_lightning.studies.ar2diff.tasks import Kept

ALONE = 12
"""Stream of random numbers of what is drawn with nothing given."""
REAL = "held-out text"


def drawn_rows(text: Texts, corpus: Corpus, kept: Kept, seed: int) -> Iterator[Row]:
    """MAUVE of each system's texts at temperature 1, one token a step, and of held-out examples beside others.

    Raises:
        UserError: fewer than twice `text.drawn` held-out examples.
    """
    held_out = corpus.examples([*corpus.val, *corpus.test], text.length)
    if len(held_out) < 2 * text.drawn:
        raise UserError(
            f"text.drawn = {text.drawn}: held_out and tested make {len(held_out)} examples, and twice drawn are read; "
            "lower it, or raise them"
        )
    featurizer = load_featurizer()
    real, other = (
        featurizer([decode(corpus.tokenizer, row) for row in held_out[start::2][: text.drawn]]) for start in (0, 1)
    )
    base: Row = {"part": "drawn", "seed": seed, "texts": text.drawn}
    yield base | {"system": REAL, "mauve": mauve_score(other, real).mean}
    for system, (network, *_) in kept.items():
        x = _drawn(network.eval(), text, seed)
        texts = [decode(corpus.tokenizer, row) for row in x]
        yield base | {"system": system, "mauve": mauve_score(featurizer(texts), real).mean}


def _drawn(network: Any, text: Texts, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + ALONE)
    nothing = torch.zeros(text.drawn, 0, dtype=torch.long)
    if isinstance(network, CausalLM):
        return by_continuing(network, text.length, temperature=1.0, generator=generator)(nothing)[0]
    write = by_redrawing if isinstance(network, UniformDenoiser) else by_revealing
    return write(network, text.length, steps=text.length, temperature=1.0, generator=generator)(nothing)[0]
