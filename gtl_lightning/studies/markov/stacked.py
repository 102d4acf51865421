"""Training of stacks: every fold of a cross-validation, and all the data, at once (docs/markov.md).

The members 0..k-1 train without their fold and are scored on it; the last member trains on everything. The learning
rate is constant after the warm-up, so weights after s steps are the same whatever the most steps were: the last member
at the step of the best mean held-out score *is* the refit on all data for the cross-validated number of steps.

No loss is written here. Each is a function of `papers` and `core`, on tensors that have the members as their first
axis, or by `Stack.each` (`vmap`) where it is written for one network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gtl_lightning.core.forward import level_nelbo_terms, level_sample
from gtl_lightning.core.guidance import SequenceRatio, guided_log_prob_true
from gtl_lightning.core.protocols import RatioNetwork
from gtl_lightning.errors import UserError
from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.modules.classifier import frozen_log_ratio
from gtl_lightning.networks import Frozen
from gtl_lightning.papers.gtl import bce_loss, cycle_loss, gkl_loss, log_mse_loss, token_bce_loss
from gtl_lightning.studies.markov.stack import Stack

OUTPUT = "output"
"""The last layer of a denoiser."""


class StackedModule(TrainedModule):
    """What the stacks share. Score: nats per token of the guided model on held-out target rows, at gamma = 1.

    Args:
        members: the networks; member i of a stack reads the rows of fold i, the last one all rows.
        denoiser: frozen source, Long[b,l], Float[b] -> Float[b,l,v]; None if the members are denoisers themselves.
        optimiser: AdamW's settings; its learning rate is held after the warm-up.
    """

    network: Stack
    stacked = 1

    def __init__(
        self, members: Sequence[nn.Module], denoiser: nn.Module | None = None, optimiser: OptimiserConfig | None = None
    ) -> None:
        super().__init__(Stack(members), optimiser, draws=1)
        self.source_denoiser = Frozen(denoiser) if denoiser is not None else None
        self.mask_index = int(self.network.config.mask_index)

    def terms(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Float[m]: each member's loss."""
        raise NotImplementedError

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Sum of the members' losses: their gradients are their own."""
        return self.terms(batch, generator).sum()

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum over folds and held-out rows of the guided NELBO in nats per token, and the number of rows."""
        values = self.held_out(batch, generator, [1.0])
        return values.sum(), torch.tensor(values.numel())

    @torch.no_grad()
    def held_out(self, batch: Batch, generator: torch.Generator, gammas: Sequence[float]) -> Tensor:
        """Float[g,k,b]: one-draw estimates of the NELBO (docs/method.md 2.8), nats per token, at each gamma.

        Raises:
            UserError: one is NaN, which would be chosen as the least.
        """
        x_t, masked, t, _ = self.noised(batch["x_0"], generator)
        chosen = self.chosen(masked, generator)
        log_true = self.log_prob_true(x_t, t, batch["x_0"], chosen, gammas)
        values = level_nelbo_terms(log_true, chosen, chosen.sum(-1))
        if values.isnan().any():
            raise UserError(f"{type(self).__name__}: a held-out likelihood is NaN; lower the learning rate")
        return values

    def chosen(self, masked: Tensor, generator: torch.Generator) -> Tensor:
        """Bool[k,b,l]: the masked positions that `held_out` reads; all of them, where that costs no more than one."""
        return masked

    def log_prob_true(self, x_t: Tensor, t: Tensor, x_0: Tensor, chosen: Tensor, gammas: Sequence[float]) -> Tensor:
        """Float[g,k,b,l]: log-probability of the true token at the chosen positions, p tilted by r^gamma."""
        raise NotImplementedError

    def noised(self, x_0: Tensor, generator: torch.Generator, least: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Long[m,b,l] -> x_t Long[m,b,l], masked Bool[m,b,l], t Float[m,b] (the masked share), k Long[m,b]."""
        x_t, masked, count = level_sample(x_0, self.mask_index, generator, least)
        return x_t, masked, count / x_0.shape[-1], count

    def source_log_p(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Float[m,b,l,v] of the frozen source."""
        assert self.source_denoiser is not None
        with torch.no_grad():
            log_p: Tensor = self.source_denoiser.network(x_t.flatten(0, 1), t.flatten())
        return log_p.view(*x_t.shape, -1).float()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of each member's gradient by itself."""
        grads = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        norm = torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0).sqrt()
        factor = ((gradient_clip_val or torch.inf) / norm.clamp_min(1e-12)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))


class StackedDenoiser(StackedModule):
    """Eq. 1 on target rows: vanilla, fine-tuned and LoRA denoisers. gamma has no meaning here.

    Args:
        probe: steps in which the output layer alone learns, before everything does (LP-FT, arXiv 2202.10054).
        arguments: as `StackedModule`'s.
    """

    def __init__(self, *arguments: Any, probe: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.probe = probe

    def configure_gradient_clipping(self, *arguments: Any, **options: Any) -> None:
        """As for every stack; weights that wait for the output layer have no gradient, so AdamW leaves them alone."""
        if self.global_step < self.probe:
            for name, weight in self.network.weights.items():
                if not name.startswith(OUTPUT):
                    weight.grad = None
        super().configure_gradient_clipping(*arguments, **options)

    def terms(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """NELBO in nats per token."""
        x_t, masked, t, count = self.noised(batch["x_0"], generator)
        return level_nelbo_terms(_at(self.network(x_t, t), batch["x_0"]), masked, count).mean(-1)

    def log_prob_true(self, x_t: Tensor, t: Tensor, x_0: Tensor, chosen: Tensor, gammas: Sequence[float]) -> Tensor:
        """See `StackedModule`; the same for every gamma."""
        return _at(self.network(x_t, t), x_0).expand(len(gammas), -1, -1, -1)


class StackedTokenRatio(StackedModule):
    """`bce_weight` times eq. 9 on rows of both domains, and eq. 9' on target rows.

    With a source that knows nothing (`local.Uninformed`) and bce_weight 0, eq. 9' trains a denoiser of the ratio's
    own architecture on the target alone.

    Args:
        bce_weight: of eq. 9.
        arguments: as `StackedModule`'s.
    """

    def __init__(self, *arguments: Any, bce_weight: float = 0.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.bce_weight = bce_weight

    def terms(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Nats per token."""
        x_0 = batch["x_0"]
        x_t, masked, t, count = self.noised(x_0, generator)
        g = self.network(x_t, t)
        log_true = guided_log_prob_true(self.source_log_p(x_t, t), g, x_0)
        total = level_nelbo_terms(log_true, masked, count).mean(-1)
        if self.bce_weight > 0:
            source_t, source_masked, source_times, source_count = self.noised(batch["source"], generator)
            pairs = (
                (_at(g, x_0), masked, count, True),
                (_at(self.network(source_t, source_times), batch["source"]), source_masked, source_count, False),
            )
            for g_true, where, k, target in pairs:
                # Rows of all members as one batch: by vmap the gradient would be rounded otherwise.
                label = torch.full((k.numel(),), target)
                loss = token_bce_loss(g_true.flatten(0, 1), where.flatten(0, 1), label).view(k.shape)
                total = total + self.bce_weight * (loss / k).mean(-1) / 2
        return total

    def log_prob_true(self, x_t: Tensor, t: Tensor, x_0: Tensor, chosen: Tensor, gammas: Sequence[float]) -> Tensor:
        """See `StackedModule`."""
        log_p, g = self.source_log_p(x_t, t), self.network(x_t, t)
        return torch.stack([guided_log_prob_true(log_p, g, x_0, gamma) for gamma in gammas])


class StackedSequence(StackedModule):
    """Sequence-level networks: what they share is how the guided model is scored, at one masked position a row."""

    def chosen(self, masked: Tensor, generator: torch.Generator) -> Tensor:
        """One masked position of each row: every candidate there costs a pass."""
        rank = torch.rand(masked.shape, generator=generator).masked_fill(~masked, -1.0)
        return rank == rank.amax(-1, keepdim=True)

    def log_prob_true(self, x_t: Tensor, t: Tensor, x_0: Tensor, chosen: Tensor, gammas: Sequence[float]) -> Tensor:
        """See `StackedModule`."""
        members, rows, length = x_t.shape
        log_p = self.source_log_p(x_t, t)[chosen].view(members, rows, -1)
        tokens = torch.arange(log_p.shape[-1] - 1).expand(rows, -1)
        after = (t - 1 / length).clamp_min(0.0)

        def tried(network: RatioNetwork, x: Tensor, t: Tensor, t_next: Tensor, position: Tensor) -> Tensor:
            """Float[b,v-1] of one member, all its candidates in one pass."""
            return SequenceRatio(network).log_ratio(x, t, t_next, every, position, tokens, chunk=tokens.numel())

        every = torch.arange(rows)
        log_r = self.network.each(tried, x_t, t, after, chosen.long().argmax(-1))
        log_r = torch.nn.functional.pad(log_r, (0, 1))
        true = x_0[chosen].view(members, rows)
        found = [guided_log_prob_true(log_p, log_r, true, gamma) for gamma in gammas]
        return torch.stack([torch.zeros(x_t.shape).masked_scatter(chosen, part) for part in found])


class StackedClassifier(StackedSequence):
    """Eq. 7c: cross-entropy of the domain, on clean or on noised rows, both domains equally often.

    The noised one's output is log r itself and guides; it is scored as such. The clean one is scored by held-out
    cross-entropy.

    Args:
        clean: read rows without masks.
        arguments: as `StackedModule`'s.
    """

    def __init__(self, *arguments: Any, clean: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clean = clean

    def terms(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy, nats."""
        return _domain_loss(self, batch, generator, clean=self.clean)

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As the guided model's (noised), or the held-out cross-entropy (clean)."""
        if not self.clean:
            return super().held_out_loss(batch, generator)
        with torch.no_grad():
            return self.terms(batch, generator).sum(), torch.tensor(len(batch["x_0"]))


class StackedSequenceRatio(StackedSequence):
    """Losses gkl (7b), log_mse (7a), bce (7c), and eta_1 times the cycle loss (8).

    Args:
        kind: name of the loss.
        clean: the clean classifiers, stacked alike: r*(x_0).
        timed: the noised classifiers, for the cycle loss.
        clip: largest |log r*|.
        eta_1: weight of the cycle loss.
        arguments: as `StackedModule`'s.
    """

    def __init__(
        self, *arguments: Any, kind: str, clean: Stack, timed: Stack, clip: float, eta_1: float, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.kind, self.clip, self.eta_1 = kind, clip, eta_1
        self.clean, self.timed = Frozen(clean), Frozen(timed)

    def terms(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss and the cycle loss."""
        x_t, _, t, _ = self.noised(batch["x_0"], generator, least=0)
        timed = self._log_ratio(self.timed, x_t, t)
        if self.kind == "bce":
            cycle = self.eta_1 * cycle_loss(self.network(x_t, t), timed).mean(-1)
            return cycle + _domain_loss(self, batch, generator, clean=False)
        source = batch["source"]
        log_r_star = self._log_ratio(self.clean, source, torch.zeros(source.shape[:2]))
        source_t, _, source_times, _ = self.noised(source, generator, least=0)
        f, f_source = _together(self.network, (x_t, source_t), (t, source_times))
        loss: Callable[[Tensor, Tensor], Tensor] = gkl_loss if self.kind == "gkl" else log_mse_loss
        return self.eta_1 * cycle_loss(f, timed).mean(-1) + loss(f_source, log_r_star).mean(-1)

    def _log_ratio(self, classifier: Frozen, x: Tensor, t: Tensor) -> Tensor:
        """Float[m,b] of frozen classifiers, trained on both domains equally often and without label smoothing."""
        return frozen_log_ratio(classifier.network, x, t, 0.0, self.clip)


def _domain_loss(module: StackedModule, batch: Batch, generator: torch.Generator, *, clean: bool) -> Tensor:
    """Float[m]: cross-entropy of the domain (eq. 7c), half of it from each."""
    names = ("source", "x_0")
    if clean:
        rows = tuple(batch[name] for name in names)
        times = tuple(torch.zeros(part.shape[:2]) for part in rows)
    else:
        noised = [module.noised(batch[name], generator, least=0) for name in names]
        rows, times = tuple(x_t for x_t, _, _, _ in noised), tuple(t for _, _, t, _ in noised)
    found = _together(module.network, rows, times)
    parts = [bce_loss(f, torch.full(f.shape, name == "x_0")).mean(-1) for name, f in zip(names, found, strict=True)]
    return torch.stack(parts).mean(0)


def _together(network: nn.Module, rows: tuple[Tensor, ...], times: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The network at several batches Long[m,b,l] in one pass: small networks cost by the call."""
    found: Tensor = network(torch.cat(rows, dim=1), torch.cat(times, dim=1))
    return found.split([part.shape[1] for part in rows], dim=1)


def _at(values: Tensor, ids: Tensor) -> Tensor:
    """Float[...,v], Long[...] -> Float[...]: the values at the ids."""
    return values.gather(-1, ids[..., None]).squeeze(-1)
