"""The stage `ar2diff-speed`: time of decoding against length, causal and by diffusion, with quality beside it.

One causal model learns to write the first field behind the second, at all lengths; a denoiser starts from it. Both pass
over what is given once; a causal model's step then is one position, a denoiser's the whole text.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gtl_lightning.data.pairs import Pair
from gtl_lightning.data.tokenizer import decode
from gtl_lightning.evaluation.written import agreement
from gtl_lightning.files import write_json
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.networks import CausalLM, MaskedDenoiser, seeded
from gtl_lightning.networks.writing import Drafts, by_continuing, by_revealing
from gtl_lightning.studies.ar2diff.corpus import Corpus, turned
from gtl_lightning.studies.ar2diff.settings import AR2Diff
from gtl_lightning.studies.ar2diff.study import SPEED, Row
from gtl_lightning.studies.ar2diff.tasks import tuned
from gtl_lightning.studies.training import fitted
from gtl_lightning.workspace.paths import log

CAUSAL = "AR"


def measure_speed(settings: AR2Diff) -> None:
    """ar2diff/speed.json: quality and processor seconds of one thread; one repetition, in this process.

    Raises:
        UserError: as `measure_text`.
    """
    write_json(SPEED, speed_rows(settings))
    log.info("ar2diff speed: %s", SPEED)


def speed_rows(settings: AR2Diff) -> list[Row]:
    """One row for each way of writing and length, and one for each number of texts that are written together."""
    text, speed, seed = settings.text, settings.speed, settings.seeds[0]
    torch.set_num_threads(1)
    corpus = Corpus.open(text)
    causal, denoiser = _trained(settings, corpus, seed)
    rows = []
    for length in speed.lengths:
        shape = {"length": speed.prefix + length, "prefix": speed.prefix}
        test = torch.from_numpy(corpus.rows(turned(corpus.test)[: speed.tested], **shape))
        prefix, target = test.split([speed.prefix, length], dim=1)
        references = [decode(corpus.tokenizer, row) for row in target]
        for way, steps, write in _ways(settings, causal, denoiser, length):
            base: Row = {"part": "speed", "way": way, "length": length, "steps": steps, "seed": seed}
            texts = [decode(corpus.tokenizer, row) for row in write(prefix)[0]]
            rows.append(base | {"batch": None, "seconds": None} | vars(agreement(texts, references)))
            for batch in speed.batches:
                some = prefix.repeat(-(-batch // len(prefix)), 1)[:batch]
                rows.append(base | {"batch": batch, "seconds": _quickest(write, some, speed.repeats)})
    return rows


def _ways(settings: AR2Diff, causal: CausalLM, denoiser: MaskedDenoiser, length: int) -> list[tuple[str, int, Drafts]]:
    """(name, passes, writer); the causal model writes on to the last token, so that its time is that of the length."""
    temperature = settings.decoding.temperature

    def drawn() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    found = [(CAUSAL, length, by_continuing(causal, length, temperature=temperature, generator=drawn()))]
    for steps in settings.speed.steps:
        if steps <= length:
            write = by_revealing(denoiser, length, steps=steps, temperature=temperature, generator=drawn())
            found.append((f"diffusion, {steps} steps", steps, write))
    return found


def _quickest(write: Drafts, prefix: Tensor, repeats: int) -> float:
    """Processor seconds: what runs beside it does not count."""
    write(prefix)
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        write(prefix)
        seconds.append(time.process_time() - began)
    return min(seconds)


def _trained(settings: AR2Diff, corpus: Corpus, seed: int) -> tuple[CausalLM, MaskedDenoiser]:
    text, speed = settings.text, settings.speed
    size = corpus.backbone(text, speed.prefix + max(speed.lengths))
    train, val = (_of_all_lengths(corpus, turned(part), settings) for part in (corpus.train, corpus.val))
    data = corpus.module(train, val, speed.training, seed)
    optimiser = OptimiserConfig.of(speed.training, speed.training.lr)
    key: dict[str, Any] = {"text": text.model_dump(mode="json"), "speed": speed.model_dump(mode="json")}
    key["data"] = corpus.fingerprint
    with seeded(seed):
        causal = CausalLM(size)
    for name in ("causal", "diffusion"):
        network: Any = causal if name == "causal" else MaskedDenoiser.from_causal(causal)
        module = tuned(network, speed.prefix, optimiser, text.draws)
        fitted(f"ar2diff-speed-{name}-{seed}", module, data, speed.training, key | {"name": name}, seed, __name__)
    return causal.eval(), network.eval()


def _of_all_lengths(corpus: Corpus, pairs: list[Pair], settings: AR2Diff) -> list[NDArray[np.int64]]:
    """Each record at one of the lengths in turn."""
    speed = settings.speed
    found: list[NDArray[np.int64]] = []
    for index, length in enumerate(speed.lengths):
        some = pairs[index :: len(speed.lengths)]
        found += list(corpus.rows(some, length=speed.prefix + length, prefix=speed.prefix))
    return found
