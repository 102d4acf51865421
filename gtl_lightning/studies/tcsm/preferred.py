"""Preferences on a listed law of two tokens: masks averaged inside the sigmoid, or one by one (docs/method.md 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from gtl_lightning.laws.concrete import Table, tilted
from gtl_lightning.laws.enumerated import EnumeratedDistribution, all_sequences, model_law
from gtl_lightning.papers.tcsm import pair_elbo, preference_loss
from gtl_lightning.studies.tcsm.listed import minimise
from gtl_lightning.studies.tcsm.study import Row

MASKS = torch.tensor([[True, False], [False, True], [True, True], [True, True]])
"""As draws of a level and then of a mask, all equally likely: eq. 1 of two tokens exactly."""
FINITE = -50.0
"""Log-probability of what is impossible, in tables that are trained."""


class Preferences:
    """All pairs of texts, how often one is preferred to the other (Bradley and Terry), and the law they ask for.

    Args:
        law: of texts of two tokens; the reference.
        reward: Float64[V^2] what preferences follow.
        beta: of the loss.
    """

    def __init__(self, law: EnumeratedDistribution, reward: Tensor, beta: float) -> None:
        self.law, self.beta = law, beta
        self.x_0 = all_sequences(law.states, law.length)
        self.wanted = tilted(law, reward / beta)
        pairs = torch.arange(len(self.x_0))
        self.winner, self.loser = torch.cartesian_prod(pairs, pairs).T
        chance = law.table[self.winner] * law.table[self.loser]
        self.chance = 2 * chance * torch.sigmoid(reward[self.winner] - reward[self.loser])
        partial = all_sequences(law.states + 1, law.length)
        self.ref = law.posterior(partial)[..., : law.states].clamp(min=FINITE)

    def rows(self) -> list[Row]:
        """One row a form: total variation of the trained model's law to p_R."""
        found = {
            "masks averaged first": self._trained([slice(None)]),
            "not tuned": self.law,
            "mask by mask": self._trained([slice(i, i + 1) for i in range(len(MASKS))]),
        }
        return [
            {"part": "preference", "form": form, "kind": kind, "tv": law.total_variation(self.wanted)}
            for (form, law), kind in zip(found.items(), ("approximate", "untouched", "shortcut"), strict=True)
        ]

    def _trained(self, parts: list[slice]) -> EnumeratedDistribution:
        """The law of the minimiser, the sigmoid taken over each part of the masks."""

        def risk(table: Tensor) -> Tensor:
            return torch.stack([self._risk(self.ref + table, part) for part in parts]).mean()

        table = self.ref + minimise(tuple(self.ref.shape), risk)
        return model_law(Table(table, self.law.states).denoiser, self.law.states, self.law.length)

    def _risk(self, logits: Tensor, part: slice) -> Tensor:
        own, ref = self._elbo(logits, part), self._elbo(self.ref, part)
        w, l = self.winner, self.loser  # noqa: E741 - winner and loser
        return (self.chance * preference_loss(own[w], ref[w], own[l], ref[l], self.beta)).sum()

    def _elbo(self, logits: Tensor, part: slice) -> Tensor:
        """Float64[n] of each text, over some of the masks."""
        masked = MASKS[part, None].expand(-1, len(self.x_0), -1)
        x_t = self.x_0.masked_fill(masked, self.law.states).flatten(0, 1)
        rows = torch.log_softmax(Table(logits, self.law.states)(x_t), -1).view(*masked.shape, -1)
        log_p = rows.gather(-1, self.x_0.expand(len(rows), -1, -1)[..., None]).squeeze(-1)
        return pair_elbo(log_p, masked, masked.sum(-1))
