"""Pre-training of a denoiser by target concrete score matching (TCSM, docs/method.md eqs. 11 and 12)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from gtl_lightning.core.protocols import EVERYWHERE, Attending, Source
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.modules.base import Batch
from gtl_lightning.modules.denoiser import DenoiserModule, noised, noised_uniformly, places, spread
from gtl_lightning.networks import CausalLM, Decoder, Frozen, ids_of, in_parts, log_prob_of, log_probs
from gtl_lightning.papers.tcsm import (
    distillation_loss,
    first_order,
    mean_log_prob,
    score_loss,
    score_terms,
    weighted,
)
from gtl_lightning.papers.tcsm.conditionals import Conditional, Strategy
from gtl_lightning.papers.tcsm.objective import FLOOR

Terms = Callable[[Source, Tensor, Tensor], Tensor]
"""(denoiser, hidden states Float[m,d], true tokens Long[m]) -> Float[m], one term a masked position."""


def cross_entropy_terms(network: Source, h: Tensor, true_ids: Tensor) -> Tensor:
    """Eq. 12 with the forward divergence on data: -log p_theta of the true tokens."""
    return -log_prob_of(network, h, true_ids)


def score_form_terms(network: Source, h: Tensor, true_ids: Tensor, floor: float = FLOOR) -> Tensor:
    """Eq. 11 with the generalised KL; without a tensor of all tokens beside the cross-entropy's, of a `Decoder`."""
    if not isinstance(network, Decoder):
        return in_parts(lambda h, ids: score_loss(log_probs(network, h), ids, floor), network.vocab_size, h, true_ids)
    log_p_true = log_prob_of(network, h, true_ids)
    mean = mean_log_prob(log_p_true, network.logits(h, true_ids), network.mean_logit(h))
    return score_terms(log_p_true, mean, network.vocab_size - len(network.config.specials), floor)


def taught_terms(network: Source, h: Tensor, target: Conditional) -> Tensor:
    """Float[m]: KL(pi || p_theta) of m laws, of hidden states Float[m,d]; the vocabulary in parts."""

    def at(h: Tensor, ids: Tensor, log_pi: Tensor, log_rest: Tensor) -> Tensor:
        return distillation_loss(log_probs(network, h), Conditional(ids, log_pi, log_rest, target.vocab_size))

    return in_parts(at, network.vocab_size, h, target.ids, target.log_pi, target.log_rest)


def distilled(
    network: Attending,
    x_0: Tensor,
    target: Tensor,
    attention: Tensor | None,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    teacher: Frozen,
) -> tuple[Tensor, Tensor]:
    """The two-sided conditionals of the causal model that it started from (docs/method.md eq. 12), over the targets.

    `functools.partial` sets `teacher`. In nats above the teacher's own entropy.
    """
    x_t, t, masked = noised(x_0, ids_of(network), schedule, generator, ~target)
    at = places(masked)
    with torch.no_grad():
        taught = first_order(cast(CausalLM, teacher.network), x_0, *at)
    terms = taught_terms(network, network.encode(x_t, t, EVERYWHERE, None, attention)[at], taught)
    return weighted(spread(terms, masked), masked, t, schedule).sum(), target.sum()


class ConcreteScoreModule(DenoiserModule):
    """Minimises terms of `papers.tcsm`, on data and at masked positions. Score: the NELBO, whatever the objective.

    Args:
        terms: of each masked position.
        by_level: whether the terms have the weight of eq. 1, or all masked positions of the batch the same.
    """

    def __init__(self, *arguments: Any, terms: Terms, by_level: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.terms, self.by_level = terms, by_level

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Per token, or per masked position where noise levels count alike."""
        network, x_0 = cast(Source, self.network), batch["x_0"]
        ids = ids_of(network)
        x_t, t, masked = noised(x_0, ids, self.schedule, generator)
        at = places(masked)
        terms = self.terms(network, network.encode(x_t, t, EVERYWHERE, None)[at], x_0[at])
        if self.by_level:
            return weighted(spread(terms, masked), masked, t, self.schedule).sum() / (x_0 != ids.pad_index).sum()
        return terms.sum() / masked.sum().clamp(min=1)


class UniformFirstModule(DenoiserModule):
    """Minimises eq. 12 on data under two noises: uniform, which gives way to masks. Score: the NELBO under masks.

    Under uniform noise all positions count, as any token may be noise; under masks the masked ones. The share of a
    batch's texts under uniform noise falls from 1 at the first step to 0 at `uniform_steps`, evenly: what reads noise
    learns a little of the mask from the start, so that held-out scores say something all along.

    Args:
        uniform_steps: how long there is uniform noise at all.
    """

    def __init__(self, *arguments: Any, uniform_steps: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.uniform_steps = uniform_steps

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Per position that counts, noise levels alike."""
        network, x_0 = cast(Source, self.network), batch["x_0"]
        ids = ids_of(network)
        x_t, t, counted = noised(x_0, ids, self.schedule, generator)
        share = 1 - self.global_step / self.uniform_steps if self.uniform_steps else 0.0
        if share > 0:
            text = x_0 != ids.pad_index
            # As many texts as the share says, by chance where that is no whole number; t is in no order.
            count = share * len(x_0) + torch.rand((), generator=generator, device=generator.device)
            rows = (torch.arange(len(x_0), device=x_0.device) < count.to(x_0.device).floor())[:, None]
            x_t = torch.where(rows, noised_uniformly(network, x_0, t, text, self.schedule, generator), x_t)
            counted = torch.where(rows, text, counted)
        at = places(counted)
        terms = cross_entropy_terms(network, network.encode(x_t, t, EVERYWHERE, None)[at], x_0[at])
        return terms.sum() / counted.sum().clamp(min=1)


class TaughtModule(DenoiserModule):
    """Minimises KL(pi_i || p_theta) for laws pi_i of the masked positions, weighted over noise levels as eq. 1.

    Score: the NELBO on held-out data.
    """

    def target(self, batch: Batch, row: Tensor, position: Tensor) -> Conditional:
        """The laws of m (row, position) pairs, Long[m] each."""
        raise NotImplementedError

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Nats per token."""
        network, x_0 = cast(Source, self.network), batch["x_0"]
        ids = ids_of(network)
        x_t, t, masked = noised(x_0, ids, self.schedule, generator)
        at = places(masked)
        target = self.target(batch, *at)
        terms = taught_terms(network, network.encode(x_t, t, EVERYWHERE, None)[at], target)
        return weighted(spread(terms, masked), masked, t, self.schedule).sum() / (x_0 != ids.pad_index).sum()


class DistilledModule(TaughtModule):
    """By the two-sided conditionals of an autoregressive teacher (docs/method.md 3.2).

    On data that the teacher did not write the minimiser is a mixture of both laws.

    Args:
        teacher: frozen, of the same tokens.
        how: how its conditionals are found.
    """

    def __init__(self, *arguments: Any, teacher: CausalLM, how: Strategy = first_order, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.teacher, self.how = Frozen(teacher), how

    def target(self, batch: Batch, row: Tensor, position: Tensor) -> Conditional:
        """Found anew."""
        with torch.no_grad():
            return self.how(cast(CausalLM, self.teacher.network), batch["x_0"], row, position)


class KeptModule(TaughtModule):
    """By laws that were made once a text and come with the batch, k tokens and a bucket: `Conditional.top`.

    A mask says nothing of its token, so pi_i depends on the clean text alone, not on what else is masked. A batch holds
    `ids` Long[b,l,k], `log_pi` Float[b,l,k] and `log_rest` Float[b,l] beside `x_0`.
    """

    def target(self, batch: Batch, row: Tensor, position: Tensor) -> Conditional:
        """As they were kept."""
        ids, log_pi, log_rest = (batch[name][row, position] for name in ("ids", "log_pi", "log_rest"))
        return Conditional(ids, log_pi, log_rest, cast(Source, self.network).vocab_size)
