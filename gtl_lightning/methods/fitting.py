"""How a recipe becomes a network: its members one after the other, of several builds or rates the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from gtl_lightning.fields import Training
from gtl_lightning.methods.method import Recipe

if TYPE_CHECKING:
    from torch import nn

    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.modules.fit import FitResult

    Fresh = Callable[[OptimiserConfig], TrainedModule]

VAL_DRAWS = 2
"""Noise draws of each held-out example in a training's score, at least."""
APART = 1000
"""Between the seeds of two members."""


@dataclass(frozen=True)
class Attempt:
    """One training of a recipe: what it is called, the seed of its weights and of its noise, how long and how fast."""

    variant: str
    member: int
    part: str
    seed: int
    training: Training


@dataclass(frozen=True)
class Trained:
    """A fitted network, what its own fit came to, and the cost of all the fits that it was chosen from."""

    network: nn.Module
    result: FitResult
    lr: float
    parameters: int
    steps: int
    seconds: float
    made_with: str
    part: str


def fit_recipe(
    recipe: Recipe, training: Training, seed: int, fit: Callable[[Attempt, Fresh], Trained]
) -> list[Trained]:
    """Every member of a recipe, fitted.

    Args:
        recipe: of a method.
        training: length and stopping; further rates are tried by the first member, and the others take what it took.
        seed: of the first member.
        fit: trains one, with the best of the attempt's rates; the second argument makes the module, from the optimiser.
    """
    members: list[Trained] = []
    for member in range(recipe.members):
        own_seed = seed + APART * member
        rates = {"lr": members[0].lr, "also_lr": ()} if members else {}
        own = training.model_copy(update=rates)
        tried = [
            fit(
                Attempt(name, member, name if recipe.members == 1 else f"{name}-{member}", own_seed, own),
                partial(_built, build, own_seed),
            )
            for name, build in recipe.builds.items()
        ]
        best = lowest(tried)
        members.append(replace(best, network=recipe.finish(best.network)) if recipe.finish else best)
    return members


def _built(
    build: Callable[[OptimiserConfig, int], TrainedModule], seed: int, optimiser: OptimiserConfig
) -> TrainedModule:
    return build(optimiser, seed)


def lowest(tried: Sequence[Trained]) -> Trained:
    """The lowest held-out score, of equal ones the first, at the cost of all that were tried."""
    best = min(tried, key=lambda trained: trained.result.best_score)
    return replace(best, steps=sum(one.steps for one in tried), seconds=sum(one.seconds for one in tried))


def averaged(networks: Sequence[nn.Module]) -> nn.Module:
    """The network, or several that are trained alike as one."""
    from gtl_lightning.networks import RatioEnsemble

    return networks[0] if len(networks) == 1 else RatioEnsemble(networks)


def held_out_draws(examples: int, wanted: int) -> int:
    """Noise draws of each held-out example: few examples are drawn more often, until their draws are `wanted`."""
    return max(VAL_DRAWS, math.ceil(wanted / examples))
