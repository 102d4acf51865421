"""An observer that keeps how every token came about: when, out of which candidates, under which guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gtl_lightning.core.guard import wide
from gtl_lightning.core.guidance import tilt
from gtl_lightning.core.trace import Step
from gtl_lightning.errors import UserError


@dataclass(frozen=True)
class Candidate:
    """One token that could have been set.

    Attributes:
        token: its id.
        log_p: of the denoiser.
        log_r: log r of the text with it, the ratio's word; None unguided.
        log_tilted: of log_p + gamma log_r, normalised over all candidates of the step; unguided, over all tokens,
            log_p. Temperature and top-p, which act on it when a token is drawn, are not in it.
    """

    token: int
    log_p: float
    log_r: float | None
    log_tilted: float


@dataclass(frozen=True)
class Choice:
    """One token that was set.

    Attributes:
        step: of the run, from 1.
        position: in the text.
        token: which.
        replaced: what stood there.
        t: time at which the denoiser saw the text.
        gamma: strength of guidance; None unguided.
        candidates: the likeliest of the tilted law, the token among them, likeliest first.
    """

    step: int
    position: int
    token: int
    replaced: int
    t: float
    gamma: float | None
    candidates: tuple[Candidate, ...]


class Recorder:
    """Keeps the choices of a run, text by text, in the order in which they were made.

    Attributes:
        texts: choices of each row of the batch.
        steps: of the run; 0 before it began.

    Args:
        top: candidates that are kept of each choice.

    Raises:
        UserError: fewer than one.
    """

    def __init__(self, top: int = 8) -> None:
        if top < 1:
            raise UserError(f"a choice has at least the candidate that was taken; got top = {top}")
        self._top = top
        self.texts: list[list[Choice]] = []
        self.steps = 0

    def __call__(self, step: Step) -> None:
        """Keep the choices of a step; one transfer from the device a tensor."""
        self.steps = step.steps
        self.texts += [[] for _ in range(len(step.x) - len(self.texts))]
        log_p = wide(step.log_p)
        n = log_p.shape[-1]
        ids = torch.arange(n, device=log_p.device).expand_as(log_p) if step.ids is None else step.ids
        log_r = None if step.log_r is None else wide(step.log_r)
        tilted = log_p
        if log_r is not None and step.gamma is not None:
            tilted = tilt(log_p, log_r, wide(step.gamma)[:, None]).log_softmax(-1)
        taken = ids == step.tokens[:, None]
        # The token that was drawn is kept however unlikely it is.
        best = tilted.masked_fill(taken, math.inf).topk(min(self._top, n)).indices
        best = best.gather(-1, tilted.gather(-1, best).argsort(dim=-1, descending=True))
        columns = [values.gather(-1, best).tolist() for values in (ids, log_p, tilted)]
        ratios = [[None] * best.shape[1]] * len(best) if log_r is None else log_r.gather(-1, best).tolist()
        told = (step.rows, step.positions, step.tokens, step.replaced, step.t)
        gammas = [None] * len(best) if step.gamma is None else step.gamma.tolist()
        for row, position, token, replaced, t, gamma, *candidates in zip(
            *(values.tolist() for values in told), gammas, *columns, ratios, strict=True
        ):
            found = tuple(
                Candidate(token=one, log_p=p, log_r=r, log_tilted=tilt)
                for one, p, tilt, r in zip(*candidates, strict=True)
                if p > -math.inf
            )
            self.texts[row].append(Choice(step.index, position, token, replaced, t, gamma, found))
