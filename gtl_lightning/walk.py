"""What a sampler's steps have in common: the times, the denoiser's proposal, its guidance, the draw of the tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gtl_lightning.drawing import nucleus
from gtl_lightning.errors import UserError
from gtl_lightning.gtl import Guidance, SequenceRatio, tilt, top_candidates
from gtl_lightning.protocols import Denoiser, Hidden
from gtl_lightning.schedule import NoiseSchedule


@dataclass
class Walk:
    """What stays fixed while one batch is sampled, and the proposal of tokens at given positions."""

    denoiser: Denoiser
    guidance: Guidance | None
    mask_index: int
    length: int
    temperature: float
    top_p: float
    schedule: NoiseSchedule
    generator: torch.Generator | None
    device: torch.device

    def __post_init__(self) -> None:
        share = torch.arange(self.length + 1, dtype=torch.float64) / self.length
        # By the number of revealed positions, 0..length: in double precision, as some inverses are steep at alpha = 0.
        self.times = self.schedule.inverse(share).clamp(0, 1).to(self.device, torch.float32)
        self.gammas = torch.tensor(self.guidance.strengths(self.length) if self.guidance else [], device=self.device)

    def time(self, x: Tensor, ahead: int = 0) -> Tensor:
        """Float[b]: the time at which the revealed share of x, `ahead` positions later, is expected."""
        return self.times[(x != self.mask_index).sum(-1) + ahead]

    def hidden(self, x: Tensor) -> Hidden:
        """One pass of each network at x serves the proposal, the planner and a ratio that reads the denoiser."""
        return Hidden(x, self.time(x))

    def log_p(self, row: Tensor, position: Tensor, known: Hidden) -> Tensor:
        """Float[m,v] denoiser log-probabilities at m (row, position) pairs; the mask is never proposed."""
        return self.without_mask(known.at(self.denoiser, row, position))

    def without_mask(self, log_p: Tensor) -> Tensor:
        """The same log-probabilities with -inf at the mask."""
        if not 0 <= self.mask_index < log_p.shape[-1]:
            raise UserError(f"mask_index = {self.mask_index} is no id of the denoiser's {log_p.shape[-1]} tokens")
        mask = torch.arange(log_p.shape[-1], device=log_p.device) == self.mask_index
        return log_p.masked_fill(mask, -math.inf)

    def check_tokens(self, x: Tensor) -> None:
        """Compare a prompt with the vocabulary; what does not tell its `vocab_size` predicts a blank row."""
        blank = torch.full_like(x[:1], self.mask_index)
        first = torch.zeros(1, dtype=torch.long, device=x.device)
        told = getattr(self.denoiser, "vocab_size", None)
        v = told if isinstance(told, int) else self.log_p(first, first, self.hidden(blank)).shape[-1]
        low, high = x.min().item(), x.max().item()
        if low < 0 or high >= v:
            raise UserError(f"prompt holds token {low if low < 0 else high}; ids must lie in 0..{v - 1}")

    def weights(
        self, x: Tensor, row: Tensor, position: Tensor, log_p: Tensor, known: Hidden
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Log-weights p * r^gamma of the candidates at m positions, before temperature and nucleus.

        Returns:
            Float[m,n] log-weights; Long[m,n] their ids, None when they are 0..v-1; and Float[m] the lift
            log sum_v p(v) r(x_U + {l: v})^gamma - gamma log r(x_U), by which eq. 5 without the stabiliser favours a
            reveal over the mask (zero when unguided or stabilised). A token ratio's own r(x_U) comes from eq. 6,
            which pruning restricts to the candidates.
        """
        no_lift = log_p.new_zeros(len(row))
        guidance = self.guidance
        if guidance is None:
            return log_p, None, no_lift
        log_p, ids = top_candidates(log_p, guidance.n_ratio)
        tried = ids if ids is not None else torch.arange(log_p.shape[-1], device=x.device).expand(len(row), -1)
        t, t_next = self.time(x), self.time(x, ahead=1)
        log_r = guidance.ratio.score(x, t, t_next, row, position, tried, guidance.chunk, known)
        gamma = self.gammas[(x != self.mask_index).sum(-1)][row].to(log_p.dtype)
        log_w = tilt(log_p, log_r, gamma[:, None])
        if guidance.stabilise:
            return log_w, ids, no_lift
        kept = torch.logsumexp(log_p, -1)  # pruning must not favour the mask
        if isinstance(guidance.ratio, SequenceRatio):
            own = guidance.ratio.f(x, t)[row]
        else:  # eq. 6: the mean of r over the next token is r itself
            own = torch.logsumexp(tilt(log_p, log_r), -1) - kept
        lift = torch.logsumexp(log_w, -1) - kept - gamma * own
        return log_w, ids, lift.masked_fill(~lift.isfinite(), 0.0)

    def draw(self, log_w: Tensor, ids: Tensor | None) -> Tensor:
        """Long[m] tokens drawn from Float[m,n] log-weights, with temperature and nucleus."""
        if self.temperature == 0:
            choice = log_w.argmax(-1)
        else:
            log_w = log_w / self.temperature
            if self.top_p < 1:
                log_w = nucleus(log_w, self.top_p)
            choice = (log_w + self.gumbel(log_w.shape)).argmax(-1)
        return choice if ids is None else ids.gather(-1, choice[:, None]).squeeze(-1)

    def gumbel(self, shape: torch.Size) -> Tensor:
        """Float64[shape]; the upper tail that single precision lacks matters with tens of thousands of tokens."""
        home = self.device if self.generator is None else self.generator.device
        noise = torch.empty(shape, dtype=torch.float64, device=home).exponential_(generator=self.generator)
        return -noise.clamp_(min=1e-300).log_().to(self.device)
