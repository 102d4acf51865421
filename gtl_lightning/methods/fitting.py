"""How a recipe becomes a network: its members one after the other, of several builds or rates the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from gtl_lightning.fields import Training
from gtl_lightning.methods.method import Recipe

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule
    from torch import Tensor, nn

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
class Spent:
    """What fits took of the machine, one after another: what `FitResult` says of each."""

    seconds: float
    compute_seconds: float = 0.0
    peak_bytes: int | None = None

    @classmethod
    def on(cls, result: FitResult) -> Spent:
        """By one fit."""
        return cls(result.seconds, result.compute_seconds, result.peak_bytes)

    def __add__(self, other: Spent) -> Spent:
        """Seconds add up, of the peaks the higher counts."""
        peaks = [one.peak_bytes for one in (self, other) if one.peak_bytes is not None]
        computed = self.compute_seconds + other.compute_seconds
        return Spent(self.seconds + other.seconds, computed, max(peaks, default=None))

    @classmethod
    def by(cls, fits: Sequence[Trained]) -> Spent:
        """By all of them."""
        return sum((one.spent for one in fits), cls(0.0))

    @property
    def noted(self) -> dict[str, Any]:
        """As it stands in runs/."""
        return {
            "seconds": round(self.seconds, 2),
            "compute_seconds": round(self.compute_seconds, 2),
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True)
class Trained:
    """A fitted network, what its own fit came to, and the cost of all the fits that it was chosen from.

    Attributes:
        network: at its best step.
        result: of its own fit.
        lr: of its own fit.
        parameters: weights that are trained, numbers that are counted in their place.
        kept_bytes: what they take, which is what has to be kept beside the source for the cell's domain.
        steps: of all fits.
        spent: by all fits.
        made_with: versions, machine and precision.
        part: name of its own fit.
        tried: name of each fit, and of each network that was made of the best -> its lowest held-out score.
        score: of a network, as the fit's own was scored, in full precision.
    """

    network: nn.Module
    result: FitResult
    lr: float
    parameters: int
    kept_bytes: int
    steps: int
    spent: Spent
    made_with: str
    part: str
    tried: Mapping[str, float]
    score: Callable[[nn.Module], float]

    @classmethod
    def once(
        cls,
        module: TrainedModule,
        data: LightningDataModule,
        result: FitResult,
        lr: float,
        made_with: str,
        part: str,
        name: str,
    ) -> Trained:
        """Of one fit, `name`, of a part."""
        weights = [weight for weight in module.network.parameters() if weight.requires_grad]
        kept = [*weights, *_tables(module.network)]

        def score(network: nn.Module) -> float:
            module.network = network.to(module.device)
            return module.score(data.val_dataloader())

        return cls(
            module.network,
            result,
            lr,
            sum(one.numel() for one in kept),
            sum(one.nbytes for one in kept),
            result.steps,
            Spent.on(result),
            made_with,
            part,
            {name: result.best_score},
            score,
        )

    def chosen(self, choices: Callable[[nn.Module], Mapping[str, nn.Module]]) -> Trained:
        """The choice of lowest held-out score in place of the fitted network; making and scoring add their time."""
        begun, computed = time.monotonic(), time.process_time()
        networks = choices(self.network)
        scores = {name: self.score(network) for name, network in networks.items()}
        spent = Spent(time.monotonic() - begun, time.process_time() - computed)
        best = min(scores, key=lambda name: scores[name])
        # Tables may have been counted anew, of more texts; of weights a choice has those that were trained.
        new, old = _tables(networks[best]), _tables(self.network)
        return replace(
            self,
            network=networks[best],
            parameters=self.parameters + sum(one.numel() for one in new) - sum(one.numel() for one in old),
            kept_bytes=self.kept_bytes + sum(one.nbytes for one in new) - sum(one.nbytes for one in old),
            result=replace(self.result, best_score=scores[best]),
            spent=self.spent + spent,
            tried={**self.tried, **scores},
        )


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
        best = best.chosen(recipe.choices) if recipe.choices else best
        members.append(replace(best, network=recipe.finish(best.network)) if recipe.finish else best)
    return members


def _tables(network: nn.Module) -> tuple[Tensor, ...]:
    """What is counted of the target's texts in the place of weights."""
    return getattr(network, "counted", ())


def _built(
    build: Callable[[OptimiserConfig, int], TrainedModule], seed: int, optimiser: OptimiserConfig
) -> TrainedModule:
    return build(optimiser, seed)


def lowest(tried: Sequence[Trained]) -> Trained:
    """The lowest held-out score, of equal ones the first, at the cost of all that were tried."""
    best = min(tried, key=lambda trained: trained.result.best_score)
    scores = {name: score for one in tried for name, score in one.tried.items()}
    return replace(best, steps=sum(one.steps for one in tried), spent=Spent.by(tried), tried=scores)


def averaged(networks: Sequence[nn.Module]) -> nn.Module:
    """The network, or several that are trained alike as one."""
    from gtl_lightning.networks import RatioEnsemble

    return networks[0] if len(networks) == 1 else RatioEnsemble(networks)


def held_out_draws(examples: int, wanted: int) -> int:
    """Noise draws of each held-out example: few examples are drawn more often, until their draws are `wanted`."""
    return max(VAL_DRAWS, math.ceil(wanted / examples))
