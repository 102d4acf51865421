"""The one place where what a network gives is looked at, before a sampler or a likelihood reads it.

- Its type and shape, at every call: that costs nothing, as the host knows them.
- Its law: single precision at least, nothing on the mask, a sum of one. A denoiser may then give logits, leave mass on
  the mask or compute in fp16. One that promises such a law itself (`normalised`, see `protocols.Denoiser`) is taken at
  its word, to the last bit, and the promise is tried once a run.
- Whether it is finite: noted on the device and read once, at the end of a run, so that no step waits for the device.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from gtl_lightning.core.callables import called, evaluating
from gtl_lightning.errors import UserError

Role = Literal["denoiser", "ratio", "planner", "reference model", "leap"]
Problem = Literal["numbers", "promise", "probabilities"]

log = logging.getLogger(__name__)

UNREAD = 4096
"""Notes at most that wait to be read: what a long run holds of them is bounded."""
TRIED = 4
"""Positions at which a promise is tried, and at which what gives logits is looked at for probabilities."""
TOLERANCE = 1e-3
"""Nats by which the law of a denoiser that promises one may miss a sum of one."""
ROUNDED = 1e-2
"""By which probabilities may miss a sum of one: half precision adds up a vocabulary no better."""


def wide(values: Tensor) -> Tensor:
    """The values in single precision at least; fp32 and fp64 stay what they are."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def law(logits: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Float[...,v] log-probabilities from logits, in fp32 at least; of log-probabilities, themselves.

    Args:
        logits: Float[...,v] up to a number that is the same for all tokens of a position.
        excluded: Bool[v], tokens that get -inf; the others share what they had.
    """
    logits = wide(logits)
    return torch.log_softmax(logits if excluded is None else logits.masked_fill(excluded, -math.inf), -1)


def tensor_of(output: object, shape: tuple[int | str, ...], network: object, role: str) -> Tensor:
    """What a callable gave, as the tensor that was asked for.

    Args:
        output: a tensor, or an object that has one as `logits` (what Hugging Face models return).
        shape: expected sizes; a name stands for any size.
        network: the callable.
        role: what it is called.

    Raises:
        UserError: anything else, or another shape.
    """
    inner = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(inner, Tensor):
        raise UserError(f"the {called(network, role)} gave a {type(output).__name__}; {_wanted(shape)}")
    if len(shape) != inner.dim() or any(
        want != got for want, got in zip(shape, inner.shape, strict=True) if not isinstance(want, str)
    ):
        raise UserError(f"the {called(network, role)} gave a tensor of shape {list(inner.shape)}; {_wanted(shape)}")
    if inner.is_complex():
        raise UserError(f"the {called(network, role)} gave {inner.dtype}; let it return real numbers")
    # Double precision, so that no score of a planner that counts is rounded.
    return inner if inner.is_floating_point() else inner.double()


def _wanted(shape: tuple[int | str, ...]) -> str:
    return f"let it return one tensor of shape [{', '.join(map(str, shape))}]"


def check_ids(tokens: Tensor, vocabulary: object, what: str) -> None:
    """Compare token ids with the number of tokens that a network says it knows; what says nothing is not checked.

    Raises:
        UserError: an id outside the vocabulary.
    """
    if isinstance(vocabulary, int) and tokens.numel():
        low, high = torch.stack(tokens.aminmax()).tolist()
        if low < 0 or high >= vocabulary:
            raise UserError(f"{what} holds token {low if low < 0 else high}; ids must lie in 0..{vocabulary - 1}")


def check_weights(network: nn.Module) -> None:
    """Refuse a network that is damaged or diverged; one look at the device.

    Raises:
        UserError: a weight is NaN or infinite; the first is named.
    """
    weights = dict(network.named_parameters())
    finite = [weight.detach().isfinite().all() for weight in weights.values()]
    for name, fine in zip(weights, torch.stack(finite).tolist() if finite else [], strict=True):
        if not fine:
            raise UserError(
                f"weight {name} of the {type(network).__name__} holds NaN or infinity; train that network again"
            )


class Guard:
    """What the callables of one run gave.

    Attributes:
        where: the run's present place in words, for messages.

    Args:
        mask_index: id of the mask; None where there is none.
        denoiser: gives laws.
        role: what it is called.
        pad_index: id that fills up rows of the run, which no text holds; None where rows are full.
        others: further callables, by role.

    Raises:
        UserError: one of them names another mask as its own.
    """

    def __init__(
        self,
        mask_index: int | None,
        denoiser: object,
        role: Role = "denoiser",
        *,
        pad_index: int | None = None,
        **others: object,
    ) -> None:
        self.where = "the start"
        self._pad_index = pad_index
        self._role: Role = role
        self._callables = {role: denoiser, **others}
        self._mask_index = mask_index
        self._promised = getattr(denoiser, "normalised", False) is True
        self._tried = False
        self._excluded: Tensor | None = None
        self._notes: list[tuple[Role, Problem, str, bool, Tensor]] = []
        for who, each in self._callables.items():
            own = getattr(each, "mask_index", None)
            if isinstance(own, int) and mask_index is not None and own != mask_index:
                raise UserError(
                    f"mask_index = {mask_index}, but the mask of the {called(each, who)} is {own}; give that one"
                )

    def name(self, role: Role) -> str:
        """A callable's role and name."""
        return called(self._callables.get(role), role)

    @contextmanager
    def run(self) -> Iterator[Guard]:
        """A run: its modules are in eval mode, and at its end all that was noted is read.

        Raises:
            UserError: as `settle`.
        """
        with evaluating(*self._callables.values()):
            yield self
        self.settle()

    def law(self, output: Tensor) -> Tensor:
        """Float[...,v] as the denoiser gave it -> its law, in fp32 at least, -inf at the mask.

        Raises:
            UserError: the mask is none of the v tokens, or there is no other.
        """
        v, mask = output.shape[-1], self._mask_index
        if mask is not None and not 0 <= mask < v:
            raise UserError(f"mask_index = {mask} is no id of the {self._role}'s {v} tokens")
        if v - (mask is not None) < 1:
            raise UserError(f"the {self.name(self._role)} knows no token but the mask; give it a vocabulary")
        if self._promised:
            log_p = wide(output)
            if not self._tried and log_p.numel():
                self._try(log_p)
            self.note_law(log_p)
        else:
            if mask is not None and (self._excluded is None or self._excluded.device != output.device):
                ids = torch.arange(v, device=output.device)
                self._excluded = ids == mask if self._pad_index is None else (ids == mask) | (ids == self._pad_index)
            log_p = law(output, self._excluded)
            if not self._tried and log_p.numel():
                self._suspect(output, log_p)
            # Whatever is wrong with a row, log_softmax makes all of it NaN: one column says so.
            self.note(self._role, log_p[..., 0])
        return log_p

    def note_law(self, log_p: Tensor) -> None:
        """Float[...,v]: NaN, infinity, or a position without any mass is the fault of the denoiser."""
        # A row's largest entry is finite exactly where its law is: NaN and +inf go through, a row without mass is -inf.
        self._note(self._role, "numbers", log_p.amax(-1).sum(), nothing=False)

    def note(self, role: Role, values: Tensor) -> None:
        """NaN or +inf among the values is the fault of `role`; -inf says that something is impossible, and is none."""
        if values.numel():
            self._note(role, "numbers", values.amax(), nothing=True)

    def settle(self) -> None:
        """Read what was noted: the one look at the device.

        Raises:
            UserError: a callable gave NaN or infinity, or no mass to any token, or broke its promise.
        """
        notes, self._notes = self._notes, []
        if not notes:
            return
        found = torch.stack([value.double() for *_, value in notes]).tolist()
        for (role, problem, where, nothing, _), value in zip(notes, found, strict=True):
            if math.isfinite(value) or (nothing and value == -math.inf):
                continue
            if problem == "probabilities":
                log.warning(
                    "the %s gave numbers from 0 to 1 of sum one, which are read as logits; if they are probabilities, "
                    "let it return their logarithm",
                    self.name(role),
                )
                continue
            if problem == "promise":
                raise UserError(
                    f"the {self.name(role)} has normalised = True, but its probabilities do not sum to one without "
                    "the mask and the padding; leave the attribute out"
                )
            law = ", or no probability to any token but the mask," if role == self._role else ""
            raise UserError(f"the {self.name(role)} gave NaN or infinity{law} at {where}; look at its weights")

    def _try(self, log_p: Tensor) -> None:
        self._tried = True
        log_p = log_p.reshape(-1, log_p.shape[-1])[:TRIED]
        off = torch.logsumexp(log_p, -1).abs().amax()
        if self._mask_index is not None:
            off = off + log_p[..., self._mask_index].exp().amax()
        if self._pad_index is not None and self._pad_index < log_p.shape[-1]:
            off = off + log_p[..., self._pad_index].exp().amax()
        # NaN is the affair of the other note.
        self._note(self._role, "promise", torch.where(off > TOLERANCE, math.inf, 0.0), nothing=False)

    def _suspect(self, output: Tensor, log_p: Tensor) -> None:
        """Note rows that look like probabilities, where these and the law that they are read as differ."""
        self._tried = True
        rows = wide(output.detach()).reshape(-1, output.shape[-1])[:TRIED]
        read = log_p.detach().reshape(-1, log_p.shape[-1])[:TRIED].exp()
        alike = (rows.amin() >= 0) & (rows.amax() <= 1) & ((rows.sum(-1) - 1).abs().amax() < ROUNDED)
        shares = rows if self._excluded is None else rows.masked_fill(self._excluded, 0.0)
        differ = (shares - read * shares.sum(-1, keepdim=True)).abs().amax() > ROUNDED
        self._note(self._role, "probabilities", torch.where(alike & differ, math.inf, 0.0), nothing=False)

    def _note(self, role: Role, problem: Problem, value: Tensor, *, nothing: bool) -> None:
        self._notes.append((role, problem, self.where, nothing, value))
        if len(self._notes) >= UNREAD:
            self.settle()
