"""Both tasks of the stage `ar2diff-text`: fine-tuned, written, held against what was wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gtl_lightning.data.tokenizer import decode
from gtl_lightning.evaluation.written import agreement
from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
from gtl_lightning.modules.causal import CausalLMModule
from gtl_lightning.modules.continuation import ContinuationModule, masked, sundae, uniform_nelbo
from gtl_lightning.networks import CausalLM, MaskedDenoiser, UniformDenoiser
from gtl_lightning.networks.given import apart
from gtl_lightning.networks.writing import Drafts, best_of, by_continuing, by_redrawing, by_revealing
from gtl_lightning.studies.ar2diff.corpus import Corpus, turned
from gtl_lightning.studies.ar2diff.settings import AR2Diff, Decoding
from gtl_lightning.studies.ar2diff.study import Row
from gtl_lightning.studies.training import fitted

Kept = Mapping[str, tuple[Any, int, int]]
DRAFTS = 11
"""Stream of random numbers of what is written."""


def task_rows(settings: AR2Diff, corpus: Corpus, kept: Kept, key: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """One row for each task, system and way of writing."""
    text = settings.text
    shape = {"length": text.length, "prefix": text.prefix}
    for given, wanted, pairs in (
        (text.first, text.second, [corpus.train, corpus.val, corpus.test]),
        (text.second, text.first, [turned(part) for part in (corpus.train, corpus.val, corpus.test)]),
    ):
        train, val, test = (corpus.rows(part, **shape) for part in pairs)
        data = corpus.module(list(train), list(val), text.task, seed)
        prefix, target = torch.from_numpy(test).split([text.prefix, text.length - text.prefix], dim=1)
        references = [decode(corpus.tokenizer, row) for row in target]
        for system, (network, causal_steps, steps) in kept.items():
            module = tuned(
                network.trainable_copy(), text.prefix, OptimiserConfig.of(text.task, text.task.lr), text.draws
            )
            name = f"ar2diff-task-{given}-{wanted}-{system}-{seed}".replace(" ", "-").replace(",", "")
            more = dict(key) | {"task": [given, wanted], "system": system}
            result = fitted(name, module, data, text.task, more, seed, __name__)
            base: Row = {
                "part": "task",
                "task": f"{given} -> {wanted}",
                "system": system,
                "seed": seed,
                "causal_steps": causal_steps,
                "n": steps,
                "task_steps": text.task.steps,
                "nats": result.best_score,
            }
            for way, texts in written(module.network, prefix, settings.decoding, target.shape[1], corpus, seed):
                yield base | {"way": way} | vars(agreement(texts, references))


def tuned(network: Any, prefix: int, optimiser: OptimiserConfig, draws: int) -> TrainedModule:
    """The module that learns what follows `prefix` places, by the network's own kind of law."""

    def given(lengths: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(lengths, prefix)

    if isinstance(network, CausalLM):
        return CausalLMModule(network, optimiser, prefix=given)
    own = (sundae, uniform_nelbo) if isinstance(network, UniformDenoiser) else (masked, masked)
    return ContinuationModule(
        network, own[0], scored=own[1], visible=apart(network), prefix=given, optimiser=optimiser, draws=draws
    )


def written(
    network: Any, prefix: Tensor, decoding: Decoding, length: int, corpus: Corpus, seed: int
) -> Iterator[tuple[str, list[str]]]:
    """(way of writing, the texts): a causal model greedily too."""
    network.eval()
    for way, write, samples in ways(network, decoding, length, corpus.end_index, seed):
        found = best_of(write, prefix, samples)
        yield way, [decode(corpus.tokenizer, row) for row in found]


def ways(network: Any, decoding: Decoding, length: int, end_index: int, seed: int) -> Iterator[tuple[str, Drafts, int]]:
    """(name, writer, drafts of which the best is kept)."""
    generator = torch.Generator().manual_seed(1000 * seed + DRAFTS)
    steps, temperature = min(decoding.steps, length), decoding.temperature
    several = f"best of {decoding.samples}"
    if isinstance(network, CausalLM):
        yield "greedy", by_continuing(network, length, temperature=0.0, end_index=end_index), 1
        sampled = by_continuing(network, length, temperature=temperature, end_index=end_index, generator=generator)
        yield several, sampled, decoding.samples
    elif isinstance(network, UniformDenoiser):
        redrawn = by_redrawing(network, length, steps=steps, temperature=temperature, generator=generator)
        yield several, redrawn, decoding.samples
    elif isinstance(network, MaskedDenoiser):
        revealed = by_revealing(network, length, steps=steps, temperature=temperature, generator=generator)
        yield several, revealed, decoding.samples
