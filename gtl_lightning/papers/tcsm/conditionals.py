"""What a teacher says of one position given all the others (docs/method.md 3.2).

A masked position's target is pi_i(y) proportional to p([y, x^{-i}]) p(z_t^i | y): the teacher's law from *both* sides.
A masked language model says it as it is. An autoregressive teacher says the law of the next token, p(y | x^{<i}), which
knows nothing of what follows and is another law; the two-sided one takes

    p([y, x^{-i}]) = p(y | x^{<i}) prod_{j > i} p(x^j | x^{<j} with y at i) p(x^{<i}),

one scoring of the text for every candidate y (`exact`, `TopK`), or one gradient for all of them (`first_order`), or
both (`Proposed`). The text should be the teacher's own: on other text the minimiser is a mixture of both laws.

At a mask the noise says nothing, so pi_i depends on the clean text alone and not on what else is masked: it can be made
once a text, and be kept as a few tokens (`Conditional.top`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gtl_lightning.core.guard import wide
from gtl_lightning.core.noise import Noise
from gtl_lightning.errors import UserError, check_whole

CHUNK = 256
"""Texts that a teacher scores at once."""


class Teacher(Protocol):
    """An autoregressive model of clean text; position j of what it gives is about token j, not about token j + 1."""

    @property
    def input_embedding(self) -> Tensor:
        """Float[v,d]: what it reads of each token; the identity for one that reads one-hot vectors."""

    def log_prob(self, x: Tensor, embedded: Tensor | None = None) -> Tensor:
        """Long[b,l] -> Float[b,l]: log p(x^j | x^{<j}), 0 at padding.

        `embedded` Float[b,l,d] stands in for the embeddings of x as what is read; what is scored remains x.
        """

    def next_log_probs(self, x: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """Long[b,l], Long[m], Long[m] -> Float[m,v]: log p(. | x^{<i}), i the position in a row; -inf at specials."""


@dataclass(frozen=True)
class Conditional:
    """The laws pi_i of m positions: k tokens each, and one bucket for all the others.

    Attributes:
        ids: Long[m,k] the tokens, no two of a row alike.
        log_pi: Float[m,k] their log-probabilities.
        log_rest: Float[m] log-probability that it is none of them; -inf where they are all there are.
        vocab_size: v, the tokens that the teacher knows.
    """

    ids: Tensor
    log_pi: Tensor
    log_rest: Tensor
    vocab_size: int

    @property
    def complete(self) -> bool:
        """Whether every token stands by itself."""
        return self.ids.shape[-1] == self.vocab_size

    @classmethod
    def of(cls, ids: Tensor, log_score: Tensor, log_rest: Tensor, vocab_size: int) -> Conditional:
        """From log p([y, x^{-i}]) of the tokens and of the bucket, up to a number for each row."""
        log_pi = torch.log_softmax(torch.cat([log_score, log_rest[:, None]], -1), -1)
        return cls(ids, log_pi[:, :-1], log_pi[:, -1], vocab_size)

    @classmethod
    def whole(cls, log_pi: Tensor) -> Conditional:
        """Of whole laws Float[m,v], or their logits: those of a masked language model, for instance."""
        m, v = log_pi.shape
        nothing = log_pi.new_full((m,), -math.inf)
        return cls.of(torch.arange(v, device=log_pi.device).expand(m, v), wide(log_pi), nothing, v)

    def top(self, k: int) -> Conditional:
        """The k likeliest tokens by themselves, the others in one bucket: a small target from whole laws.

        Raises:
            UserError: k is larger than the number of tokens.
        """
        if k > self.ids.shape[-1]:
            raise UserError(f"k = {k} exceeds the {self.ids.shape[-1]} tokens of the target; use at most as many")
        log_pi, slots = self.log_pi.topk(k, -1)
        rest = torch.logaddexp(_others(self.log_pi, slots), self.log_rest)
        return Conditional(self.ids.gather(-1, slots), log_pi, rest, self.vocab_size)


Strategy = Callable[[Teacher, Tensor, Tensor, Tensor], Conditional]
"""(teacher, x Long[b,l], row Long[m], position Long[m]) -> the laws of these m positions."""


def conditional(teacher: Teacher, x: Tensor, positions: Tensor, how: Strategy) -> Conditional:
    """pi_i of the marked positions, without gradient: targets.

    Args:
        teacher: of the model's tokenizer.
        x: Long[b,l] clean texts.
        positions: Bool[b,l]; the result has one row for each, in the order of `x[positions]`.
        how: `exact`, `TopK(k)`, `first_order` or `Proposed(k)`.

    Raises:
        UserError: k is larger than the teacher's vocabulary.
    """
    row, position = positions.nonzero(as_tuple=True)
    with torch.no_grad():
        return how(teacher, x, row, position)


def exact(teacher: Teacher, x: Tensor, row: Tensor, position: Tensor) -> Conditional:
    """All v tokens scored: v texts a position. For small vocabularies, and to measure the others by."""
    left = wide(teacher.next_log_probs(x, row, position))
    ids = torch.arange(left.shape[-1], device=x.device).expand_as(left)
    return Conditional.whole(_rescored(teacher, x, row, position, ids, left, CHUNK))


@dataclass(frozen=True)
class _Scored:
    """Some tokens of a position are scored, some texts at a time."""

    k: int
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        check_whole("k", self.k, least=1)
        check_whole("chunk", self.chunk, least=1)


class TopK(_Scored):
    """The k tokens that the left context finds likeliest scored, the true one always among them: k texts a position.

    The bucket keeps the share that the left context gives it, which is its mean over continuations that the teacher
    writes.

    Attributes:
        k: tokens at a position; all of them is `exact`.
        chunk: texts scored at once; bounds memory, changes no result.

    Raises:
        UserError: k or chunk is below 1.
    """

    def __call__(self, teacher: Teacher, x: Tensor, row: Tensor, position: Tensor) -> Conditional:
        """As `Strategy` has it."""
        left = wide(teacher.next_log_probs(x, row, position))
        ids = _likeliest(left, x[row, position], self.k)
        kept = left.gather(-1, ids)
        score = _rescored(teacher, x, row, position, ids, kept, self.chunk)
        # score - kept is log p(what follows | y): the mean over the k of them stands for the others'.
        follows = score.logsumexp(-1) - kept.logsumexp(-1)
        return Conditional.of(ids, score, _others(left, ids) + follows, left.shape[-1])


def first_order(teacher: Teacher, x: Tensor, row: Tensor, position: Tensor) -> Conditional:
    """All v tokens estimated from one pass and one gradient for all positions together.

        log p([y, x^{-i}]) - log p(x) ~ log p(y | x^{<i}) - log p(x^i | x^{<i}) + <grad_i, e_y - e_{x^i}>

    The gradient is that of sum_j log p(x^j | x^{<j}) in the one-hot vector of x^i, which enters twice: as the *target*
    of position i, whose part is the exact difference in front, and as an *input* of all that follow, whose part is
    grad_i. Either one alone is far off. Exact where the log-probabilities are linear in each one-hot vector: for a
    Markov chain.
    """
    return Conditional.whole(_estimates(teacher, x, row, position))


class Proposed(_Scored):
    """`first_order` proposes k tokens, and says how likely the others are together; scoring decides among the k.

    Attributes:
        k: tokens at a position; all of them is `exact`.
        chunk: texts scored at once.

    Raises:
        UserError: k or chunk is below 1.
    """

    def __call__(self, teacher: Teacher, x: Tensor, row: Tensor, position: Tensor) -> Conditional:
        """As `Strategy` has it."""
        estimate = _estimates(teacher, x, row, position)
        true = x[row, position]
        ids = _likeliest(estimate, true, self.k)
        score = _rescored(teacher, x, row, position, ids, estimate.gather(-1, ids), self.chunk)
        # The true token, where both are exact, brings the estimates to the scores' scale.
        there = score.gather(-1, (ids == true[:, None]).int().argmax(-1, keepdim=True)).squeeze(-1)
        return Conditional.of(ids, score, _others(estimate, ids) + there, estimate.shape[-1])


def given_noise(target: Conditional, noise: Noise, z_t: Tensor, alpha: Tensor) -> Conditional:
    """pi_i(y) p(z_t^i | y), normalised: what the position is, given the others *and* what the noise left of it.

    A mask says nothing, so under absorbing noise nothing changes at masked positions. Under uniform noise the token
    seen gains.

    Args:
        target: complete, as the token seen needs a probability of its own.
        noise: the process.
        z_t: Long[m] what is seen at the positions.
        alpha: Float[m] the share of tokens that are kept.

    Raises:
        UserError: the target keeps a bucket that the token seen may be in.
    """
    factor = noise.log_likelihood(target.ids, z_t, alpha)
    if target.complete:
        return Conditional.of(target.ids, target.log_pi + factor, target.log_rest, target.vocab_size)
    raise UserError("the noise factor needs every token's own probability; take `exact`, `first_order` or k = V")


def _rescored(
    teacher: Teacher, x: Tensor, row: Tensor, position: Tensor, ids: Tensor, left: Tensor, chunk: int
) -> Tensor:
    """Float[m,k]: log p([y, x^{-i}]) for the k tokens of each position, `chunk` texts at a time.

    What `left` Float[m,k] excludes stays excluded: a mask or a padding in a text is nothing that could be scored.
    """
    m, k = ids.shape
    tokens, scores = ids.reshape(-1), []
    for index in torch.arange(m * k, device=x.device).split(chunk):
        slot = index // k
        tried = x[row[slot]].scatter(1, position[slot, None], tokens[index, None])
        scores.append(wide(teacher.log_prob(tried)).sum(-1))
    return torch.cat(scores).view(m, k).masked_fill(left == -math.inf, -math.inf)


def _estimates(teacher: Teacher, x: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """Float[m,v]: log p([y, x^{-i}]) - log p(x) to first order."""
    embedding = teacher.input_embedding.detach().requires_grad_()
    with torch.enable_grad():
        # No leaf: what counts operations puts a hook where a module is entered, and takes none on a leaf.
        embedded = embedding[x]
        (grad,) = torch.autograd.grad(teacher.log_prob(x, embedded).sum(), embedded)
    true = x[row, position]
    as_target = wide(teacher.next_log_probs(x, row, position))
    as_input = wide(grad[row, position] @ embedding.detach().T)
    change = as_target + as_input
    return change - change.gather(-1, true[:, None])


def _likeliest(log_p: Tensor, always: Tensor, k: int) -> Tensor:
    """Long[m,k]: the k likeliest of Float[m,v], among them the token `always` Long[m]."""
    if k > log_p.shape[-1]:
        raise UserError(f"k = {k} exceeds the teacher's vocabulary of {log_p.shape[-1]} tokens; use at most as many")
    return log_p.scatter(-1, always[:, None], math.inf).topk(k, -1).indices


def _others(log_p: Tensor, ids: Tensor) -> Tensor:
    """Float[m]: log of the sum over all tokens but `ids`; -inf where there are none."""
    return log_p.scatter(-1, ids, -math.inf).logsumexp(-1)
