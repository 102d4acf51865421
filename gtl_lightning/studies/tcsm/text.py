"""The stage `tcsm-text`: objective by noise on characters of abstracts, at equal steps (docs/method.md 3.1, 3.2).

27 characters as in text8: the letters in lower case, everything between them one blank. Absorbing noise goes through
the kinds of source that the pipeline pre-trains with; uniform noise has the same objectives at all positions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gtl_lightning.core.forward import stratified_times, uniform_sample
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.data.loading import TextDataModule
from gtl_lightning.data.sample import write_sample
from gtl_lightning.data.snapshot import SNAPSHOT as SNAPSHOT_NAME
from gtl_lightning.data.snapshot import Record, read_records
from gtl_lightning.errors import UserError
from gtl_lightning.files import write_json
from gtl_lightning.inputs import reading
from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.modules.causal import CausalLMModule
from gtl_lightning.modules.uniform import EDGE, UniformDenoiserModule
from gtl_lightning.networks import CausalLM, UniformDenoiser
from gtl_lightning.networks.block import BackboneConfig, seeded
from gtl_lightning.papers.tcsm import score_loss
from gtl_lightning.sources import SOURCES
from gtl_lightning.sources.kind import Context
from gtl_lightning.studies.tcsm.settings import Characters, Tcsm
from gtl_lightning.studies.tcsm.study import TEXT, Row
from gtl_lightning.studies.training import fitted
from gtl_lightning.workspace.paths import SNAPSHOT, log
from gtl_lightning.workspace.spread import spread

LETTERS = 26
BLANK, MASK, PAD = LETTERS, LETTERS + 1, LETTERS + 2
VOCABULARY = PAD + 1
ABSORBING = ("nelbo", "tcsm-score", "tcsm-distribution", "tcsm-distilled")
"""Kinds of source; what they minimise under uniform noise, where there is such a form, is in `UNIFORM`."""


def score_terms(log_p: Tensor, ids: Tensor) -> Tensor:
    """Eq. 11 at every position."""
    return score_loss(log_p, ids)


def distribution_terms(log_p: Tensor, ids: Tensor) -> Tensor:
    """Eq. 12 with the forward divergence on data: the cross-entropy at every position."""
    return -log_p.gather(-1, ids[..., None]).squeeze(-1)


UNIFORM: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "nelbo": None,
    "tcsm-score": score_terms,
    "tcsm-distribution": distribution_terms,
}


class UniformScoreModule(UniformDenoiserModule):
    """Minimises terms of `papers.tcsm` under uniform noise, noise levels alike; score: the NELBO under it.

    Data give the token of x_0 in the place of its law given all the others and z_t, of which it is a draw.

    Args:
        terms: log-probabilities Float[b,l,v], true tokens Long[b,l] -> Float[b,l].
    """

    def __init__(self, *arguments: Any, terms: Callable[[Tensor, Tensor], Tensor], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.terms = terms

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Per token."""
        network, x_0 = cast(UniformDenoiser, self.network), batch["x_0"]
        v = network.config.vocab_size - len(network.config.specials)
        t = (1 - EDGE) * stratified_times(len(x_0), generator, EDGE, device=x_0.device)
        x_t = uniform_sample(x_0, t, self.schedule, v, generator)
        return self.terms(network(x_t, t), x_0).mean()


def measure_text(settings: Tcsm) -> None:
    """tcsm/text.json; repetitions side by side, a core each.

    Raises:
        UserError: too little text, or a file that cannot be read.
    """
    found = spread("characters", text_rows, [(settings.text, seed) for seed in settings.seeds])
    write_json(TEXT, [row for rows in found for row in rows])
    log.info("tcsm text: %s", TEXT)


def text_rows(text: Characters, seed: int) -> list[Row]:
    """One row for each objective and noise: held-out NELBO in bits per character, and what the training took.

    Raises:
        UserError: too little text, or a file that cannot be read.
    """
    data, found = _data(text, seed), list[Row]()
    causal: list[CausalLM] = []

    def teacher() -> CausalLM:
        if not causal:
            with seeded(seed):
                made = CausalLMModule(CausalLM(backbone), OptimiserConfig.of(text.training, text.training.lr))
            result = fitted(f"tcsm-text-teacher-{seed}", made, data, text.training, key, seed, __name__)
            found.append(_row("none", "causal model", result.best_score, result.seconds, seed))
            causal.append(cast(CausalLM, made.network))
        return causal[0]

    backbone = BackboneConfig(
        vocab_size=VOCABULARY, length=text.length, mask_index=MASK, pad_index=PAD, **text.network.model_dump()
    )
    key = {"text": text.model_dump(mode="json"), "data": _fingerprint(data)}
    context = Context(backbone, teacher, {}, text.training.steps)
    config = OptimiserConfig.of(text.training, text.training.lr)
    for noise, objective, build in _builds(context, config):
        with seeded(seed):
            made = build()
        result = fitted(f"tcsm-text-{noise}-{objective}-{seed}", made, data, text.training, key, seed, __name__)
        found.append(_row(noise, objective, result.best_score, result.seconds, seed))
    return found


def _builds(context: Context, config: OptimiserConfig) -> Iterator[tuple[str, str, Callable[[], TrainedModule]]]:
    for name in ABSORBING:
        kind = SOURCES[name]
        # A teacher is trained when the recipe asks for it, and not under this one's seed.
        recipe = kind.recipe(context, kind.settings)
        yield "absorbing", name, lambda recipe=recipe: recipe(config)  # type: ignore[misc]
    for name, terms in UNIFORM.items():
        if terms is None:
            yield "uniform", name, lambda: UniformDenoiserModule(UniformDenoiser(context.backbone), config)
        else:
            yield (
                "uniform",
                name,
                lambda terms=terms: UniformScoreModule(UniformDenoiser(context.backbone), config, terms=terms),  # type: ignore[misc]
            )


def _row(noise: str, objective: str, score: float, seconds: float, seed: int) -> Row:
    return {
        "part": "text",
        "noise": noise,
        "objective": objective,
        "seed": seed,
        "bits": score / math.log(2),
        "seconds": round(seconds, 1),
    }


def _data(text: Characters, seed: int) -> TextDataModule:
    """Training and held-out examples of one length; held-out is the last tenth of the text, whatever the seed."""
    ids = characters(_read(text))[: text.characters]
    rows = ids[: len(ids) // text.length * text.length].reshape(-1, text.length)
    if len(rows) < 20:
        raise UserError(
            f"text.length = {text.length}: {len(ids):,} characters make {len(rows)} examples, and 20 are needed; "
            "lower it or give more text"
        )
    cut = len(rows) - len(rows) // 10
    held_out = rows[cut : cut + text.held_out]
    train, val = (
        TokenDataset.from_arrays(part.ravel(), np.arange(len(part) + 1, dtype=np.int64) * text.length, PAD)
        for part in (rows[:cut], held_out)
    )
    training = text.training
    return TextDataModule(
        train, val, batch=training.batch, steps_per_epoch=training.check_every, seed=seed, pad_index=PAD
    )


def _read(text: Characters) -> str:
    """As much of the file, of the abstracts in data/ or, where there are none, of the generated sample as is asked for.

    Raises:
        UserError: the file is missing or no text.
    """
    if text.file is not None:
        path = Path(text.file)
        remedy = "give the path of a plain text in text.file, or null for the abstracts in data/"
        with reading(path, remedy), path.open(encoding="utf-8", errors="replace") as file:
            return file.read(text.characters)
    if SNAPSHOT.exists():
        return _abstracts(SNAPSHOT, text.characters)
    with TemporaryDirectory() as folder:
        write_sample(folder, seed=0)
        return _abstracts(Path(folder) / SNAPSHOT_NAME, text.characters)


def _abstracts(path: Path, most: int) -> str:
    found, size = [], 0
    for record in read_records(path):
        if isinstance(record, Record):
            found.append(record.abstract)
            size += len(record.abstract) + 1
            if size >= most:
                break
    return " ".join(found)


def characters(text: str) -> NDArray[np.int64]:
    """Ids of the letters, and one blank for everything between two of them."""
    codes = np.frombuffer(text.lower().encode("ascii", "replace"), np.uint8).astype(np.int64) - ord("a")
    ids = np.where((codes >= 0) & (codes < LETTERS), codes, BLANK)
    again = np.zeros(len(ids), bool)
    again[1:] = (ids[1:] == BLANK) & (ids[:-1] == BLANK)
    return ids[~again]


def _fingerprint(data: TextDataModule) -> str:
    whole = hashlib.sha256()
    for part in (data.train, data.val):
        whole.update(part.batch(np.arange(len(part))).numpy().tobytes())
    return whole.hexdigest()[:12]
