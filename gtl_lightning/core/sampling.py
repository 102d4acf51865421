"""One sampler for unguided, sequence-ratio and token-ratio guidance (GTL Algorithm 1; docs/method.md 2, 2.4).

Planner mode reveals k positions a step, `positions_per_step`; with k = 1 and an exact denoiser and ratio it draws from
q itself, in any order (eq. 6). Ancestral mode (`ancestral.py`) walks a time grid of `steps` (eq. 2 and 5), exact as the
grid is refined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gtl_lightning.core.ancestral import ancestral
from gtl_lightning.core.blocks import Blocks, Reuse
from gtl_lightning.core.callables import called
from gtl_lightning.core.choices import (
    UNSET,
    Draw,
    Order,
    Unset,
    check_kind,
    check_temperature,
    grouped,
)
from gtl_lightning.core.forward import uniform_noise
from gtl_lightning.core.guard import Guard, tensor_of, wide
from gtl_lightning.core.guidance import Guidance
from gtl_lightning.core.planners import CERTAINTY
from gtl_lightning.core.proposal import COLD, Padding, Proposal
from gtl_lightning.core.protocols import Denoiser, Hidden, PaddingOnce, Planner, call, check_denoiser
from gtl_lightning.core.schedule import LogLinear, NoiseSchedule
from gtl_lightning.core.trace import Observer, Trace
from gtl_lightning.errors import UserError, check_whole

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
    positions_per_step: int | Unset = UNSET,
    blocks: Blocks | None = None,
    steps: int | None = None,
    prompt: Tensor | None = None,
    temperature: float | Unset = UNSET,
    top_p: float | Unset = UNSET,
    planner_temperature: float | Unset = UNSET,
    order: Order | None = None,
    draw: Draw | None = None,
    schedule: NoiseSchedule | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    observe: Observer | Sequence[Observer] | None = None,
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
        planner: as in `choices.Order`, where the defaults of these four stand.
        positions_per_step: as in `Order`.
        blocks: as in `Order`; whole passes are then needed at times only.
        steps: ancestral mode, this many steps of time in place of a planner.
        prompt: Long[b,l] with mask_index where tokens are wanted; other tokens are kept. Padding, on either side, where
            the denoiser tells its `pad_index`, does not change the law of a row, and no more of it is drawn; a batch
            without padding may draw that id, where the denoiser gives it mass: it is some models' end of a text.
        temperature: as in `choices.Draw`, where the defaults of these two stand.
        top_p: as in `Draw`.
        planner_temperature: `temperature` of an `Order`.
        order: the four in one, in their place.
        draw: the two in one, in their place.
        schedule: LogLinear by default. Networks see the time at which the expected share of clean tokens is the
            revealed share of the sequence; ancestral mode steps on its alpha.
        generator: the only source of randomness; fastest on the device of the networks.
        device: by default that of the prompt, the denoiser's parameters or the generator.
        observe: is handed a `trace.Step` after every step, or several are; without it, nothing is kept or computed.

    Raises:
        UserError: an argument out of range, a prompt that does not fit, or a callable that gives another shape, NaN,
            infinity or no law.
    """
    whole = {"mask_index": mask_index, "batch": batch, "length": length, "steps": steps}
    _check_kinds(denoiser, guidance, schedule, generator, **whole)
    order = _ordered(order, steps, planner, positions_per_step, blocks, planner_temperature)
    draw = grouped(Draw, draw, {"temperature": ("temperature", temperature), "top_p": ("top_p", top_p)})
    trace = Trace.of(observe, mask_index)
    x = _start(denoiser, mask_index, batch, length, prompt, generator, device)
    ratio = guidance.ratio.f if guidance else None
    padding = None if prompt is None else Padding.of(x, denoiser)
    guard = Guard(
        mask_index,
        denoiser,
        ratio=ratio,
        planner=order.planner,
        pad_index=padding.index if padding is not None else None,
    )
    proposal = Proposal(
        denoiser,
        guidance,
        mask_index,
        x.shape[1],
        draw,
        schedule or LogLinear(),
        generator,
        x.device,
        guard,
        padding,
        PaddingOnce(x),
        trace,
    )
    with guard.run():
        if prompt is not None and x.numel():
            proposal.check_tokens(x)
        if steps is not None:
            return ancestral(proposal, x, steps)
        return _planned(proposal, x, order)


def _priority(order: Order, proposal: Proposal, hidden: Hidden, masked: Tensor, start: int, left: list[int]) -> Tensor:
    """Float[n,w] of the masked among positions start..start+w-1, Bool[n,w]; `left` of each row, most first.

    The random order draws anew at every step: among the positions that are left it is as uniform as one order
    drawn at the beginning.
    """
    x = hidden.x_t
    if order.planner == "random":
        return uniform_noise(tuple(masked.shape), proposal.generator, proposal.device)
    if isinstance(order.planner, str):
        return _certainty(order.planner, proposal, hidden, masked, start, sum(left), left[0])
    score = tensor_of(call(order.planner, hidden.look, x), tuple(x.shape), order.planner, "planner")
    score = wide(score[:, start : start + masked.shape[1]]).masked_fill(~masked, -math.inf)
    proposal.guard.note("planner", score)
    if order.temperature == 0:
        return score
    if order.temperature < COLD:
        score = score - score.amax(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).min)
    return score / order.temperature + proposal.gumbel(score.shape)


def _certainty(
    planner: str, proposal: Proposal, hidden: Hidden, masked: Tensor, start: int, left: int, most: int
) -> Tensor:
    """Only masked positions pass the last block and meet the vocabulary, `CHUNK` at a time.

    Of each only the score is kept; where one chunk holds them all, so is their law, from which the tokens are drawn.
    """
    slots = masked.flatten().int().argsort(descending=True)[:left]
    row, position = slots // masked.shape[1], slots % masked.shape[1] + start
    hidden.only(masked.int().argsort(dim=-1, descending=True, stable=True)[:, :most] + start)
    parts = zip(row.split(CHUNK), position.split(CHUNK), strict=True)
    laws = (proposal.log_p(r, p, hidden, keep=left <= CHUNK) for r, p in parts)
    scores = torch.cat([CERTAINTY[planner](law) for law in laws])
    return scores.new_full((masked.numel(),), -math.inf).scatter(0, slots, scores).view(masked.shape)


def _planned(proposal: Proposal, x: Tensor, order: Order) -> Tensor:
    """GTL Algorithm 1: reveal k positions a step, in blocks from left to right (by default in one)."""
    x, length = x.clone(), x.shape[1]
    edges = [*range(0, length, order.blocks.size if order.blocks else length), length]
    masks = torch.stack([(x[:, a:b] == proposal.mask_index).sum(-1) for a, b in pairwise(edges)])
    # The one synchronisation with the host: from here on every step's shape is known beforehand.
    counts = masks.tolist()
    _check_rows(proposal, counts)
    k, trace, taken = order.positions_per_step, proposal.trace, 0
    if trace is not None:
        trace.steps, trace.wanted = sum(-(-max(count, default=0) // k) for count in counts), sum(map(sum, counts))
        revealed = 0
    for (start, stop), count, by_row in zip(pairwise(edges), counts, masks, strict=True):
        # Rows with the fewest masks finish first and leave the batch; those without any never enter it.
        wanted = sorted((n for n in count if n), reverse=True)
        rows = by_row.argsort(descending=True, stable=True)[: len(wanted)]
        inside = x[rows]
        reuse = Reuse(order.blocks, start, stop, length)
        for step, done in enumerate(range(0, max(wanted, default=0), k)):
            left = [n - done for n in wanted if n > done]
            taken += 1
            proposal.guard.where = f"step {taken}"
            row, position = _reveal(proposal, inside[: len(left)], order, reuse, step, start, stop, left)
            if trace is not None:
                revealed += len(row)
                trace.tell(taken, revealed, x.index_copy(0, rows, inside), rows[row], position)
        x[rows] = inside
    return x


def _check_rows(proposal: Proposal, counts: list[list[int]]) -> None:
    """Refuse rows that would be reordered, or leave the batch one by one, where a network knows them by their place.

    Raises:
        UserError: rows have different numbers of masks.
    """
    ratio = proposal.guidance.ratio.f if proposal.guidance else None
    fixed = next((each for each in (proposal.denoiser, ratio) if getattr(each, "fixed_rows", False) is True), None)
    if fixed is not None and any(len(set(count)) > 1 for count in counts):
        raise UserError(
            f"the {called(fixed, 'network')} knows rows by their place, and those of the prompt hold different numbers "
            "of masks; sample the rows of each number together"
        )


def _reveal(
    proposal: Proposal, x: Tensor, order: Order, reuse: Reuse, step: int, start: int, stop: int, left: list[int]
) -> tuple[Tensor, Tensor]:
    """One step: writes up to k tokens a row into x Long[n,l], at positions start..stop-1; `left` masks are there.

    Returns:
        Long[m] rows and Long[m] positions of the tokens.
    """
    hidden = proposal.hidden(x, reuse.look(step))
    masked = x[:, start:stop] == proposal.mask_index
    score = _priority(order, proposal, hidden, masked, start, left)
    # A finite floor: what a planner scores -inf still comes before what is no mask.
    score = score.clamp(min=torch.finfo(score.dtype).min).masked_fill(~masked, -math.inf)
    width = min(order.positions_per_step, left[0])
    position = score.topk(width, -1).indices + start
    hidden.only(position)
    row = torch.arange(len(x), device=x.device)[:, None].expand_as(position)
    row, position = row.reshape(-1), position.reshape(-1)
    if left[-1] < width:  # some rows want fewer than the rest: their masks come first
        beyond = torch.arange(width, device=x.device) >= masked.sum(-1, keepdim=True)
        fits = beyond.flatten().int().argsort(stable=True)[: sum(min(n, width) for n in left)]
        row, position = row[fits], position[fits]
    log_w, ids, _ = proposal.weights(x, row, position, hidden)
    x[row, position] = proposal.draw(log_w, ids)
    return row, position


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
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise UserError(f"device = {device!r} cannot be used ({str(error).splitlines()[0]})") from error
    if prompt is not None:
        if not isinstance(prompt, Tensor):
            raise UserError(f"prompt is a {type(prompt).__name__}; give a tensor, Long[batch,length]")
        if prompt.dim() != 2 or prompt.dtype != torch.long:
            raise UserError(f"prompt must be Long[batch,length], got {prompt.dtype} of shape {tuple(prompt.shape)}")
        if not prompt.shape[1]:
            raise UserError("prompt has rows of no token; sampling needs at least one")
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


def _ordered(
    order: Order | None,
    steps: int | None,
    planner: str | Planner | None,
    positions_per_step: int | Unset,
    blocks: Blocks | None,
    planner_temperature: float | Unset,
) -> Order:
    """The order, as a group or of single arguments; ancestral mode reads none of it."""
    if positions_per_step is not UNSET:
        check_whole("positions_per_step", positions_per_step)
    chosen = order is not None or planner is not None or positions_per_step not in (UNSET, 1) or blocks is not None
    if steps is not None and chosen:
        raise UserError(
            "steps (ancestral) and planner / positions_per_step / blocks exclude one another: give one of them"
        )
    if steps is not None and steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if planner_temperature is not UNSET:
        check_temperature("planner_temperature", planner_temperature)
    flat = {
        "planner": ("planner", UNSET if planner is None else planner),
        "positions_per_step": ("positions_per_step", positions_per_step),
        "blocks": ("blocks", UNSET if blocks is None else blocks),
        "planner_temperature": ("temperature", planner_temperature),
    }
    return grouped(Order, order, flat)


def _check_kinds(denoiser: object, guidance: object, schedule: object, generator: object, **numbers: object) -> None:
    """Raise UserError for arguments of another kind; `numbers` are whole ones, or None."""
    for name, value in numbers.items():
        if value is not None or name == "mask_index":
            check_whole(name, value)
    check_denoiser(denoiser)
    check_kind("guidance", guidance, Guidance, "Guidance(TokenRatio(f))")
    check_kind("schedule", schedule, NoiseSchedule, "LogLinear()")
    check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
