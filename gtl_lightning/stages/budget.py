"""`gtl budget`: operations of each method's training, and the steps at which every method costs what fine-tuning costs.

Steps are counted in operations and not in seconds: a budget that is a count is the same on every machine, whatever else
runs there, and stands in params.yaml, by which DVC and the state of a training are keyed. What a training took in
seconds is measured all the same (workspace/costs.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import nn

from gtl_lightning.bench.timing import flops
from gtl_lightning.core.protocols import Source
from gtl_lightning.fields import Training
from gtl_lightning.methods import FINETUNED, METHODS
from gtl_lightning.methods.method import Role
from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
from gtl_lightning.networks import MaskedDenoiser, SequenceRatioNetwork, seeded
from gtl_lightning.stages.train import context_of
from gtl_lightning.workspace.corpus import Corpus, load_denoiser
from gtl_lightning.workspace.fitting import domains_of, texts_of
from gtl_lightning.workspace.params import Params, override
from gtl_lightning.workspace.paths import SOURCE, Cell

BATCHES = 4
"""Training batches whose operations are averaged: they differ by the lengths of texts and by what is masked."""
PREPARED = {"borrowed": 1, "samples": 64}
"""How many texts a recipe weighs or draws makes no step dearer: few, where a step is all that is asked of it."""


@dataclass(frozen=True)
class Budget:
    """What the training of a method takes.

    Attributes:
        method: name.
        gflop: billion operations of a step, all variants of the recipe together, their share of a validation included.
        fits: trainings of each variant: one a rate that is tried, one a further member.
        steps: of each fit, as params.yaml has it.
        equal: of each fit at the budget that was asked for.
    """

    method: str
    gflop: float
    fits: int
    steps: int
    equal: int

    @property
    def spent(self) -> float:
        """Billion operations of all fits, if none stops early."""
        return self.gflop * self.fits * self.steps


def budgets(params: Params, share: float) -> list[Budget]:
    """Every method of the grid and fine-tuning, at `share` of what fine-tuning takes as params.yaml has it.

    Counted are matrix products (2 operations a multiply-add), forward and backward, of the denoiser, the ratio and the
    classifier in a step, and of the held-out scores; no optimiser, no sampling. Texts that a recipe weighs or draws
    before, and networks that it reads, are not counted: their seconds are measured (`prepare_seconds`,
    `needs_seconds`). Weights do not matter, so that nothing has to be trained before.

    Raises:
        UserError: the texts are missing.
    """
    corpus = Corpus.open(params)
    names = dict.fromkeys((FINETUNED, *params.sweep.methods))
    counted = {name: step_gflop(params, corpus, name) for name in names}
    whole = share * counted[FINETUNED] * _fits(params, FINETUNED) * params.methods.of(FINETUNED).train.steps
    return [
        Budget(
            name,
            gflop,
            fits := _fits(params, name),
            (training := params.methods.of(name).train).steps,
            equal_steps(whole, gflop * fits, training),
        )
        for name, gflop in counted.items()
    ]


def equal_steps(budget: float, per_step: float, training: Training) -> int:
    """Whole checks that fit into a budget of operations, one at least."""
    return max(1, math.floor(budget / per_step / training.check_every)) * training.check_every


def at_equal_cost(params: Params, found: Sequence[Budget]) -> Params:
    """The parameters with the steps of `Budget.equal`; a warm-up that no longer fits is cut with them."""
    said = []
    for budget in found:
        training = params.methods.of(budget.method).train
        own = {"steps": budget.equal, "warmup": min(training.warmup, budget.equal)}
        said += [f"methods.{budget.method}.train.{key}={value}" for key, value in own.items()]
    return override(params, tuple(said))


def step_gflop(params: Params, corpus: Corpus, method: str) -> float:
    """Billion operations of one step of every variant, as the method's largest share of the data has it."""
    cell = Cell(method, max(params.sweep.fractions), params.sweep.seeds[0])
    own = params.methods.of(method)
    few = own.model_copy(update={key: few for key, few in PREPARED.items() if getattr(own, key, 0)})
    train, val = corpus.target(max(params.sweep.fractions), params.data.min_examples)
    train = train.subset(min(len(train), BATCHES * own.train.batch))
    source = corpus.dataset("source_train")
    context = replace(
        context_of(params, corpus, cell, train, val, set()),
        frozen=partial(_untrained, params, corpus),
        source=lambda: source.subset(min(len(source), BATCHES * own.train.batch)),
        device=torch.device("cpu"),
    )
    recipe = METHODS[method].recipe(context, few)
    data = (domains_of if recipe.both_domains else texts_of)(params, recipe.target, val, own.train, corpus, cell.seed)
    return sum(_module_flop(build, data, own.train) for build in recipe.builds.values()) / 1e9


def _module_flop(build: Any, data: Any, training: Training) -> float:
    module: TrainedModule = build(OptimiserConfig.of(training, training.lr), 0)
    for frozen in module.frozen():
        frozen.network.eval()

    def step(number: int, batch: dict[str, torch.Tensor]) -> None:
        module.train()
        module.loss(batch, torch.Generator().manual_seed(number)).backward()

    steps = [flops(partial(step, *numbered)) for numbered in enumerate(islice(data.train_dataloader(), BATCHES))]
    return fmean(steps) + flops(lambda: module.score(data.val_dataloader())) / training.check_every


def _fits(params: Params, method: str) -> int:
    own = params.methods.of(method)
    return len(own.train.also_lr) + getattr(own, "members", 1)


def _untrained(params: Params, corpus: Corpus, role: Role) -> Source | nn.Module:
    """A network of the right size; the source itself where it is there, as that of others has a size of its own."""
    with seeded(0):
        if role in ("clean", "noised"):
            return SequenceRatioNetwork(corpus.backbone(params.networks.classifier)).eval()
        own = MaskedDenoiser(corpus.backbone(params.networks.denoiser)).eval()
    return load_denoiser(SOURCE.parent.name) if SOURCE.exists() else own
