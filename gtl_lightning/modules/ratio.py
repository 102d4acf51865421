"""Training of the ratio networks: sequence-level f = log r_t (docs/method.md 2.1), token-level, one-pass g (2.2)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.forward import nelbo_terms
from gtl_lightning.core.guidance import guided_log_prob_true
from gtl_lightning.core.protocols import EVERYWHERE, Look, PaddingOnce, Source
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.errors import UserError
from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.modules.classifier import frozen_log_ratio
from gtl_lightning.modules.denoiser import noised, places, spread
from gtl_lightning.networks import (
    Frozen,
    Ids,
    OnDenoiser,
    SequenceRatioNetwork,
    TokenLevel,
    ids_of,
    in_parts,
    log_probs,
)
from gtl_lightning.papers.gtl import bce_loss, cycle_loss, gkl_loss, log_mse_loss, martingale_penalty, token_bce_loss

LOSSES = ("gkl", "bce", "log_mse")


class SequenceRatioModule(TrainedModule):
    """One of the losses gkl (7b), bce (7c), log_mse (7a), and eta_1 times the cycle loss (8).

    gkl and log_mse read source examples against r*(x_0) of a frozen clean classifier, the cycle loss target examples
    against the log-ratio of a frozen classifier of noised text; bce reads both domains and their labels. The score is
    the same objective on held-out data.

    Args:
        network: what is trained.
        clean_classifier: trained on clean text; needed by gkl and log_mse.
        noised_classifier: trained on noised text without label smoothing; needed when eta_1 > 0.
        loss: "gkl", "bce" or "log_mse".
        smoothing: label smoothing of the clean classifier, undone; 0 reads its logit raw.
        clip: largest |log r*|.
        eta_1: weight of the cycle loss.
        optimiser: AdamW's settings.
        schedule: noise.
        draws: noise draws an example in validation.

    Raises:
        UserError: an unknown loss, or a classifier that it needs is missing.
    """

    network: SequenceRatioNetwork

    def __init__(
        self,
        network: SequenceRatioNetwork,
        clean_classifier: nn.Module | None = None,
        noised_classifier: nn.Module | None = None,
        *,
        loss: str = "gkl",
        smoothing: float = 0.0,
        clip: float = 5.0,
        eta_1: float = 0.1,
        optimiser: OptimiserConfig | None = None,
        schedule: NoiseSchedule | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__(network, optimiser, schedule, draws)
        if loss not in LOSSES:
            raise UserError(f"ratio loss {loss!r} is unknown; choose one of {', '.join(LOSSES)}")
        if loss != "bce" and clean_classifier is None:
            raise UserError(f"ratio loss {loss!r} needs a classifier of clean text; train it first")
        if eta_1 > 0 and noised_classifier is None:
            raise UserError(f"eta_1 = {eta_1} needs a classifier of noised text; train it first or set eta_1 to 0")
        self.kind = loss
        self.clean = Frozen(clean_classifier) if clean_classifier else None
        self.timed = Frozen(noised_classifier) if noised_classifier else None
        self.smoothing = smoothing
        self.clip = clip
        self.eta_1 = eta_1

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum of the terms of all examples, number of examples.

        A batch without examples of a domain has no terms of it: the sums over both domains are the objective.
        """
        x_0, is_target = batch["x_0"], batch["is_target"]
        x_t, t, _ = noised(x_0, self.network.config, self.schedule, generator)
        f = self.network(x_t, t)
        total = self._ratio_terms(f, x_0, is_target).sum()
        if self.eta_1 > 0 and self.timed is not None:
            log_r_t = frozen_log_ratio(self.timed.network, x_t, t, 0.0, self.clip)
            total = total + self.eta_1 * cycle_loss(f, log_r_t)[is_target].sum()
        return total, torch.full((), len(x_0), device=x_0.device)

    def _ratio_terms(self, f: Tensor, x_0: Tensor, is_target: Tensor) -> Tensor:
        if self.kind == "bce" or self.clean is None:
            return bce_loss(f, is_target)
        source = x_0[~is_target]
        zero = torch.zeros(len(source), device=x_0.device)
        log_r_star = frozen_log_ratio(self.clean.network, source, zero, self.smoothing, self.clip)
        return (gkl_loss if self.kind == "gkl" else log_mse_loss)(f[~is_target], log_r_star)


class TokenRatioModule(TrainedModule):
    """Weighted sum of eq. 9 (BCE at the true tokens, both domains), eq. 9' (guided NELBO on target) and eq. 6.

    - eq. 9, nats per masked token, needs no denoiser and one dot product a token;
    - eq. 9', nats per target token: the NELBO of softmax(log p + g), p frozen; calibrated at gamma = 1;
    - eq. 6: the variance over masked positions of logsumexp_v(log p + g), which is 0 for the true ratio.
    A term of weight 0 is not computed. Score: the guided target NELBO at gamma = 1, nats per token, on the scale of
    `DenoiserModule`'s score.

    Args:
        network: what is trained.
        denoiser: frozen.
        bce_weight: of eq. 9.
        nll_weight: of eq. 9'.
        martingale_weight: of eq. 6, on target examples.
        optimiser: AdamW's settings.
        schedule: noise.
        draws: noise draws an example in validation.

    Raises:
        UserError: all weights are 0, or one is negative.
    """

    network: TokenLevel

    def __init__(
        self,
        network: TokenLevel,
        denoiser: Source,
        *,
        bce_weight: float = 0.3,
        nll_weight: float = 1.0,
        martingale_weight: float = 0.0,
        optimiser: OptimiserConfig | None = None,
        schedule: NoiseSchedule | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__(network, optimiser, schedule, draws)
        weights = (bce_weight, nll_weight, martingale_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise UserError(f"ratio loss weights {weights}: none may be negative and one must be positive")
        self.source_denoiser = Frozen(denoiser)
        self.bce_weight, self.nll_weight, self.martingale_weight = weights

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The weighted sum."""
        x_0 = batch["x_0"]
        is_target = batch.get("is_target", torch.ones(len(x_0), dtype=torch.bool, device=x_0.device))
        rows = is_target.nonzero().squeeze(-1)
        if self.bce_weight == 0:
            x_0, is_target, rows = x_0[rows], is_target[rows], torch.arange(len(rows), device=x_0.device)
        x_t, t, masked = noised(x_0, self._ids, self.schedule, generator)
        # Whatever the host has to be told is asked for before the networks are under way.
        at, of_target, look = places(masked), places(masked[rows]), Look(padding=PaddingOnce(x_t))
        features = self._features(x_t, t, look) if isinstance(self.network, OnDenoiser) else None
        h = self.network.encode(x_t, t, look, features)
        total = h[:0].sum()  # 0: a batch without target examples still has a gradient
        if self.bce_weight > 0:
            g_true = spread(self.network.decode_at(h[at], x_0[at]), masked)
            terms = token_bce_loss(g_true, masked, is_target)
            total = total + self.bce_weight * terms.sum() / masked.sum().clamp(min=1)
        if len(rows) and (self.nll_weight > 0 or self.martingale_weight > 0):
            features = self._features(x_t[rows], t[rows]) if features is None else features[rows]
            total = total + self._target_terms(h[rows], features, x_0[rows], t[rows], masked[rows], of_target)
        return total

    def held_out_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum of the guided NELBO over the target examples of the batch, and their number of tokens."""
        x_0 = batch["x_0"]
        if "is_target" in batch:
            x_0 = x_0[batch["is_target"]]
        if not len(x_0):
            zero = torch.zeros((), device=x_0.device)
            return zero, zero
        x_t, t, masked = noised(x_0, self._ids, self.schedule, generator)
        at, look = places(masked), Look(padding=PaddingOnce(x_t))
        features = self._features(x_t, t, look)
        h = self.network.encode(x_t, t, look, features)
        log_guided, _ = self._normalised(h[at], features[at], x_0[at])
        return self._guided_nelbo(log_guided, t, masked), (x_0 != self._ids.pad_index).sum()

    def _target_terms(
        self, h: Tensor, features: Tensor, x_0: Tensor, t: Tensor, masked: Tensor, at: tuple[Tensor, Tensor]
    ) -> Tensor:
        log_guided, log_r = self._normalised(h[at], features[at], x_0[at])
        total = torch.zeros((), device=x_0.device)
        if self.nll_weight > 0:
            tokens = (x_0 != self._ids.pad_index).sum()
            total = total + self.nll_weight * self._guided_nelbo(log_guided, t, masked) / tokens
        if self.martingale_weight > 0:
            total = total + self.martingale_weight * self._martingale(log_r, masked)
        return total

    def _normalised(self, h: Tensor, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of m positions: log of the guided probability of the true token, and logsumexp_v(log p + g), Float[m] each.

        What takes the whole vocabulary is done for some positions at a time (`networks.in_parts`).
        """

        def both(h: Tensor, features: Tensor, tokens: Tensor) -> Tensor:
            with torch.no_grad():
                log_p = log_probs(self._denoiser, features)
            g = self.network.decode(h)
            guided = guided_log_prob_true(log_p, g, tokens)
            # Eq. 6 is paid for only where it is asked for.
            log_r = torch.logsumexp(log_p + g, dim=-1) if self.martingale_weight > 0 else torch.zeros_like(guided)
            return torch.stack([guided, log_r], dim=-1)

        log_guided, log_r = in_parts(both, self._denoiser.vocab_size, h, features, tokens).unbind(-1)
        return log_guided, log_r

    def _guided_nelbo(self, log_guided: Tensor, t: Tensor, masked: Tensor) -> Tensor:
        return nelbo_terms(spread(log_guided, masked), masked, t, self.schedule).sum()

    def _martingale(self, log_r: Tensor, masked: Tensor) -> Tensor:
        """Mean over examples of eq. 6's penalty, from the masked positions only.

        The penalty reads whole rows of vocabulary; one stand-in token with log p = 0 that carries the position's
        logsumexp gives the same number without Float[b,l,v].
        """
        stand_in = spread(log_r, masked)[..., None]
        return martingale_penalty(torch.zeros_like(stand_in), stand_in, masked).mean()

    def _features(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE) -> Tensor:
        with torch.no_grad():
            return self._denoiser.encode(x_t, t, look, None)

    @property
    def _denoiser(self) -> Source:
        return cast(Source, self.source_denoiser.network)

    @property
    def _ids(self) -> Ids:
        return ids_of(self._denoiser)
