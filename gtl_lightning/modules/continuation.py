"""Continuing an autoregressive model as a denoiser (AR2Diff; docs/method.md section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.forward import (
    level_nelbo_terms,
    level_sample,
    shuffled_times,
    stratified_times,
    uniform_nelbo_each,
)
from gtl_lightning.core.protocols import EVERYWHERE, Attending
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.modules.base import Batch, TrainedModule
from gtl_lightning.modules.denoiser import clean_ids, noised, noised_uniformly, places, spread
from gtl_lightning.modules.uniform import EDGE
from gtl_lightning.networks import ids_of, in_parts, likeliest, log_prob_of, log_probs
from gtl_lightning.papers.ar2diff import (
    annealed_mask,
    annealed_share,
    drawn,
    full_mask,
    masked_loss,
    sundae_loss,
    targets,
    unrolled,
)


class Objective(Protocol):
    """What a denoiser is continued with: `masked`, `counted`, `sundae`, or another of this form."""

    def __call__(
        self,
        network: Attending,
        x_0: Tensor,
        target: Tensor,
        attention: Tensor | None,
        schedule: NoiseSchedule,
        generator: torch.Generator,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Sum over the batch, in nats, and the number of targets.

        Args:
            network: what is trained.
            x_0: Long[b,l].
            target: Bool[b,l], what is noised and learned.
            attention: as in `Attending.encode`.
            schedule: of the noise.
            generator: source of randomness.
        """


def masked(
    network: Attending,
    x_0: Tensor,
    target: Tensor,
    attention: Tensor | None,
    schedule: NoiseSchedule,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The NELBO under masks (docs/method.md eq. 1), as `DenoiserModule` has it, over the targets."""
    x_t, t, noise = noised(x_0, ids_of(network), schedule, generator, ~target)
    at = places(noise)
    h = network.encode(x_t, t, EVERYWHERE, None, attention)
    log_p_true = spread(log_prob_of(network, h[at], x_0[at]), noise)
    return masked_loss(log_p_true, noise, target, t, schedule)


def counted(
    network: Attending,
    x_0: Tensor,
    target: Tensor,
    attention: Tensor | None,
    schedule: NoiseSchedule,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """`masked` with the time integrated out (docs/method.md section 2.8): the number of masks is what is drawn.

    The same in the mean, with less noise: no few tokens at a small t outweigh the batch. `network` is told the masked
    share in the place of t, so it is for those that know no t.
    """
    n = target.sum(-1)
    x_t, noise, count = level_sample(x_0, ids_of(network).mask_index, generator, frozen=~target)
    at = places(noise)
    h = network.encode(x_t, count / n.clamp(min=1), EVERYWHERE, None, attention)
    log_p_true = spread(log_prob_of(network, h[at], x_0[at]), noise)
    return (n * level_nelbo_terms(log_p_true, noise, count.clamp(min=1))).sum(), n.sum()


Again = Callable[[Attending, Tensor, torch.Generator], Tensor]
"""(network, Float[m,d] hidden states, generator) -> Long[m]: what SUNDAE's second term reads in place of the noise."""


def by_likeliest(network: Attending, h: Tensor, generator: torch.Generator) -> Tensor:
    """The arg-max, as AR2Diff has it."""
    return likeliest(network, h)


def by_draw(network: Attending, h: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of every position, as SUNDAE has it."""
    return in_parts(lambda h: drawn(log_probs(network, h), generator), network.vocab_size, h)


def sundae(
    network: Attending,
    x_0: Tensor,
    target: Tensor,
    attention: Tensor | None,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    again: Again = by_likeliest,
) -> tuple[Tensor, Tensor]:
    """SUNDAE's two terms under uniform noise (docs/method.md eq. 22); `functools.partial` sets `again`."""
    t = shuffled_times(len(x_0), generator, 0.0, x_0.device)
    x_t, at = noised_uniformly(network, x_0, t, target, schedule, generator), places(target)

    def read(x: Tensor) -> Tensor:
        return network.encode(x, t, EVERYWHERE, None, attention)[at]

    def log_prob(h: Tensor, x: Tensor) -> Tensor:
        return spread(log_prob_of(network, h, x[at]), target)

    def reread(h: Tensor) -> Tensor:
        return x_0.masked_scatter(target, again(network, h, generator))

    return sundae_loss(unrolled(read, log_prob, reread, x_0, x_t, target), target)


def uniform_nelbo(
    network: Attending,
    x_0: Tensor,
    target: Tensor,
    attention: Tensor | None,
    schedule: NoiseSchedule,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The NELBO under uniform noise (docs/method.md eq. 1u) over the targets: a model of `sundae` is scored by it."""
    t = (1 - EDGE) * stratified_times(len(x_0), generator, EDGE, device=x_0.device)
    x_t = noised_uniformly(network, x_0, t, target, schedule, generator)
    clean = clean_ids(network, x_0.device)
    log_p = log_probs(network, network.encode(x_t, t, EVERYWHERE, None, attention))[..., clean]
    true, noise = (torch.searchsorted(clean, x).clamp(max=len(clean) - 1) for x in (x_0, x_t))
    terms = uniform_nelbo_each(log_p.exp(), true, noise, t, schedule)
    return terms.masked_fill(~target, 0.0).sum(), target.sum()


class ContinuationModule(TrainedModule):
    """An autoregressive model's weights learn to read both sides; score: the objective with everything read.

    A batch may hold `prefix` Long[b], tokens at the front of each row that are given: they stay clean, and the loss is
    on the rest. Rows are then padded on the right.

    Args:
        network: an `Attending` that has the weights, as those that `from_causal` makes.
        objective: `masked`, or `sundae`.
        anneal_steps: steps over which attention to what comes after is let in; 0 lets all in at once.
        visible: (attention Bool[r,r], Long[b] given positions) -> Bool[b,r,r]; `papers.ar2diff.prefix_mask` keeps what
            is given from reading the rest. None lets everything read everything.
        prefix: (lengths Long[b], generator) -> Long[b], where the batch holds none.
        scored: what held-out data are scored by; the objective, where nothing is said.
        options: as `TrainedModule`'s.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective = masked,
        anneal_steps: int = 0,
        visible: Callable[[Tensor, Tensor], Tensor] | None = None,
        prefix: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        scored: Objective | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        annealed_share(0, anneal_steps)
        self.objective, self.anneal_steps, self.visible = objective, anneal_steps, visible
        self.prefix, self.scored = prefix, scored

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The objective per target, with the attention of the present step."""
        network = cast(Attending, self.network)
        n = network.reads(batch["x_0"].shape[1])
        step, attention = self.global_step, None
        if annealed_share(step, self.anneal_steps) < 1:
            attention = annealed_mask(n, step, self.anneal_steps, generator, batch["x_0"].device)
        total, count = self._terms(self.objective, batch, attention, generator)
        return total / count

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum over the batch and number of targets."""
        return self._terms(self.scored or self.objective, batch, None, generator)

    def _terms(
        self, objective: Objective, batch: Batch, attention: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        network, x_0, prefix = cast(Attending, self.network), batch["x_0"], batch.get("prefix")
        pad = ids_of(network).pad_index
        if prefix is None and self.prefix is not None:
            prefix = self.prefix((x_0 != pad).sum(-1), generator)
        if prefix is not None and self.visible is not None:
            n = network.reads(x_0.shape[1])
            whole = full_mask(n, x_0.device) if attention is None else attention
            attention = self.visible(whole, prefix + (n - x_0.shape[1]))
        target = targets(x_0, pad, prefix)
        return objective(network, x_0, target, attention, self.schedule, generator)
