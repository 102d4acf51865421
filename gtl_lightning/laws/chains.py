"""Homogeneous Markov chains with every conditional exact, by the forward-backward recursion (docs/method.md 1, 2).

The chain is a hidden Markov model whose emission is the noise, so one forward and one backward sweep give the posterior
p(x_0^l | x_t), the marginal p(x_U) and the log-ratio of every one-token change. Cost O(b L V^2); only L is looped over.
The chains of GTL's section 4.1 (arXiv 2512.10877) come from `paper_chain`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gtl_lightning.errors import UserError
from gtl_lightning.laws.exact import ExactDistribution, check_counts, check_probabilities, first_mismatch


class MarkovChain(ExactDistribution):
    """A homogeneous Markov chain over {0..V-1}, of any length.

    Args:
        initial: Float[V], law of the first token.
        transition: Float[V,V], transition[i, j] = P(next = j | this = i).

    Raises:
        UserError: the matrix is not square, an entry is negative, or a row does not sum to one.
    """

    def __init__(self, initial: Tensor, transition: Tensor) -> None:
        initial, transition = torch.as_tensor(initial), torch.as_tensor(transition)
        _check_square(transition)
        if initial.shape != transition.shape[:1]:
            raise UserError(
                f"initial has shape {list(initial.shape)}; the transition matrix asks for [{len(transition)}]"
            )
        self.initial = check_probabilities("initial", initial)
        self.transition = check_probabilities("transition", transition)
        self.states = len(self.initial)

    @classmethod
    def fit(cls, x_0: Tensor, states: int, pseudo_count: float = 0.0) -> MarkovChain:
        """The chain of the (smoothed) bigram frequencies of Long[n,l]; `pseudo_count` is added to every count.

        Raises:
            UserError: no sequences, a token outside 0..states-1, or a state that is never left and pseudo_count 0.
        """
        if x_0.dim() != 2 or 0 in x_0.shape:
            raise UserError(
                f"cannot count bigrams of shape {list(x_0.shape)}; give Long[n, length] with n of at least 1"
            )
        if int(x_0.min()) < 0 or int(x_0.max()) >= states:
            raise UserError(
                f"x_0 holds ids {int(x_0.min())}..{int(x_0.max())}; with {states} states give 0..{states - 1}"
            )
        first = torch.bincount(x_0[:, 0], minlength=states).double() + pseudo_count
        codes = (x_0[:, :-1] * states + x_0[:, 1:]).flatten()
        pairs = torch.bincount(codes, minlength=states * states).view(states, states).double() + pseudo_count
        unseen = (pairs.sum(1) <= 0).nonzero()
        if len(unseen):
            raise UserError(f"state {int(unseen[0])} is never left in these sequences; give pseudo_count above 0")
        return cls(first / first.sum(), pairs / pairs.sum(1, keepdim=True))

    def log_joint(self, likelihood: Tensor) -> Tensor:
        """Forward-backward: log p(x_l = y, observations elsewhere), Float64[b,l,V] -> Float64[b,l,V]."""
        batch, length, _ = likelihood.shape
        transition = self.transition.to(likelihood.device)
        # Messages are normalised as they go and their log-scales kept apart: no underflow at any length.
        message = self.initial.to(likelihood.device).expand(batch, -1)
        scale = likelihood.new_zeros(batch, 1)
        forward = [(message, scale)]
        for position in range(length - 1):
            message, scale = _normalise((message * likelihood[:, position]) @ transition, scale)
            forward.append((message, scale))
        message, scale = torch.ones_like(message), torch.zeros_like(scale)
        backward = [(message, scale)]
        for position in range(length - 1, 0, -1):
            message, scale = _normalise((message * likelihood[:, position]) @ transition.T, scale)
            backward.append((message, scale))
        backward.reverse()
        return torch.stack([f.log() + b.log() + s + r for (f, s), (b, r) in zip(forward, backward, strict=True)], dim=1)

    def sample(self, n: int, length: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw Long[n, length], on the generator's device.

        Raises:
            UserError: n or length is below 1.
        """
        check_counts(n, length)
        device = "cpu" if generator is None else generator.device
        transition = self.transition.to(device)
        token = torch.multinomial(self.initial.to(device).expand(n, -1), 1, generator=generator)
        tokens = [token]
        for _ in range(length - 1):
            token = torch.multinomial(transition[token.squeeze(1)], 1, generator=generator)
            tokens.append(token)
        return torch.cat(tokens, dim=1)

    def marginals(self, length: int) -> Tensor:
        """P(x_l = y) with nothing observed: Float64[length, V]."""
        rows = [self.initial]
        for _ in range(length - 1):
            rows.append(rows[-1] @ self.transition)
        return torch.stack(rows)

    def entropy(self, length: int) -> float:
        """Entropy in nats per sequence, by the chain rule."""
        check_counts(1, length)
        row_entropy = torch.special.entr(self.transition).sum(1)
        return float(torch.special.entr(self.initial).sum() + (self.marginals(length)[:-1] @ row_entropy).sum())

    def kl(self, other: MarkovChain, length: int) -> float:
        """KL(self || other) in nats per sequence, by the chain rule; inf where `other` misses mass."""
        check_counts(1, length)
        first = relative_entropy(self.initial, other.initial)
        rows = relative_entropy(self.transition, other.transition)
        visits = self.marginals(length)[:-1].sum(0)
        # A state that is never visited adds nothing, even where its row is infinitely far off.
        return float(first + torch.where(visits > 0, visits * rows, 0.0).sum())

    def support_mismatch(self, target: ExactDistribution) -> str | None:
        """Name the first initial or transition entry that is zero in exactly one chain."""
        if not isinstance(target, MarkovChain):
            raise UserError(
                "a ratio needs two laws of one kind; list the chain by `EnumeratedDistribution.of(chain, length)`"
            )
        initial = first_mismatch("initial", self.initial, target.initial)
        return initial or first_mismatch("transition", self.transition, target.transition)


class ChainTeacher:
    """A chain as an autoregressive model that scores clean texts (`papers.tcsm.Teacher`); its tokens are the chain's.

    It reads one-hot vectors, and its log-probabilities are linear in them: to first order in one token they are exact.

    Args:
        chain: of positive probabilities.

    Raises:
        UserError: a probability is 0, whose logarithm is linear in nothing.
    """

    def __init__(self, chain: MarkovChain) -> None:
        if not (chain.initial > 0).all() or not (chain.transition > 0).all():
            raise UserError("a chain with a probability of 0 cannot teach; give positive probabilities")
        self.chain = chain
        self.input_embedding = torch.eye(chain.states, dtype=torch.float64)

    def __call__(self, x: Tensor, embedded: Tensor | None = None) -> Tensor:
        """Long[b,l] -> Float64[b,l,V]: log p(. | x^{<j}), read from one-hot vectors Float64[b,l,V] if given."""
        read = self.input_embedding[x] if embedded is None else embedded
        first = self.chain.initial.log().expand(len(x), 1, -1)
        return torch.cat([first, read[:, :-1] @ self.chain.transition.log()], dim=1)

    def log_prob(self, x: Tensor, embedded: Tensor | None = None) -> Tensor:
        """Long[b,l] -> Float64[b,l]: log p(x^j | x^{<j})."""
        return self(x, embedded).gather(-1, x[..., None]).squeeze(-1)

    def next_log_probs(self, x: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """Float64[m,V]: log p(. | x^{<i}) at m places."""
        return self(x)[row, position]


def stationary(transition: Tensor) -> Tensor:
    """The stationary law of Float[V,V]: pi = pi @ transition, Float64[V].

    Raises:
        UserError: not a stochastic matrix, or more than one stationary law (several closed classes).
    """
    transition = torch.as_tensor(transition)
    _check_square(transition)
    transition = check_probabilities("transition", transition)
    states = len(transition)
    system = transition.T - torch.eye(states, dtype=torch.float64)
    if int(torch.linalg.matrix_rank(system, atol=1e-10)) < states - 1:
        raise UserError(
            "the transition matrix has several stationary laws (closed classes); give an initial law yourself"
        )
    # One balance equation is implied by the others: the normalisation takes its place.
    system = torch.cat([system[:-1], torch.ones(1, states, dtype=torch.float64)])
    right = torch.zeros(states, dtype=torch.float64)
    right[-1] = 1.0
    law = torch.linalg.solve(system, right).clamp_min(0.0)
    return law / law.sum()


def paper_chain(diagonal: float, states: int = 5) -> MarkovChain:
    """The chain of the paper's section 4.1: P(stay) = diagonal, the other states equally likely, uniform start.

    Source: diagonal 0.10; target: 0.80 (docs/method.md section 2.7).

    Raises:
        UserError: diagonal outside [0, 1], or fewer than 2 states.
    """
    if states < 2 or not 0 <= diagonal <= 1:
        raise UserError(
            f"paper_chain(diagonal={diagonal:g}, states={states}): give a diagonal in [0, 1] and 2 or more states"
        )
    transition = torch.full((states, states), (1 - diagonal) / (states - 1), dtype=torch.float64)
    transition.fill_diagonal_(diagonal)
    return MarkovChain(torch.full((states,), 1 / states, dtype=torch.float64), transition)


def _normalise(message: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Split Float64[b,V] into a message that sums to one and its log-scale; impossible rows stay zero at scale -inf."""
    total = message.sum(-1, keepdim=True)
    return message / torch.where(total > 0, total, 1.0), scale + total.log()


def relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    """sum p log(p/q) over the last axis, 0 log 0 = 0."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1)


def _check_square(transition: Tensor) -> None:
    if transition.dim() != 2 or transition.shape[0] != transition.shape[1] or not len(transition):
        raise UserError(
            f"transition has shape {list(transition.shape)}; a transition matrix is square, [states, states]"
        )
