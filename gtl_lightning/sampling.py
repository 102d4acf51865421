"""One sampler for unguided, sequence-ratio and token-ratio guidance (GTL Algorithm 1; docs/method.md 2, 2.4).

Planner mode reveals k positions a step, `positions_per_step`; with k = 1 and an exact denoiser and ratio it draws from
q itself, in any order (eq. 6). Ancestral mode walks a time grid of `steps` (eq. 2 and 5), exact as the grid is refined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gtl_lightning.drawing import CERTAINTY, nucleus
from gtl_lightning.errors import UserError
from gtl_lightning.forward import uniform_noise
from gtl_lightning.gtl import Guidance, SequenceRatio, tilt, top_candidates
from gtl_lightning.protocols import Denoiser, Factored, Known, Planner, at_slots, hidden_states
from gtl_lightning.schedule import LogLinear, NoiseSchedule

Progress = Callable[[int, int], None]


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    *,
    mask_index: int,
    batch: int | None = None,
    length: int | None = None,
    guidance: Guidance | None = None,
    planner: str | Planner | None = None,
    positions_per_step: int = 1,
    steps: int | None = None,
    prompt: Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    planner_temperature: float = 1.0,
    schedule: NoiseSchedule | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw Long[batch,length] from the source, or from the target when guided.

    Args:
        denoiser: (Long[b,l], Float[b]) -> Float[b,l,v] log-probabilities of the clean token; v counts the mask too.
            If it is `Factored`, only the positions about to be revealed meet the vocabulary.
        mask_index: id of the mask token.
        batch: number of sequences; may be left out with a prompt.
        length: tokens in a sequence; may be left out with a prompt.
        guidance: None samples the denoiser alone.
        planner: which position next: "random" (the default), "confidence", "margin", "entropy" or a callable
            Long[b,l] -> Float[b,l], from which positions are drawn by softmax(score / planner_temperature).
        positions_per_step: positions revealed together in planner mode, independently of one another.
        steps: ancestral mode, this many steps of time in place of a planner.
        prompt: Long[b,l] with mask_index where tokens are wanted; other tokens are kept.
        temperature: of the guided token distribution; 0 takes the most likely token.
        top_p: nucleus, the least set of tokens with at least this probability.
        planner_temperature: of a callable planner; 0 takes the highest score.
        schedule: LogLinear by default. Networks see the time at which the expected share of clean tokens is the
            revealed share of the sequence; ancestral mode steps on its alpha.
        generator: the only source of randomness; fastest on the device of the networks.
        device: by default that of the prompt, the denoiser's parameters or the generator.
        progress: called with (revealed, total) tokens after every step.

    Raises:
        UserError: an argument out of range, or a prompt that does not fit.
    """
    _check(planner, positions_per_step, steps, temperature, top_p, planner_temperature)
    x = _start(denoiser, mask_index, batch, length, prompt, generator, device)
    schedule = schedule or LogLinear()
    walk = _Walk(denoiser, guidance, mask_index, x.shape[1], temperature, top_p, schedule, generator, x.device)
    if prompt is not None and x.numel():
        walk.check_tokens(x)
    if steps is not None:
        return _ancestral(walk, x, steps, progress)
    return _planned(walk, x, planner or "random", positions_per_step, planner_temperature, progress)


@dataclass
class _Walk:
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

    def known(self, x: Tensor) -> Known:
        """The denoiser and what one pass of it gives; one pass serves the proposal and a ratio that reads it."""
        return self.denoiser, hidden_states(self.denoiser, x, self.time(x))

    def log_p(self, x: Tensor, row: Tensor, position: Tensor, known: Known | None = None) -> Tensor:
        """Float[m,v] denoiser log-probabilities at m (row, position) pairs; the mask is never proposed."""
        return self.without_mask(at_slots(self.denoiser, x, self.time(x), row, position, known))

    def log_p_everywhere(self, x: Tensor, known: Known) -> Tensor:
        """Float[b,l,v], the same at all positions."""
        hidden = known[1]
        if isinstance(self.denoiser, Factored) and hidden is not None:
            return self.without_mask(self.denoiser.decode(hidden))
        return self.without_mask(self.denoiser(x, self.time(x)))

    def without_mask(self, log_p: Tensor) -> Tensor:
        """The same log-probabilities with -inf at the mask."""
        if not 0 <= self.mask_index < log_p.shape[-1]:
            raise UserError(f"mask_index = {self.mask_index} is no id of the denoiser's {log_p.shape[-1]} tokens")
        mask = torch.arange(log_p.shape[-1], device=log_p.device) == self.mask_index
        return log_p.masked_fill(mask, -math.inf)

    def check_tokens(self, x: Tensor) -> None:
        """Compare a prompt with the vocabulary, which the shape of one fully masked prediction tells."""
        blank = torch.full_like(x[:1], self.mask_index)
        first = torch.zeros(1, dtype=torch.long, device=x.device)
        v = self.log_p(blank, first, first).shape[-1]
        low, high = x.min().item(), x.max().item()
        if low < 0 or high >= v:
            raise UserError(f"prompt holds token {low if low < 0 else high}; ids must lie in 0..{v - 1}")

    def weights(
        self, x: Tensor, row: Tensor, position: Tensor, log_p: Tensor, known: Known | None = None
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


def _planned(
    walk: _Walk, x: Tensor, planner: str | Planner, k: int, planner_temperature: float, progress: Progress | None
) -> Tensor:
    """GTL Algorithm 1: reveal k positions a step. Rows with the fewest masks finish first and leave the batch."""
    order = (x == walk.mask_index).sum(-1).argsort(descending=True, stable=True)
    x = x[order]
    # The one synchronisation with the host: from here on every step's shape is known beforehand.
    wanted = (x == walk.mask_index).sum(-1).tolist()
    total, revealed = sum(wanted), 0
    priority = uniform_noise(tuple(x.shape), walk.generator, walk.device) if planner == "random" else None
    for done in range(0, max(wanted, default=0), k):
        left = [count - done for count in wanted if count > done]
        n, width = len(left), min(k, left[0])
        active, log_p = x[:n], None
        known = walk.known(active)
        masked = active == walk.mask_index
        if priority is not None:
            score = priority[:n]
        elif isinstance(planner, str):
            log_p = walk.log_p_everywhere(active, known)
            score = CERTAINTY[planner](log_p)
        else:
            score = planner(active)
            if planner_temperature > 0:
                score = score / planner_temperature + walk.gumbel(score.shape)
        position = score.masked_fill(~masked, -math.inf).topk(width, -1).indices
        row = torch.arange(n, device=x.device)[:, None].expand_as(position)
        if left[-1] < width:  # some rows want fewer than the rest
            fits = masked.gather(1, position)
            row, position = row[fits], position[fits]
        row, position = row.reshape(-1), position.reshape(-1)
        log_p = walk.log_p(active, row, position, known) if log_p is None else log_p[row, position]
        log_w, ids, _ = walk.weights(active, row, position, log_p, known)
        active[row, position] = walk.draw(log_w, ids)
        revealed += sum(min(width, count) for count in left)
        if progress is not None:
            progress(revealed, total)
    return torch.empty_like(x).index_copy_(0, order, x)


def _ancestral(walk: _Walk, x: Tensor, steps: int, progress: Progress | None) -> Tensor:
    """Reverse steps on an even grid of times (docs/method.md eq. 2 unguided, eq. 5 guided).

    With the stabiliser a step first draws which positions are revealed, which no network decides; so only rows with a
    reveal are evaluated. Without it every masked position is weighed against staying masked; a token is then drawn for
    each beforehand and kept, together with its lift, as long as the row does not change.
    """
    raw = walk.guidance is not None and not walk.guidance.stabilise
    x = x.clone()
    token, lift = x.clone(), torch.zeros(x.shape, device=x.device)
    stale = torch.ones(len(x), dtype=torch.bool, device=x.device)
    alphas = walk.schedule.alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).tolist()
    total = int((x == walk.mask_index).sum()) if progress is not None else 0
    for step, (alpha_t, alpha_s) in enumerate(pairwise(alphas)):
        masked = x == walk.mask_index
        if raw:
            _propose(walk, x, masked & stale[:, None], token, lift)
        if step == steps - 1:
            reveal = masked
        else:
            odds = math.log(max(alpha_s - alpha_t, 1e-300)) - math.log(1 - alpha_s)
            reveal = masked & (uniform_noise(tuple(x.shape), walk.generator, x.device) < torch.sigmoid(odds + lift))
        if not raw:
            _propose(walk, x, reveal, token, lift)
        x = torch.where(reveal, token, x)
        stale = reveal.any(-1)
        if progress is not None:
            progress(total - int((x == walk.mask_index).sum()), total)
    return x


def _propose(walk: _Walk, x: Tensor, where: Tensor, token: Tensor, lift: Tensor) -> None:
    """Draw a token at every position of `where` Bool[b,l], evaluating only its rows; writes token and lift [b,l]."""
    rows = where.any(-1).nonzero().squeeze(-1)
    if len(rows) == 0:
        return
    row, position = where[rows].nonzero(as_tuple=True)
    known = walk.known(x[rows])
    log_p = walk.log_p(x[rows], row, position, known)
    log_w, ids, gain = walk.weights(x[rows], row, position, log_p, known)
    token[rows[row], position] = walk.draw(log_w, ids)
    lift[rows[row], position] = gain.to(lift.dtype)


def _start(
    denoiser: Denoiser,
    mask_index: int,
    batch: int | None,
    length: int | None,
    prompt: Tensor | None,
    generator: torch.Generator | None,
    device: torch.device | str | None,
) -> Tensor:
    """Long[b,l]: the prompt, or masks."""
    if prompt is not None:
        if prompt.dim() != 2 or prompt.dtype != torch.long:
            raise UserError(f"prompt must be Long[batch,length], got {prompt.dtype} of shape {tuple(prompt.shape)}")
        if batch not in (None, prompt.shape[0]) or length not in (None, prompt.shape[1]):
            raise UserError(f"prompt has shape {tuple(prompt.shape)}, but batch = {batch} and length = {length}")
        return prompt.to(device if device is not None else prompt.device, copy=True)
    if batch is None or length is None or batch < 0 or length < 1:
        raise UserError(
            f"sampling needs batch >= 0 and length >= 1, or a prompt; got batch = {batch}, length = {length}"
        )
    if device is None:
        weight = next(denoiser.parameters(), None) if isinstance(denoiser, torch.nn.Module) else None
        device = weight.device if weight is not None else generator.device if generator is not None else "cpu"
    return torch.full((batch, length), mask_index, dtype=torch.long, device=device)


def _check(
    planner: str | Planner | None,
    k: int,
    steps: int | None,
    temperature: float,
    top_p: float,
    planner_temperature: float,
) -> None:
    """Raise UserError for arguments out of range."""
    if steps is not None and (planner is not None or k != 1):
        raise UserError("steps (ancestral) and planner / positions_per_step exclude one another: give one of them")
    if steps is not None and steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if isinstance(planner, str) and planner not in ("random", *CERTAINTY):
        raise UserError(f"planner '{planner}' is unknown; choose random, {', '.join(CERTAINTY)}, or pass a callable")
    if k < 1:
        raise UserError(f"positions_per_step must be at least 1, got {k}")
    for name, value in (("temperature", temperature), ("planner_temperature", planner_temperature)):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} must be finite and not negative (0 takes the most likely), got {value}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must lie in (0, 1], got {top_p}")
