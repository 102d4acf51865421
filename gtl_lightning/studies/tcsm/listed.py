"""Forms and shortcuts of the objective on a listed law: what each of them leads a denoiser to (docs/method.md 3.1-3.2).

The law is a Markov chain of few tokens, so that an autoregressive teacher knows it exactly; the model is one row of
logits for each masked position of each x_t. Every loss is summed over all x_0 and minimised, not sampled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gtl_lightning.laws.chains import ChainTeacher, MarkovChain
from gtl_lightning.laws.concrete import marginals, masked_texts, posteriors
from gtl_lightning.laws.enumerated import EnumeratedDistribution, all_sequences
from gtl_lightning.papers.tcsm import (
    Conditional,
    Proposed,
    TopK,
    conditional,
    distillation_loss,
    exact,
    first_order,
    score_loss,
)
from gtl_lightning.papers.tcsm.conditionals import Strategy
from gtl_lightning.studies.tcsm.study import Row

FLOOR = 1e-12
"""Of the score form: so low that it does not enter what is minimised exactly."""

SHORTCUTS = ("model first", "uniform x_0", "causal law as target", "gradient by the input alone")


def random_chain(states: int, seed: int) -> MarkovChain:
    """A chain of positive random probabilities, some of them small: what every token says of the next is much."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(states + 1, states, dtype=torch.float64).exponential_(generator=generator) ** 2 + 0.02
    drawn = drawn / drawn.sum(-1, keepdim=True)
    return MarkovChain(drawn[0], drawn[1:])


def random_law(states: int, length: int, seed: int) -> EnumeratedDistribution:
    """A law of positive random probabilities, independent of one another: of no structure at all."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(states**length, dtype=torch.float64).exponential_(generator=generator) + 0.05
    return EnumeratedDistribution((drawn / drawn.sum()).view((states,) * length))


def minimise(shape: tuple[int, ...], risk: Callable[[Tensor], Tensor]) -> Tensor:
    """The minimiser of a smooth convex risk over a table, started at zero."""
    table = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [table],
        max_iter=300,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = risk(table)
        value.backward()
        return value

    optimiser.step(closure)
    return table.detach()


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Total variation along the last axis."""
    return (p - q).abs().sum(-1) / 2


class Objectives:
    """The losses over all x_t and x_0 of one law, and how far from the posterior marginals each of them ends.

    Args:
        states: V.
        length: L.
        seed: of the law.
    """

    def __init__(self, states: int, length: int, seed: int) -> None:
        chain = random_chain(states, seed)
        self.teacher = ChainTeacher(chain)
        law = EnumeratedDistribution.of(chain, length)
        self.x_0 = all_sequences(states, length)
        x_t = masked_texts(states, length)
        self.masked, self.weight = x_t == states, posteriors(law, x_t)
        self.wanted = marginals(law, self.weight)
        allowed = (self.weight > 0).double()
        self.uniform = allowed / allowed.sum(-1, keepdim=True)

    def rows(self) -> list[Row]:
        """One row a form: total variation to p(x^i | x_t), the mean and the worst of all masked positions."""
        everywhere = torch.ones_like(self.x_0, dtype=torch.bool)

        def taught(how: Strategy) -> Conditional:
            return conditional(self.teacher, self.x_0, everywhere, how)

        row, position = everywhere.nonzero(as_tuple=True)
        causal = self.teacher.next_log_probs(self.x_0, row, position)
        by_input = Conditional.whole(taught(first_order).log_pi - causal)
        found = {
            "score form": self._fitted(self._on_data(lambda log_p, ids: score_loss(log_p, ids, FLOOR))),
            "cross-entropy": self._fitted(self._on_data(_cross_entropy)),
            "teacher, exact": self._fitted(self._taught(taught(exact))),
            "teacher, first order": self._fitted(self._taught(taught(first_order))),
            "teacher, gradient proposes 2": self._fitted(self._taught(taught(Proposed(2)))),
            "teacher, top 2": self._fitted(self._taught(taught(TopK(2)))),
            "model first": self._fitted(self._reversed(taught(exact))),
            "uniform x_0": self._fitted(self._taught(taught(exact), self.uniform)),
            "causal law as target": self._fitted(self._taught(Conditional.whole(causal))),
            "gradient by the input alone": self._fitted(self._taught(by_input)),
        }
        return [
            {"part": "objective", "form": form, "kind": _kind(form), "tv": float(off.mean()), "worst": float(off.max())}
            for form, off in found.items()
        ]

    def _fitted(self, risk: Callable[[Tensor], Tensor]) -> Tensor:
        table = minimise(tuple(self.wanted.shape), lambda table: risk(torch.log_softmax(table, -1)))
        return distance(torch.softmax(table, -1), self.wanted)[self.masked]

    def _on_data(self, terms: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Terms Float[n,V^l,l] of log-probabilities and true tokens, each x_0 by its posterior."""

        def risk(log_p: Tensor) -> Tensor:
            every = log_p[:, None].expand(-1, len(self.x_0), -1, -1)
            return self._mean(terms(every, self.x_0.expand(len(log_p), -1, -1)), self.weight)

        return risk

    def _taught(self, target: Conditional, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Eq. 12 with the laws of all positions of all x_0."""
        weight = self.weight if weight is None else weight

        def risk(log_p: Tensor) -> Tensor:
            n, (s, l) = len(log_p), self.x_0.shape  # noqa: E741 - the symbols
            every = log_p[:, None].expand(-1, s, -1, -1).flatten(0, 2)
            repeated = Conditional(
                target.ids.repeat(n, 1), target.log_pi.repeat(n, 1), target.log_rest.repeat(n), target.vocab_size
            )
            return self._mean(distillation_loss(every, repeated).view(n, s, l), weight)

        return risk

    def _reversed(self, target: Conditional) -> Callable[[Tensor], Tensor]:
        """KL(p_theta || pi_i): the divergence the wrong way round."""
        log_pi = target.log_pi.view(*self.x_0.shape, -1)

        def risk(log_p: Tensor) -> Tensor:
            terms = (log_p.exp()[:, None] * (log_p[:, None] - log_pi)).sum(-1)
            return self._mean(terms, self.weight)

        return risk

    def _mean(self, terms: Tensor, weight: Tensor) -> Tensor:
        return (weight[..., None] * terms).sum(1)[self.masked].sum()


def _kind(form: str) -> str:
    if form in SHORTCUTS:
        return "shortcut"
    return "approximate" if form == "teacher, top 2" else "exact"


def _cross_entropy(log_p: Tensor, ids: Tensor) -> Tensor:
    return -log_p.gather(-1, ids[..., None]).squeeze(-1)
