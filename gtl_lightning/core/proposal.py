"""What a sampler's steps have in common: the times, the denoiser's proposal, its guidance, the draw of the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gtl_lightning.core.choices import Draw
from gtl_lightning.core.forward import gumbel_noise
from gtl_lightning.core.guard import Guard, check_ids, wide
from gtl_lightning.core.guidance import Guidance, SequenceRatio, tilt, top_candidates
from gtl_lightning.core.planners import nucleus
from gtl_lightning.core.protocols import EVERYWHERE, Denoiser, Encoder, Hidden, Look, PaddingOnce
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.core.trace import Trace
from gtl_lightning.errors import UserError

COLD = 1e-3
"""Temperature below which log-weights are divided with the likeliest at zero, lest all of them overflow."""


@dataclass(frozen=True)
class Padding:
    """The padding of a prompt; what it leaves is a row's own length, by which its share of revealed tokens counts.

    Attributes:
        index: its id.
        lengths: of the rows, 0 left out.
    """

    index: int
    lengths: set[int]

    @classmethod
    def of(cls, prompt: Tensor, denoiser: object) -> Padding | None:
        """The padding of Long[b,l], if its denoiser says which id that is and it occurs.

        Raises:
            UserError: it stands within a row, between what is read and what is wanted.
        """
        index = getattr(denoiser, "pad_index", None)
        if not isinstance(index, int) or not (found := prompt == index).any():
            return None
        row, place = (~found).nonzero(as_tuple=True)
        first = torch.full((len(prompt),), prompt.shape[1], device=prompt.device).scatter_reduce(0, row, place, "amin")
        last = torch.zeros_like(first).scatter_reduce(0, row, place, "amax")
        if (within := (last - first + 1 > (~found).sum(-1))).any():
            raise UserError(
                f"prompt: row {int(within.nonzero()[0])} holds the padding, id {index}, within it; put it before or "
                "behind all that is given and wanted, before it where texts of several lengths are continued"
            )
        return cls(index, set((~found).sum(-1).tolist()) - {0})


@dataclass
class Proposal:
    """What stays fixed while one batch is sampled, and the proposal of tokens at given positions."""

    denoiser: Denoiser
    guidance: Guidance | None
    mask_index: int
    length: int
    drawing: Draw
    schedule: NoiseSchedule
    generator: torch.Generator | None
    device: torch.device
    guard: Guard
    padding: Padding | None = None
    padded: PaddingOnce | None = None
    trace: Trace | None = None

    def __post_init__(self) -> None:
        # By the number of revealed positions, 0..length, and, where rows are padded, by their own length before that.
        lengths = range(self.length + 1) if self.padding else (self.length,)
        used = self.padding.lengths if self.padding else {self.length}
        guidance = self.guidance
        times = [self._times(n) if n in used else torch.zeros(1) for n in lengths]
        strengths = [guidance.strengths(n) if guidance and n in used else [0.0] for n in lengths]
        self.times = self._table(times, torch.float32)
        # In double precision: cast to that of the log-probabilities, gamma is the nearest number to the one given.
        self.gammas = self._table([torch.tensor(s, dtype=torch.float64) for s in strengths], torch.float64)

    def _times(self, length: int) -> Tensor:
        """Float64[length+1]; in double precision, as some inverses are steep at alpha = 0."""
        times = self.schedule.inverse(torch.arange(length + 1, dtype=torch.float64) / length)
        if not times.isfinite().all():
            raise UserError(f"the schedule ({type(self.schedule).__name__}) gave a time that is not finite; mend it")
        return times.clamp(0, 1)

    def _table(self, rows: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Float[length+1], or where rows are padded Float[lengths,length+1], filled up with zeros."""
        table = pad_sequence(rows, batch_first=True) if self.padding else rows[0]
        return table.to(self.device, dtype)

    def _at(self, table: Tensor, x: Tensor, ahead: int = 0) -> Tensor:
        """Float[b]: the entries of a table for the rows of x, `ahead` positions later."""
        revealed = (x != self.mask_index).sum(-1) + ahead
        if self.padding is None:
            return table[revealed]
        pads = (x == self.padding.index).sum(-1)
        return table[self.length - pads, revealed - pads]

    def time(self, x: Tensor, ahead: int = 0) -> Tensor:
        """Float[b]: the time at which the revealed share of x, `ahead` positions later, is expected."""
        return self._at(self.times, x, ahead)

    def hidden(self, x: Tensor, look: Look = EVERYWHERE) -> Hidden:
        """One pass of each network at x serves the proposal, the planner and a ratio that reads the denoiser."""
        return Hidden(x, self.time(x), replace(look, padding=self.padded))

    def log_p(self, row: Tensor, position: Tensor, hidden: Hidden, keep: bool = False) -> Tensor:
        """Float[m,v] the denoiser's law at m (row, position) pairs; the mask is never proposed.

        `keep`: all that is asked of this `hidden` from now on is among the pairs, and is not computed again.
        """
        if hidden.kept is not None:
            slot, kept = hidden.kept
            return kept[slot[row, position]]
        log_p = self.guard.law(hidden.at(self.denoiser, row, position))
        if keep:
            slot = torch.zeros_like(hidden.x_t)
            slot[row, position] = torch.arange(len(row), device=self.device)
            hidden.kept = slot, log_p
        return log_p

    def check_tokens(self, x: Tensor) -> None:
        """Compare a prompt with the vocabulary; what does not tell its `vocab_size` predicts a blank row."""
        blank = torch.full_like(x[:1], self.mask_index)
        first = torch.zeros(1, dtype=torch.long, device=x.device)
        told = getattr(self.denoiser, "vocab_size", None)
        v = told if isinstance(told, int) else self.log_p(first, first, self.hidden(blank)).shape[-1]
        check_ids(x, v, "prompt")

    def weights(self, x: Tensor, row: Tensor, position: Tensor, hidden: Hidden) -> tuple[Tensor, Tensor | None, Tensor]:
        """Log-weights p * r^gamma of the candidates at m positions, up to a number a row; no temperature, no nucleus.

        Returns:
            Float[m,n] log-weights; Long[m,n] their ids, None when they are 0..v-1; and Float[m] the lift
            log sum_v p(v) r(x_U + {l: v})^gamma - gamma log r(x_U), by which eq. 5 without the stabiliser favours a
            reveal over the mask (zero when unguided or stabilised). A token ratio's own r(x_U) comes from eq. 6,
            which pruning restricts to the candidates.
        """
        guidance = self.guidance
        folded = None if guidance is None else self._folded(guidance, x, row, position, hidden)
        if folded is not None and self.trace is None:
            return folded, None, folded.new_zeros(len(row))
        log_p = self.log_p(row, position, hidden)
        no_lift = log_p.new_zeros(len(row))
        if guidance is None:
            if self.trace is not None:
                self.trace.saw(hidden.t[row], log_p)
            return log_p, None, no_lift
        log_p, ids = top_candidates(log_p, guidance.n_ratio)
        t = hidden.t
        if isinstance(guidance.ratio, SequenceRatio):
            t_next = self.time(x, ahead=1)
            tried = ids if ids is not None else torch.arange(log_p.shape[-1], device=x.device).expand(len(row), -1)
            log_r = guidance.ratio.log_ratio(x, t, t_next, row, position, tried, guidance.chunk, hidden)
        else:
            log_r = guidance.ratio.log_ratio(x, t, t, row, position, ids, guidance.chunk, hidden)
        gamma = self._at(self.gammas, x)[row].to(log_p.dtype)
        # Watched, the draw is what it is unwatched.
        log_w = tilt(log_p, log_r, gamma[:, None]) if folded is None else folded
        self.guard.note("ratio", log_w)
        if self.trace is not None:
            self.trace.saw(t[row], log_p, ids, log_r, gamma)
        if guidance.stabilise:
            return log_w, ids, no_lift
        kept = torch.logsumexp(log_p, -1)  # pruning must not favour the mask
        if isinstance(guidance.ratio, SequenceRatio):
            own = guidance.ratio.of(x, t, hidden.look)[row]
            self.guard.note("ratio", own)
        else:  # eq. 6: the mean of r over the next token is r itself
            own = torch.logsumexp(tilt(log_p, log_r), -1) - kept
        lift = torch.logsumexp(log_w, -1) - kept - gamma * own
        return log_w, ids, lift.masked_fill(~lift.isfinite(), 0.0)

    def _folded(self, guidance: Guidance, x: Tensor, row: Tensor, position: Tensor, hidden: Hidden) -> Tensor | None:
        """Float[m,v] log-weights of all tokens by one projection, where the ratio says how (`Encoder.decode`)."""
        f, denoiser = guidance.ratio.f, self.denoiser
        tilted = getattr(f, "tilted", None)
        whole = guidance.n_ratio in (None, getattr(denoiser, "vocab_size", None)) and guidance.stabilise
        if not (whole and callable(tilted) and isinstance(f, Encoder) and isinstance(denoiser, Encoder)):
            return None
        if getattr(f, "denoiser", None) is not denoiser:
            return None
        features, own = (hidden.states(network, row, position) for network in (denoiser, f))
        gamma = self._at(self.gammas, x)[row, None].to(wide(own).dtype)
        states, bias = tilted(own, gamma)
        # In the order in which they are to blame: what the denoiser gave, what the ratio makes of it, the law.
        self.guard.note("denoiser", features.abs())
        self.guard.note("ratio", states.abs())
        log_w = torch.addcmul(self.guard.law(hidden.decoded(denoiser, states)), gamma, bias)
        self.guard.note("ratio", log_w)
        return log_w

    def draw(self, log_w: Tensor, ids: Tensor | None) -> Tensor:
        """Long[m] tokens drawn from Float[m,n] log-weights, with temperature and nucleus."""
        temperature, top_p = self.drawing.temperature, self.drawing.top_p
        if temperature == 0:
            choice = log_w.argmax(-1)
        else:
            if temperature < COLD:
                log_w = log_w - log_w.amax(-1, keepdim=True)
            if temperature != 1:
                log_w = log_w / temperature
            if top_p < 1:
                log_w = nucleus(log_w, top_p)
            choice = self.gumbel(log_w.shape).add_(log_w).argmax(-1)
        return choice if ids is None else ids.gather(-1, choice[:, None]).squeeze(-1)

    def gumbel(self, shape: torch.Size) -> Tensor:
        """Float64[shape] of the run's generator."""
        return gumbel_noise(tuple(shape), self.generator, self.device)
