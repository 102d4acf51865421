"""One sampler for unguided, sequence-ratio and token-ratio guidance (GTL Algorithm 1; docs/method.md 2, 2.4).

Planner mode reveals k positions a step, `positions_per_step`; with k = 1 and an exact denoiser and ratio it draws from
q itself, in any order (eq. 6). Ancestral mode (`ancestral.py`) walks a time grid of `steps` (eq. 2 and 5), exact as the
grid is refined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gtl_lightning.core.ancestral import Progress, ancestral
from gtl_lightning.core.blocks import Blocks, Reuse
from gtl_lightning.core.forward import uniform_noise
from gtl_lightning.core.guard import Guard, tensor_of, wide
from gtl_lightning.core.guidance import Guidance
from gtl_lightning.core.planners import CERTAINTY
from gtl_lightning.core.proposal import COLD, Padding, Proposal
from gtl_lightning.core.protocols import Denoiser, Encoder, Hidden, PaddingOnce, Planner, call
from gtl_lightning.core.schedule import LogLinear, NoiseSchedule
from gtl_lightning.errors import UserError

HOT = 1e6
"""Largest temperature: far below it all tokens are alike, far above it single precision ends."""
CHUNK = 512
"""Positions that a certainty planner projects to the vocabulary at a time."""


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
    blocks: Blocks | None = None,
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
        denoiser: (Long[b,l], Float[b]) -> Float[b,l,v] log-probabilities of the clean token, or logits; v counts the
            mask too. If it is an `Encoder`, only the positions about to be revealed meet the vocabulary. Modules are in
            eval mode for the call.
        mask_index: id of the mask token.
        batch: number of sequences; may be left out with a prompt.
        length: tokens in a sequence; may be left out with a prompt.
        guidance: None samples the denoiser alone.
        planner: which position next: "random" (the default), "confidence", "margin", "entropy" or a callable
            Long[b,l] -> Float[b,l], from which positions are drawn by softmax(score / planner_temperature).
        positions_per_step: positions revealed together in planner mode, independently of one another.
        blocks: planner mode from left to right, block by block; whole passes are then needed at times only.
        steps: ancestral mode, this many steps of time in place of a planner.
        prompt: Long[b,l] with mask_index where tokens are wanted; other tokens are kept. Padding, on either side, where
            the denoiser tells its `pad_index`, does not change the law of a row, and no more of it is drawn.
        temperature: of the guided token distribution; 0 takes the most likely token.
        top_p: nucleus, the least set of tokens with at least this probability.
        planner_temperature: of a callable planner; 0 takes the highest score.
        schedule: LogLinear by default. Networks see the time at which the expected share of clean tokens is the
            revealed share of the sequence; ancestral mode steps on its alpha.
        generator: the only source of randomness; fastest on the device of the networks.
        device: by default that of the prompt, the denoiser's parameters or the generator.
        progress: called with (revealed, total) tokens after every step.

    Raises:
        UserError: an argument out of range, a prompt that does not fit, or a callable that gives another shape, NaN,
            infinity or no law.
    """
    whole = {"mask_index": mask_index, "batch": batch, "length": length, "positions_per_step": positions_per_step}
    _check_kinds(denoiser, guidance, blocks, schedule, generator, steps=steps, **whole)
    _check(planner, positions_per_step, blocks, steps, temperature, top_p, planner_temperature)
    x = _start(denoiser, mask_index, batch, length, prompt, generator, device)
    ratio = guidance.ratio.f if guidance else None
    padding = None if prompt is None else Padding.of(x, denoiser)
    guard = Guard(
        mask_index, denoiser, ratio=ratio, planner=planner, pad_index=padding.index if padding is not None else None
    )
    proposal = Proposal(
        denoiser,
        guidance,
        mask_index,
        x.shape[1],
        temperature,
        top_p,
        schedule or LogLinear(),
        generator,
        x.device,
        guard,
        padding,
        PaddingOnce(x),
    )
    with guard.run():
        if prompt is not None and x.numel():
            proposal.check_tokens(x)
        if steps is not None:
            return ancestral(proposal, x, steps, progress)
        order = _Order(planner or "random", positions_per_step, planner_temperature, blocks)
        return _planned(proposal, x, order, progress)


@dataclass(frozen=True)
class _Order:
    """Planner mode's choice of positions."""

    planner: str | Planner
    k: int
    temperature: float
    blocks: Blocks | None

    def priority(self, proposal: Proposal, hidden: Hidden, masked: Tensor, start: int, left: int) -> Tensor:
        """Float[n,w] of the masked among positions start..start+w-1, Bool[n,w]; `left` are True, which costs no look.

        The random order draws anew at every step: among the positions that are left it is as uniform as one order
        drawn at the beginning.
        """
        x = hidden.x_t
        if self.planner == "random":
            return uniform_noise(tuple(masked.shape), proposal.generator, proposal.device)
        if isinstance(self.planner, str):
            return self._certainty(proposal, hidden, masked, start, left)
        score = tensor_of(call(self.planner, hidden.look, x), tuple(x.shape), self.planner, "planner")
        score = wide(score[:, start : start + masked.shape[1]]).masked_fill(~masked, -math.inf)
        proposal.guard.note("planner", score)
        if self.temperature == 0:
            return score
        if self.temperature < COLD:
            score = score - score.amax(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).min)
        return score / self.temperature + proposal.gumbel(score.shape)

    def _certainty(self, proposal: Proposal, hidden: Hidden, masked: Tensor, start: int, left: int) -> Tensor:
        """Only masked positions meet the vocabulary, `CHUNK` at a time, and of each only the score is kept."""
        slots = masked.flatten().int().argsort(descending=True)[:left]
        row, position = slots // masked.shape[1], slots % masked.shape[1] + start
        parts = zip(row.split(CHUNK), position.split(CHUNK), strict=True)
        scores = torch.cat([CERTAINTY[str(self.planner)](proposal.log_p(r, p, hidden)) for r, p in parts])
        return scores.new_full((masked.numel(),), -math.inf).scatter(0, slots, scores).view(masked.shape)


def _planned(proposal: Proposal, x: Tensor, order: _Order, progress: Progress | None) -> Tensor:
    """GTL Algorithm 1: reveal k positions a step, in blocks from left to right (by default in one)."""
    x, length = x.clone(), x.shape[1]
    edges = [*range(0, length, order.blocks.size if order.blocks else length), length]
    masks = torch.stack([(x[:, a:b] == proposal.mask_index).sum(-1) for a, b in pairwise(edges)])
    # The one synchronisation with the host: from here on every step's shape is known beforehand.
    counts = masks.tolist()
    total, revealed = sum(map(sum, counts)), 0
    taken = 0
    for (start, stop), count, by_row in zip(pairwise(edges), counts, masks, strict=True):
        # Rows with the fewest masks finish first and leave the batch; those without any never enter it.
        wanted = sorted((n for n in count if n), reverse=True)
        rows = by_row.argsort(descending=True, stable=True)[: len(wanted)]
        inside = x[rows]
        reuse = Reuse(order.blocks, start, stop, length)
        for step, done in enumerate(range(0, max(wanted, default=0), order.k)):
            left = [n - done for n in wanted if n > done]
            taken += 1
            proposal.guard.where = f"step {taken}"
            _reveal(proposal, inside[: len(left)], order, reuse, step, start, stop, left)
            revealed += sum(min(order.k, n) for n in left)
            if progress is not None:
                progress(revealed, total)
        x[rows] = inside
    return x


def _reveal(
    proposal: Proposal, x: Tensor, order: _Order, reuse: Reuse, step: int, start: int, stop: int, left: list[int]
) -> None:
    """One step: writes up to k tokens a row into x Long[n,l], at positions start..stop-1; `left` masks are there."""
    hidden = proposal.hidden(x, reuse.look(step))
    masked = x[:, start:stop] == proposal.mask_index
    score = order.priority(proposal, hidden, masked, start, sum(left))
    # A finite floor: what a planner scores -inf still comes before what is no mask.
    score = score.clamp(min=torch.finfo(score.dtype).min).masked_fill(~masked, -math.inf)
    width = min(order.k, left[0])
    position = score.topk(width, -1).indices + start
    hidden.only(position)
    row = torch.arange(len(x), device=x.device)[:, None].expand_as(position)
    row, position = row.reshape(-1), position.reshape(-1)
    if left[-1] < width:  # some rows want fewer than the rest: their masks come first
        wanted = [i * width + j for i, n in enumerate(left) for j in range(min(n, width))]
        fits = torch.tensor(wanted, device=x.device)
        row, position = row[fits], position[fits]
    log_p = proposal.log_p(row, position, hidden)
    log_w, ids, _ = proposal.weights(x, row, position, log_p, hidden)
    x[row, position] = proposal.draw(log_w, ids)


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


def _check_kinds(
    denoiser: object, guidance: object, blocks: object, schedule: object, generator: object, **numbers: object
) -> None:
    """Raise UserError for arguments of another kind; `numbers` are whole ones, or None."""
    for name, value in numbers.items():
        if value is not None and not hasattr(value, "__index__"):
            raise UserError(f"{name} must be a whole number, got {value!r}")
    if not callable(denoiser) and not isinstance(denoiser, Encoder):
        raise UserError(f"the denoiser is a {type(denoiser).__name__}; give a function of (x_t, t)")
    kinds: dict[str, tuple[object, type, str]] = {
        "guidance": (guidance, Guidance, "Guidance(TokenRatio(f))"),
        "blocks": (blocks, Blocks, "Blocks(size)"),
        "schedule": (schedule, NoiseSchedule, "LogLinear()"),
        "generator": (generator, torch.Generator, "torch.Generator().manual_seed(0)"),
    }
    for name, (value, kind, example) in kinds.items():
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{name} is a {type(value).__name__}, not a {kind.__name__}; give for example {example}")


def _check(
    planner: str | Planner | None,
    k: int,
    blocks: Blocks | None,
    steps: int | None,
    temperature: float,
    top_p: float,
    planner_temperature: float,
) -> None:
    """Raise UserError for arguments out of range."""
    if steps is not None and (planner is not None or k != 1 or blocks is not None):
        raise UserError(
            "steps (ancestral) and planner / positions_per_step / blocks exclude one another: give one of them"
        )
    if steps is not None and steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if isinstance(planner, str) and planner not in ("random", *CERTAINTY):
        raise UserError(f"planner '{planner}' is unknown; choose random, {', '.join(CERTAINTY)}, or pass a callable")
    if k < 1:
        raise UserError(f"positions_per_step must be at least 1, got {k}")
    for name, value in (("temperature", temperature), ("planner_temperature", planner_temperature)):
        if not (hasattr(value, "__float__") and 0 <= value <= HOT):
            raise UserError(
                f"{name} must be finite and not negative (0 takes the most likely), at most {HOT:g}, got {value!r}"
            )
    if not (hasattr(top_p, "__float__") and 0 < top_p <= 1):
        raise UserError(f"top_p must lie in (0, 1], got {top_p!r}")
    if planner is not None and not isinstance(planner, str) and not callable(planner):
        raise UserError(f"planner is a {type(planner).__name__}; give a name or a function of x_t")
