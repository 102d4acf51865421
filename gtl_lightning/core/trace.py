"""What a sampler tells those who watch it: a `Step` after every step that changed something.

Nobody watches, nothing is made: a sampler without observers has no `Trace`, and computes, keeps and asks the device for
nothing on its account. Watching draws no random number and changes no arithmetic: the samples are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gtl_lightning.core.callables import taking
from gtl_lightning.core.guidance import Guidance, top_candidates
from gtl_lightning.errors import UserError


@dataclass(frozen=True, eq=False)
class Step:
    """m tokens that a step set, each drawn from n candidates.

    Tensors stay on the device of the run. They are copies, or the sampler is done with them: keep them as long as you
    like. All observers see the same ones, so do not write into them. What a run refuses at its end
    (`guard.Guard.settle`) has been told by then.

    Attributes:
        index: which step of the run it is, from 1. Steps on a grid of times that change nothing are not told.
        steps: of the whole run.
        done: tokens revealed so far, these included; in continuous time, where tokens may change again, steps taken.
        wanted: what `done` is at the end.
        x: Long[b,l] after the step, rows in the caller's order.
        rows: Long[m], the rows of x in which a token was set.
        positions: Long[m], where in them.
        tokens: Long[m], which: x[rows, positions].
        replaced: Long[m], what stood there: the mask, or under uniform noise another token.
        t: Float[m], the time at which the denoiser saw the row.
        log_p: Float[m,n], the denoiser's law at the candidates, before guidance; of all tokens it sums to one.
        log_r: Float[m,n], log r(x_U + {l: v}) of the candidates; None unguided.
        gamma: Float[m], the strength; None unguided.
        ids: Long[m,n] of the candidates; None where they are 0..n-1.
    """

    index: int
    steps: int
    done: int
    wanted: int
    x: Tensor
    rows: Tensor
    positions: Tensor
    tokens: Tensor
    replaced: Tensor
    t: Tensor
    log_p: Tensor
    log_r: Tensor | None
    gamma: Tensor | None
    ids: Tensor | None

    @property
    def before(self) -> Tensor:
        """Long[b,l]: x before the step, which the networks read."""
        return self.x.index_put((self.rows, self.positions), self.replaced)


Observer = Callable[[Step], object]
Tell = Callable[[int, int], object]
"""(done, total): how far something is."""


@dataclass(frozen=True)
class Progress:
    """An observer that says how far a sampler is, or several, one after another.

    Attributes:
        tell: is called with (done, total) after every step.
        before: done by earlier samplers.
        total: of all of them; None for this one's own.
    """

    tell: Tell
    before: int = 0
    total: int | None = None

    def __call__(self, step: Step) -> None:
        """Add what is done of this sampler."""
        self.tell(self.before + step.done, step.wanted if self.total is None else self.total)


class Candidates(NamedTuple):
    """What tokens are drawn from, as in `Step`; of m tokens, or of all places [b,l]."""

    t: Tensor
    log_p: Tensor
    ids: Tensor | None = None
    log_r: Tensor | None = None
    gamma: Tensor | None = None

    def at(self, *index: Tensor) -> Candidates:
        """Copies of the entries at an index."""
        return Candidates(self.t[index], self.log_p[index], *(None if v is None else v[index] for v in self[2:]))


class Trace:
    """The observers of one run, and what the networks gave for the step under way.

    Attributes:
        candidates: of the tokens about to be told.
        steps: of the run.
        wanted: what `Step.done` is at its end.

    Args:
        observers: are called in this order.
        mask_index: what a token replaces where nothing else is said.
    """

    candidates: Candidates

    def __init__(self, observers: Sequence[Observer], mask_index: int = -1) -> None:
        self._observers = observers
        self._mask_index = mask_index
        self._kept: Candidates | None = None
        self.steps = self.wanted = 0

    @classmethod
    def of(cls, observe: Observer | Sequence[Observer] | None, mask_index: int = -1) -> Trace | None:
        """None where nobody watches.

        Raises:
            UserError: an observer cannot be called.
        """
        observers = [] if observe is None else [observe] if callable(observe) else observe
        if not isinstance(observers, Sequence) or not all(map(callable, observers)):
            raise UserError(f"observe is a {type(observe).__name__}; give a function of a Step, or a list of them")
        return cls(observers, mask_index) if observers else None

    def saw(
        self,
        t: Tensor,
        log_p: Tensor,
        ids: Tensor | None = None,
        log_r: Tensor | None = None,
        gamma: Tensor | None = None,
    ) -> None:
        """What the networks gave; log_p may be a denoiser's own memory, which it fills anew at the next step."""
        self.candidates = Candidates(t, log_p.clone(), ids, log_r, gamma)

    def tilted(self, log_r: Tensor, gamma: float) -> None:
        """What guidance adds to all places [b,l]."""
        strength = torch.full_like(self.candidates.t, gamma, dtype=log_r.dtype)
        self.candidates = self.candidates._replace(log_r=log_r, gamma=strength)

    def keep(self, x: Tensor, rows: Tensor, positions: Tensor) -> None:
        """Put the candidates of m places of x Long[b,l] by, until the tokens drawn there beforehand are taken."""
        if self._kept is None:
            blank = (None if v is None else v.new_zeros((*x.shape, *v.shape[1:])) for v in self.candidates)
            self._kept = Candidates(*blank)  # type: ignore[arg-type]
        for kept, values in zip(self._kept, self.candidates, strict=True):
            if kept is not None and values is not None:
                kept[rows, positions] = values

    def recall(self, rows: Tensor, positions: Tensor) -> None:
        """Make those of m places, as they were put by last, the ones about to be told."""
        if self._kept is not None:
            self.candidates = self._kept.at(rows, positions)

    def tell(
        self, index: int, done: int, x: Tensor, rows: Tensor, positions: Tensor, replaced: Tensor | None = None
    ) -> None:
        """Make a `Step` of x Long[b,l] as it is now and of the m tokens just set, and hand it to the observers."""
        if not len(rows):
            return
        x = x.clone()
        tokens, found = x[rows, positions], self.candidates
        step = Step(
            index=index,
            steps=self.steps,
            done=done,
            wanted=self.wanted,
            x=x,
            rows=rows,
            positions=positions,
            tokens=tokens,
            replaced=torch.full_like(tokens, self._mask_index) if replaced is None else replaced,
            t=found.t,
            log_p=found.log_p,
            log_r=found.log_r,
            gamma=found.gamma,
            ids=found.ids,
        )
        for observer in self._observers:
            with taking(observer, step):
                observer(step)

    def tell_jumps(self, index: int, before: Tensor, x: Tensor, guidance: Guidance | None) -> None:
        """`tell` where x Long[b,l] is no longer `before`; what was seen is of all places."""
        rows, positions = (x != before).nonzero(as_tuple=True)
        found = self.candidates.at(rows, positions)
        log_p, ids = top_candidates(found.log_p, None if guidance is None else guidance.n_ratio)
        log_r = found.log_r if found.log_r is None or ids is None else found.log_r.gather(-1, ids)
        self.candidates = found._replace(log_p=log_p, ids=ids, log_r=log_r)
        self.tell(index, index, x, rows, positions, before[rows, positions])
