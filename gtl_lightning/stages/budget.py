"""`gtl budget`: what a step of each method's training costs, and the steps at which all cost what fine-tuning costs.

A budget is a number of steps in params.yaml, by which DVC and the state of a training are keyed, so that what is
trained is the same wherever it is made again. It is found by counting operations, which gives the same number on every
machine, or by timing steps on this one. What a training then took is measured all the same (workspace/costs.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from statistics import fmean, median
from typing import TYPE_CHECKING

import torch
from torch import nn

from gtl_lightning.bench.timing import Run, flops, timed
from gtl_lightning.bench.training import training_step
from gtl_lightning.core.protocols import Source
from gtl_lightning.fields import Training
from gtl_lightning.methods import FINETUNED, METHODS
from gtl_lightning.methods.method import Role
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.fit import resolve_precision
from gtl_lightning.networks import MaskedDenoiser, SequenceRatioNetwork, seeded
from gtl_lightning.stages.train import context_of
from gtl_lightning.workspace.corpus import Corpus, device_of, load_denoiser, tokens_hash, trained_on
from gtl_lightning.workspace.fitting import domains_of, texts_of
from gtl_lightning.workspace.params import Params, override
from gtl_lightning.workspace.paths import SOURCE, Cell

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule

    from gtl_lightning.methods.method import Build

Measure = Callable[[Run], float]
"""A call -> what it costs."""
BATCHES, ROUNDS = 4, 5
"""Training batches whose costs are averaged, as they differ by the lengths of texts and by what is masked; timings."""
PREPARED = {"borrowed": 1, "samples": 64}
"""How many texts a recipe weighs or draws makes no step dearer: few, where a step is all that is asked of it."""


@dataclass(frozen=True)
class Budget:
    """What the training of a method takes.

    Attributes:
        method: name.
        per_step: cost of a step, all variants of the recipe together, their share of a validation included.
        fits: trainings of each variant: one a rate that is tried, one a further member.
        steps: of each fit, as params.yaml has it.
        equal: of each fit at the budget that was asked for.
    """

    method: str
    per_step: float
    fits: int
    steps: int
    equal: int

    @property
    def spent(self) -> float:
        """Cost of all fits, if none stops early."""
        return self.per_step * self.fits * self.steps


def operations(run: Run) -> float:
    """Billions, in the matrix products of a call (2 a multiply-add): the optimiser has none."""
    return flops(run) / 1e9


def processor_seconds(run: Run, device: torch.device) -> float:
    """Of a call after one that is not timed, the median of `ROUNDS`; by the clock on a GPU."""
    run()
    times = [timed(run, device) for _ in range(ROUNDS)]
    return median(busy if device.type == "cpu" else clock for clock, busy in times)


def budgets(params: Params, share: float, measure: Measure = operations) -> list[Budget]:
    """Every method of the grid and fine-tuning, at `share` of what fine-tuning takes as params.yaml has it.

    In a step are all networks forward and backward, and the held-out scores' share. Texts that a recipe weighs or draws
    before, and networks that it reads, are not in it: their seconds are measured (`prepare_seconds`, `needs_seconds`).
    Weights do not matter, so that nothing has to be trained before.

    Raises:
        UserError: the texts are missing.
    """
    corpus = Corpus.open(params)
    names = dict.fromkeys((FINETUNED, *params.sweep.methods))
    counted = {name: step_cost(params, corpus, name, measure) for name in names}
    whole = share * counted[FINETUNED] * _fits(params, FINETUNED) * params.methods.of(FINETUNED).train.steps
    return [
        Budget(
            name,
            cost,
            fits := _fits(params, name),
            (training := params.methods.of(name).train).steps,
            equal_steps(whole, cost * fits, training),
        )
        for name, cost in counted.items()
    ]


def equal_steps(budget: float, per_step: float, training: Training) -> int:
    """Whole checks that fit into a budget, one at least."""
    return max(1, math.floor(budget / per_step / training.check_every)) * training.check_every


def at_equal_cost(params: Params, found: Sequence[Budget]) -> Params:
    """The parameters with the steps of `Budget.equal`; a warm-up that no longer fits is cut with them."""
    said = []
    for budget in found:
        training = params.methods.of(budget.method).train
        own = {"steps": budget.equal, "warmup": min(training.warmup, budget.equal)}
        said += [f"methods.{budget.method}.train.{key}={value}" for key, value in own.items()]
    return override(params, tuple(said))


def step_cost(params: Params, corpus: Corpus, method: str, measure: Measure) -> float:
    """Cost of one step of every variant, as the method's largest share of the data has it."""
    cell = Cell(method, max(params.sweep.fractions), params.sweep.seeds[0])
    own = params.methods.of(method)
    few = own.model_copy(update={key: few for key, few in PREPARED.items() if getattr(own, key, 0)})
    train, val = corpus.target(max(params.sweep.fractions), params.data.min_examples)
    train = train.subset(min(len(train), BATCHES * own.train.batch))
    source = corpus.dataset("source_train")
    context = replace(
        context_of(params, corpus, cell, train, val, set(), {}),
        frozen=partial(_untrained, params, corpus),
        source=lambda: source.subset(min(len(source), BATCHES * own.train.batch)),
        device=device_of(params),
    )
    recipe = METHODS[method].recipe(context, few)
    data = (domains_of if recipe.both_domains else texts_of)(params, recipe.target, val, own.train, corpus, cell.seed)
    return sum(_module_cost(params, build, data, own.train, measure) for build in recipe.builds.values())


def _module_cost(
    params: Params, build: Build, data: LightningDataModule, training: Training, measure: Measure
) -> float:
    device, machine = device_of(params), params.machine
    module = build(OptimiserConfig.of(training, training.lr), 0).to(device).train()
    module.on_fit_start()
    precision = resolve_precision(machine.precision, module.width, machine.accelerator)
    steps = [
        measure(training_step(module, {name: value.to(device) for name, value in batch.items()}, precision))
        for batch in islice(data.train_dataloader(), BATCHES)
    ]

    def score() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            module.score(data.val_dataloader())

    return fmean(steps) + measure(score) / training.check_every


def _fits(params: Params, method: str) -> int:
    own = params.methods.of(method)
    return len(own.train.also_lr) + getattr(own, "members", 1)


def _untrained(params: Params, corpus: Corpus, role: Role) -> Source | nn.Module:
    """A network of the right size; the source itself where it is there, as that of others has a size of its own."""
    with seeded(0):
        if role in ("clean", "noised"):
            return SequenceRatioNetwork(corpus.backbone(params.networks.classifier)).eval()
        own = MaskedDenoiser(corpus.backbone(params.networks.denoiser)).eval()
    there = SOURCE.exists() and trained_on(SOURCE) in (None, tokens_hash())  # another profile's may lie there
    return load_denoiser(SOURCE.parent.name) if there else own
