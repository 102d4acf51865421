"""What the mask of a decoder is read as before any training, where no text ever had it (docs/ar2diff.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.guard import evaluating
from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.modules.continuation import counted
from gtl_lightning.networks.pretrained import PretrainedDenoiser
from gtl_lightning.papers.ar2diff import targets

CANDIDATES = 32
"""Frequent tokens that are tried."""
MOST = (2, 3, 4, 6, 8)
"""How many of the best are tried as a mean."""
DRAWS = 2
"""Noise draws of each trial; the same for all."""


@dataclass(frozen=True)
class Blank:
    """What was chosen.

    Attributes:
        tokens: ids whose rows the mask's is the mean of; none where the row that there was is better.
        before: nats a token (NELBO) of the texts that chose, with the row that there was.
        after: with the row that was chosen.
    """

    tokens: tuple[int, ...]
    before: float
    after: float


def frequent(tokens: Tensor, excluded: Tensor, count: int = CANDIDATES) -> list[int]:
    """The `count` most frequent of Long[n] that are not in `excluded` Bool[v], the most frequent first."""
    counts = torch.bincount(tokens.flatten().cpu(), minlength=len(excluded))
    counts[excluded.cpu()] = 0
    order = counts.argsort(descending=True, stable=True)[:count]
    return [int(index) for index in order if counts[index]]


def choose_blank(denoiser: PretrainedDenoiser, x_0: Tensor, candidates: Sequence[int], seed: int = 0) -> Blank:
    """Set the mask's row of the input embedding to what `x_0` Long[b,l] is likeliest with; weights stay otherwise.

    A decoder has rows that say little of their own, those of its function words, and reads past them; the mean of a few
    of them says less still, and is no token. Tried are each candidate's row and the means of the best ones.
    """
    weight = cast(nn.Embedding, denoiser.model.get_input_embeddings()).weight
    rows = weight.detach()[list(candidates)].clone()
    score = _scorer(denoiser, x_0, seed)
    given = weight.detach()[denoiser.mask_index].clone()

    def put(row: Tensor) -> None:
        with torch.no_grad():
            weight[denoiser.mask_index] = row

    def tried(row: Tensor) -> float:
        put(row)
        return score()

    before, alone = tried(given), [tried(row) for row in rows]
    best = sorted(range(len(rows)), key=alone.__getitem__)
    choices: list[tuple[float, Tensor, tuple[int, ...]]] = [(before, given, ())]
    for count in (1, *MOST):
        if count <= len(best):
            some = best[:count]
            row = rows[some].mean(0)
            value = alone[some[0]] if count == 1 else tried(row)
            choices.append((value, row, tuple(candidates[index] for index in some)))
    after, row, tokens = min(choices, key=lambda choice: choice[0])
    put(row)
    return Blank(tokens, before, after)


def _scorer(denoiser: PretrainedDenoiser, x_0: Tensor, seed: int) -> Callable[[], float]:
    target, schedule = targets(x_0, denoiser.pad_index), LogLinear()

    def score() -> float:
        total, count = torch.zeros(2).double()
        with torch.no_grad(), evaluating(denoiser):
            for draw in range(DRAWS):
                generator = torch.Generator(x_0.device).manual_seed(seed + draw)
                found = counted(denoiser, x_0, target, None, schedule, generator)
                total, count = total + found[0].double().cpu(), count + found[1].double().cpu()
        return float(total / count)

    return score
