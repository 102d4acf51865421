"""A reward on a listed law: trained, guided and picked, each beside p_R itself (docs/method.md 3.4).

The frozen denoiser is exact, what is trained is a table: of a network's own error there is none, what is left is that
of the way. All train on samples of p_pre, drawn anew at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gtl_lightning.core.forward import level_sample
from gtl_lightning.laws.concrete import (
    Table,
    guided,
    marginals,
    masked_texts,
    neighbours,
    posteriors,
    tilted,
    two_sided,
)
from gtl_lightning.laws.enumerated import EnumeratedDistribution, model_law
from gtl_lightning.laws.exact import ExactRatio
from gtl_lightning.papers.gtl import gkl_loss, token_gkl_loss
from gtl_lightning.papers.tcsm import Reward, effective_sample_size, rao_blackwell, reward_weights
from gtl_lightning.studies.tcsm.listed import distance
from gtl_lightning.studies.tcsm.study import Row

LR = 0.05
"""Peak learning rate of Adam; it falls linearly to nothing."""


@dataclass(frozen=True)
class Rewarded:
    """A law p_pre, a reward of its texts, and p_R.

    Attributes:
        law: p_pre.
        table: Float64[V^l] R of every text.
        beta: temperature.
        steps: of a training.
        batch: fresh samples a step.
        seed: of the samples.
    """

    law: EnumeratedDistribution
    table: Tensor
    beta: float
    steps: int
    batch: int
    seed: int

    @property
    def reward(self) -> Reward:
        """What a training may ask: R of the texts it has drawn."""
        place = self.law.states ** torch.arange(self.law.length - 1, -1, -1)
        return Reward(lambda x_0: self.table[(x_0 * place).sum(-1)], self.beta)

    @property
    def wanted(self) -> EnumeratedDistribution:
        """p_R."""
        return tilted(self.law, self.table / self.beta)

    def row(self, form: str, kind: str, found: EnumeratedDistribution) -> Row:
        """How far a law is from p_R, what it earns, and how far it has drifted from p_pre."""
        return {
            "part": "reward",
            "form": form,
            "kind": kind,
            "beta": self.beta,
            "tv": found.total_variation(self.wanted),
            "reward": float(found.table @ self.table),
            "reward_wanted": float(self.wanted.table @ self.table),
            "drift": found.kl(self.law),
        }

    def trained(self) -> EnumeratedDistribution:
        """(b): the cross-entropy of joint samples, weighted by exp(R / beta) with one Z for all of the training."""
        states, length = self.law.states, self.law.length
        z_of = self.reward.log_ratio(self.law.sample(10_000, length, self._generator(1)))
        log_z = z_of.logsumexp(-1) - math.log(len(z_of))

        def loss(values: Tensor, x_0: Tensor, x_t: Tensor, masked: Tensor) -> Tensor:
            log_p = torch.log_softmax(Table(values, states)(x_t), -1).gather(-1, x_0[..., None]).squeeze(-1)
            terms = -(log_p * masked).sum(-1) / masked.sum(-1)
            return (reward_weights(self.reward.log_ratio(x_0), log_z) * terms).mean()

        values = self._fitted((length, states), loss)
        return model_law(Table(values, states).denoiser, states, length)

    def guided_by_sequences(self) -> EnumeratedDistribution:
        """7b with the known log r* = R / beta: log r of every x_t, guidance of the frozen denoiser at gamma = 1."""

        def loss(values: Tensor, x_0: Tensor, x_t: Tensor, masked: Tensor) -> Tensor:
            return gkl_loss(Table(values, self.law.states)(x_t), self.reward.log_ratio(x_0)).mean()

        ratio = Table(self._fitted((), loss, also_clean=True), self.law.states)

        def token(x_t: Tensor, t: Tensor) -> Tensor:
            # log r of x_t with each token at each position: the mask's entry leaves x_t as it is.
            base = self.law.states + 1
            tried = x_t[:, None, None].repeat(1, x_t.shape[1], base, 1)
            at = torch.arange(x_t.shape[1])
            tried[:, at, :, at] = torch.arange(base)
            return ratio(tried.flatten(0, 2)).view(*x_t.shape, base)

        return model_law(guided(self.law, token), self.law.states, self.law.length)

    def guided_by_tokens(self) -> EnumeratedDistribution:
        """9 with the same: log r of every token at every masked position, in one pass."""
        states = self.law.states

        def at(values: Tensor, x_t: Tensor) -> Tensor:
            return torch.nn.functional.pad(Table(values, states)(x_t), (0, 1))

        def loss(values: Tensor, x_0: Tensor, x_t: Tensor, masked: Tensor) -> Tensor:
            g = at(values, x_t).gather(-1, x_0[..., None]).squeeze(-1)
            return token_gkl_loss(g, masked, self.reward.log_ratio(x_0)).mean()

        values = self._fitted((self.law.length, states), loss)
        return model_law(guided(self.law, lambda x_t, t: at(values, x_t)), states, self.law.length)

    def best_of(self, n: int) -> EnumeratedDistribution:
        """The law of the best of n texts of p_pre; of equal ones each is as likely as under p_pre."""
        order = self.table.unique()
        equal = self.table[:, None] == order
        at_most = (self.law.table @ equal.double()).cumsum(0)
        below = torch.cat([at_most.new_zeros(1), at_most[:-1]])
        level = (at_most.clamp(max=1) ** n - below**n) / (at_most - below)
        table = self.law.table * level[equal.int().argmax(-1)]
        return EnumeratedDistribution((table / table.sum()).view((self.law.states,) * self.law.length))

    def targets(self) -> list[Row]:
        """What a position of each x_t is led to: total variation to p_R(x^i | x_t), the mean over masked positions."""
        x_t = masked_texts(self.law.states, self.law.length)
        masked, weight, pi = x_t == self.law.mask_index, posteriors(self.law, x_t), two_sided(self.law)
        wanted = marginals(self.law, posteriors(self.wanted, x_t))
        none = marginals(self.law, weight)
        log_r = self.table / self.beta
        change = log_r[neighbours(self.law.states, self.law.length)]
        by_weight = weight * reward_weights(log_r)
        of_samples = weight.T.log()[..., None, None] + pi.log()[:, None]

        def each(law: Tensor) -> Tensor:
            tilt = law * change.exp()
            return torch.einsum("ns,...slv->nlv", weight, tilt / tilt.sum(-1, keepdim=True))

        by_position = torch.stack([each(row[None]) for row in none])[torch.arange(len(x_t)), torch.arange(len(x_t))]
        found = {
            "weighted joint samples": ("exact", marginals(self.law, by_weight / by_weight.sum(-1, keepdim=True))),
            "numerators summed first": (
                "exact",
                rao_blackwell(of_samples, change[:, None].expand_as(of_samples)).exp(),
            ),
            "not tilted": ("untouched", none),
            "tilted position by position": ("shortcut", by_position),
            "the same, two-sided": ("shortcut", each(pi)),
        }
        rows = []
        for form, (kind, law) in found.items():
            off = distance(law, wanted)[masked]
            row = {"part": "target", "form": form, "kind": kind, "tv": float(off.mean()), "worst": float(off.max())}
            rows.append(row)
        return rows

    def strengths(self) -> list[Row]:
        """Guidance with exact inputs: gamma = 1 by the ratio of exp(R / beta), or gamma = 1 / beta by that of exp R."""
        rows = []
        for form, kind, log_r, gamma in (
            ("exact ratio, gamma = 1", "exact", self.table / self.beta, 1.0),
            ("gamma = 1 / beta for the temperature", "shortcut", self.table, 1 / self.beta),
        ):
            ratio = ExactRatio(self.law, tilted(self.law, log_r))
            found = model_law(guided(self.law, ratio.token, gamma), self.law.states, self.law.length)
            rows.append(self.row(form, kind, found))
        return rows

    def effective_share(self) -> float:
        """Effective samples of p_R in one of p_pre, in the limit of many: 1 / E[(p_R / p_pre)^2]."""
        drawn = self.law.sample(100_000, self.law.length, self._generator(2))
        return float(effective_sample_size(self.reward.log_ratio(drawn))) / len(drawn)

    def _fitted(self, shape: tuple[int, ...], loss: Callable[..., Tensor], also_clean: bool = False) -> Tensor:
        """The table of this shape for each x_t, trained with Adam on fresh samples of p_pre and masks of all sizes.

        With `also_clean` texts without a mask occur too: a ratio is read there, when the last token is revealed.
        """
        generator, states, length = self._generator(0), self.law.states, self.law.length
        values = torch.zeros((states + 1) ** length, *shape, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([values], LR, betas=(0.9, 0.99))
        curve = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / self.steps)
        for _ in range(self.steps):
            x_0 = self.law.sample(self.batch, length, generator)
            x_t, masked, _ = level_sample(x_0, states, generator, least=0 if also_clean else 1)
            adam.zero_grad()
            loss(values, x_0, x_t, masked).backward()
            adam.step()
            curve.step()
        return values.detach()

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(3 * self.seed + stream)
