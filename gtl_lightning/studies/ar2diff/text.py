"""The stage `ar2diff-text`: the causal model, its continuation in each way, diffusion from nothing, and both tasks.

Steps are compared at equal diffusion, N beside N, and at equal compute, where what was trained from nothing has the
causal model's steps too. A step has the same number of texts everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

from gtl_lightning.data.loading import TextDataModule
from gtl_lightning.fields import Training
from gtl_lightning.files import write_json
from gtl_lightning.modules.base import TrainedModule
from gtl_lightning.modules.causal import CausalLMModule
from gtl_lightning.modules.concrete_score import distilled
from gtl_lightning.modules.continuation import ContinuationModule, Objective, masked, sundae, uniform_nelbo
from gtl_lightning.modules.fit import FitResult
from gtl_lightning.networks import CausalLM, Frozen, MaskedDenoiser, UniformDenoiser, seeded
from gtl_lightning.studies.ar2diff.corpus import Corpus
from gtl_lightning.studies.ar2diff.drawn import drawn_rows
from gtl_lightning.studies.ar2diff.settings import AR2Diff, Texts
from gtl_lightning.studies.ar2diff.study import TEXT, Row
from gtl_lightning.studies.ar2diff.tasks import task_rows
from gtl_lightning.studies.training import fitted, steady, untrained_score
from gtl_lightning.workspace.paths import log
from gtl_lightning.workspace.spread import spread

LOSSES = ("masked", "SUNDAE", "distilled")


def measure_text(settings: AR2Diff) -> None:
    """ar2diff/text.json; repetitions side by side, a core each.

    Raises:
        UserError: too few records, a field that they do not have, or a file that cannot be read.
    """
    found = spread("text", text_rows, [(settings, seed) for seed in settings.seeds])
    write_json(TEXT, [row for rows in found for row in rows])
    log.info("ar2diff text: %s", TEXT)


def text_rows(settings: AR2Diff, seed: int) -> list[Row]:
    """One repetition: held-out nats per token by N and by way, drawn texts, then the tasks.

    Raises:
        UserError: as `measure_text`.
    """
    work = Pretraining(settings.text, Corpus.open(settings.text), seed)
    rows = work.rows()
    drawn = drawn_rows(settings.text, work.corpus, work.kept, seed)
    return [*rows, *drawn, *task_rows(settings, work.corpus, work.kept, work.key, seed)]


class Pretraining:
    """The trainings of one repetition on text without a task.

    Args:
        text: the settings.
        corpus: the records.
        seed: of the repetition.
    """

    def __init__(self, text: Texts, corpus: Corpus, seed: int) -> None:
        self.text, self.corpus, self.seed = text, corpus, seed
        self.size = corpus.backbone(text, text.length)
        self.key: dict[str, Any] = {"text": text.model_dump(mode="json"), "data": corpus.fingerprint}
        self.kept: dict[str, tuple[Any, int, int]] = {}
        """System -> its network, steps of the causal model and of diffusion behind it: what the tasks start from."""

    def rows(self) -> list[Row]:
        """All trainings, in the order in which they need one another."""
        return [*self.causal(), *self.curves(), *self.crossed()]

    def causal(self) -> Iterator[Row]:
        """The causal model, and the same trained on for as many steps as diffusion gets."""
        text = self.text
        with seeded(self.seed):
            module = CausalLMModule(CausalLM(self.size), steady(text.causal))
        result = self._fit("causal", module, text.causal)
        yield self._row("causal", "causal model", text.causal.steps, 0, result.best_score, result.seconds)
        self.model = module.network
        self.kept["AR2Diff, N = 0"] = MaskedDenoiser.from_causal(self.model), text.causal.steps, 0
        more = CausalLMModule(self.model.trainable_copy(), steady(text.diffusion))
        result = self._fit("causal-on", more, text.diffusion)
        steps = text.causal.steps + text.diffusion.steps
        yield self._row("causal", "causal model", steps, 0, result.best_score, result.seconds)
        self.kept["AR"] = more.network, steps, 0

    def curves(self) -> Iterator[Row]:
        """N steps of the masked loss from the causal model, and from nothing as many and the causal model's beside."""
        text = self.text
        before, most = text.causal.steps, text.diffusion.steps
        long = text.diffusion.model_copy(update={"steps": before + most})
        network = MaskedDenoiser.from_causal(self.model)
        yield from self._curve("AR2Diff", network, text.diffusion, before)
        self.kept[f"AR2Diff, N = {most}"] = network, before, most
        for shift in (False, True):
            with seeded(self.seed):
                network = MaskedDenoiser(replace(self.size, shift=shift))
            start = "from nothing, shifted" if shift else "from nothing"
            yield from self._curve(start, network, text.diffusion if shift else long, 0)
            if not shift:
                self.kept["from nothing, equal compute"] = network, 0, before + most
        with seeded(self.seed):
            network = MaskedDenoiser(replace(self.size, shift=False))
        self._fit("from-nothing-short", self._module(network), text.diffusion)
        self.kept["from nothing, equal steps"] = network, 0, most

    def crossed(self) -> Iterator[Row]:
        """Shift by annealing by loss, each from the causal model, at one N."""
        text = self.text
        if not text.crossed:
            return
        training = text.diffusion.model_copy(update={"steps": text.crossed})
        for loss in LOSSES:
            for shift in (True, False):
                for anneal in (0.0, text.anneal):
                    kind = UniformDenoiser if loss == "SUNDAE" else MaskedDenoiser
                    network = kind.from_causal(self.model, shift=shift)
                    module = self._module(network, loss, round(anneal * text.crossed))
                    name = f"crossed-{loss}-{'shifted' if shift else 'plain'}-{anneal}"
                    result = self._fit(name, module, training)
                    found = self._row(
                        "crossed", "AR2Diff", text.crossed, 0, result.history[-1]["score"], result.seconds
                    )
                    yield found | {"loss": loss, "shift": shift, "anneal": anneal}
                    if loss == "SUNDAE" and shift and not anneal:
                        self.kept[f"AR2Diff by SUNDAE, N = {text.crossed}"] = network, text.causal.steps, text.crossed

    def _module(self, network: MaskedDenoiser, loss: str = "masked", anneal_steps: int = 0) -> ContinuationModule:
        objective, scored = objectives(self.model if loss == "distilled" else None)[loss]
        return ContinuationModule(
            network,
            objective,
            anneal_steps,
            scored=scored,
            optimiser=steady(self.text.diffusion),
            draws=self.text.draws,
        )

    def _curve(self, start: str, network: MaskedDenoiser, training: Training, before: int) -> Iterator[Row]:
        module = self._module(network)
        zero = untrained_score(module, self._data(training))
        yield self._row("curve", start, 0, before, zero, 0.0)
        result = self._fit(f"curve-{start}", module, training)
        for check in result.history:
            yield self._row("curve", start, int(check["step"]), before, check["score"], check["seconds"])

    def _fit(self, name: str, module: TrainedModule, training: Training) -> FitResult:
        named = f"ar2diff-text-{name}-{self.seed}".replace(" ", "-").replace(",", "")
        return fitted(named, module, self._data(training), training, self.key | {"name": name}, self.seed, __name__)

    def _data(self, training: Training) -> TextDataModule:
        return self.corpus.texts(self.text, training, self.seed)

    def _row(self, part: str, start: str, n: int, before: int, score: float, seconds: float) -> Row:
        return {
            "part": part,
            "start": start,
            "n": n,
            "causal_steps": before,
            "seed": self.seed,
            "nats": score,
            "seconds": round(seconds, 1),
        }


def objectives(teacher: CausalLM | None) -> dict[str, tuple[Objective, Objective]]:
    """Loss -> what is minimised and the bound that held-out text is scored by: that of its own noise."""
    found: dict[str, tuple[Objective, Objective]] = {"masked": (masked, masked), "SUNDAE": (sundae, uniform_nelbo)}
    if teacher is not None:
        found["distilled"] = cast(Objective, partial(distilled, teacher=Frozen(teacher))), masked
    return found
