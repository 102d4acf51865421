"""Ancestral mode of the sampler: reverse steps on a grid of times (docs/method.md eq. 2, 5; section 2.4)."""

from __future__ import annotations

import math
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor

from gtl_lightning.core.forward import uniform_noise
from gtl_lightning.core.proposal import Proposal
from gtl_lightning.errors import UserError


def ancestral(proposal: Proposal, x: Tensor, steps: int) -> Tensor:
    """Reverse steps on an even grid of times (docs/method.md eq. 2 unguided, eq. 5 guided).

    Raises:
        UserError: the schedule's alpha is not finite, or falls as the noise does.
    """
    alphas = proposal.schedule.alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).double()
    if not (alphas.isfinite().all() and (alphas.diff() >= 0).all()):
        raise UserError(f"alpha of the schedule ({type(proposal.schedule).__name__}) must rise from t = 1 to t = 0")
    raw = proposal.guidance is not None and not proposal.guidance.stabilise
    return (_raw_steps if raw else _drawn_steps)(proposal, x.clone(), alphas)


def _drawn_steps(proposal: Proposal, x: Tensor, alphas: Tensor) -> Tensor:
    """No network decides when a position is revealed: drawn beforehand, so that only rows with a reveal are evaluated.

    A mask outlives step s with probability (1 - alpha_s) / (1 - alpha_start); the last step reveals all.
    """
    row, position = (x == proposal.mask_index).nonzero(as_tuple=True)
    share = (alphas[1:-1] - alphas[0]) / (1 - alphas[0])
    drawn = uniform_noise((len(row),), proposal.generator, proposal.device).double()
    when = torch.bucketize(drawn, share.to(x.device), right=True)
    by_step = when.argsort(stable=True)
    row, position = row[by_step], position[by_step]
    # The one synchronisation with the host: how many positions, and which rows, belong to each step.
    counts, rows_on_host = torch.bincount(when, minlength=len(alphas) - 1).tolist(), row.tolist()
    rows_of, at_of = _rows_by_step(rows_on_host, counts, x.device)
    trace, done = proposal.trace, 0
    if trace is not None:
        trace.steps, trace.wanted = len(counts), len(row)
    for step, count in enumerate(counts):
        proposal.guard.where = f"step {step + 1} of {len(counts)}"
        if count:
            here = slice(done, done + count)
            token, _ = _propose(proposal, x[rows_of[step]], at_of[step], position[here])
            x[row[here], position[here]] = token
            done += count
            if trace is not None:
                trace.tell(step + 1, done, x, row[here], position[here])
    return x


def _rows_by_step(
    rows: list[int], counts: list[int], device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Of every step the rows that it evaluates, each once, and where among them those of its reveals stand.

    Both for all steps at once: a copy to the device at each would hold it up.

    Args:
        rows: of the reveals, step by step.
        counts: reveals of each step.
        device: of the result.
    """
    ends = list(accumulate(counts))
    by_step = [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]
    each = [sorted(set(mine)) for mine in by_step]
    places = [{row: index for index, row in enumerate(own)} for own in each]
    at = [place[row] for place, mine in zip(places, by_step, strict=True) for row in mine]
    evaluated = torch.tensor(list(chain.from_iterable(each)), dtype=torch.long, device=device)
    return evaluated.split(list(map(len, each))), torch.tensor(at, dtype=torch.long, device=device).split(counts)


def _raw_steps(proposal: Proposal, x: Tensor, alphas: Tensor) -> Tensor:
    """Without the stabiliser every masked position is weighed against staying masked.

    A token is drawn for each beforehand and kept, with its lift, as long as the row does not change: only rows that
    changed are evaluated. The networks decide which these are, so that the host has to ask: once a step, for how many
    masks of each.
    """
    token, lift = x.clone(), torch.zeros(x.shape, device=x.device)
    stale = torch.ones(len(x), dtype=torch.bool, device=x.device)
    trace, done = proposal.trace, 0
    if trace is not None:
        trace.steps, trace.wanted = len(alphas) - 1, int((x == proposal.mask_index).sum())
    for step, (alpha_t, alpha_s) in enumerate(pairwise(alphas.tolist())):
        proposal.guard.where = f"step {step + 1} of {len(alphas) - 1}"
        masked = x == proposal.mask_index
        where = masked & stale[:, None]
        counts = where.sum(-1).tolist()
        if any(counts):
            # In order of rows, and of positions within one, as the masks' own indices would be.
            rows = (~where).all(-1).int().argsort(stable=True)[: sum(map(bool, counts))]
            masks = (~where[rows]).flatten().int().argsort(stable=True)[: sum(counts)]
            row, position = masks // x.shape[1], masks % x.shape[1]
            drawn, gain = _propose(proposal, x[rows], row, position)
            token[rows[row], position], lift[rows[row], position] = drawn, gain.to(lift.dtype)
            if trace is not None:
                trace.keep(x, rows[row], position)
        if step == len(alphas) - 2:
            reveal = masked
        else:
            odds = math.log(max(alpha_s - alpha_t, 1e-300)) - math.log(1 - alpha_s)
            reveal = masked & (uniform_noise(tuple(x.shape), proposal.generator, x.device) < torch.sigmoid(odds + lift))
        x = torch.where(reveal, token, x)
        stale = reveal.any(-1)
        if trace is not None:
            row, position = reveal.nonzero(as_tuple=True)
            done += len(row)
            trace.recall(row, position)
            trace.tell(step + 1, done, x, row, position)
    return x


def _propose(proposal: Proposal, x: Tensor, row: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Long[m] tokens drawn for m (row, position) pairs of x Long[n,l], and Float[m] their lifts."""
    hidden = proposal.hidden(x)
    log_w, ids, gain = proposal.weights(x, row, position, hidden)
    return proposal.draw(log_w, ids), gain
