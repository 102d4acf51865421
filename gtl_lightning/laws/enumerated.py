"""Arbitrary laws over V^L sequences held as one table, and exact figures of models given by their conditionals.

The table serves as the independent check of the forward-backward recursion, and as a source or target with any
dependence between positions. `model_law` turns conditionals (a denoiser, guided or not) into the exact law of the
sequences that revealing one position at a time makes; `exact_nelbo` and `any_order_kl` are eq. 1 without its noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gtl_lightning.core.guard import Guard, tensor_of
from gtl_lightning.errors import UserError
from gtl_lightning.laws.exact import ExactDistribution, check_counts, check_probabilities, first_mismatch

ENUMERATION_LIMIT = 20_000
"""Most sequences (V^L), or mask patterns (2^L), that are listed one by one."""
PARTIAL_LIMIT = 300_000
"""Most partly masked sequences, (V + 1)^L, that `model_law` visits."""
CHUNK = 16_384
"""Rows handed to a denoiser at once."""

Conditionals = Callable[[Tensor, Tensor], Tensor]


class EnumeratedDistribution(ExactDistribution):
    """Any distribution over {0..V-1}^L, all probabilities listed. Same interface as MarkovChain, one length.

    Args:
        probabilities: Float[V,...,V], one axis a position; p(x) = probabilities[x_0, ..., x_{L-1}].

    Raises:
        UserError: unequal axes, negative entries, a sum other than one, or more than 20,000 sequences.
    """

    def __init__(self, probabilities: Tensor) -> None:
        probabilities = torch.as_tensor(probabilities)
        if probabilities.dim() < 1 or len(set(probabilities.shape)) != 1:
            raise UserError(
                f"probabilities have shape {list(probabilities.shape)}; give one axis of V states a position"
            )
        self.states, self.length = probabilities.shape[0], probabilities.dim()
        check_enumerable(self.states, self.length)
        self.table = check_probabilities("probabilities", probabilities.flatten())

    @classmethod
    def of(cls, law: ExactDistribution, length: int) -> EnumeratedDistribution:
        """List the probabilities of all sequences of `length` under another law.

        Raises:
            UserError: more than 20,000 sequences.
        """
        log_prob = law.log_prob(all_sequences(law.states, length))
        return cls(log_prob.exp().view((law.states,) * length))

    def log_joint(self, likelihood: Tensor) -> Tensor:
        """Sum the table over all positions but one, weighted by their likelihoods: Float64[b,L,V] -> Float64[b,L,V]."""
        if likelihood.shape[1] != self.length:
            raise UserError(f"sequences of length {likelihood.shape[1]} under a law that lists length {self.length}")
        return torch.cat([self._log_joint(rows) for rows in likelihood.split(max(1, 2**23 // len(self.table)))])

    def _log_joint(self, likelihood: Tensor) -> Tensor:
        batch, length, states = likelihood.shape
        rows = []
        table = self.table.to(likelihood.device).expand(batch, -1)  # loses its first axis at every position
        for position in range(length):
            rest = table
            for right in range(length - 1, position, -1):
                rest = torch.einsum("bny,by->bn", rest.reshape(batch, -1, states), likelihood[:, right])
            rows.append(rest.log())
            table = torch.einsum("byn,by->bn", table.reshape(batch, states, -1), likelihood[:, position])
        return torch.stack(rows, dim=1)

    def sample(self, n: int, length: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw Long[n, length], on the generator's device.

        Raises:
            UserError: n is below 1, or the law lists another length.
        """
        check_counts(n, length)
        if length != self.length:
            raise UserError(f"length = {length}: this law lists sequences of length {self.length}")
        device = "cpu" if generator is None else generator.device
        code = torch.multinomial(self.table.to(device), n, replacement=True, generator=generator)
        return _digits(code, self.states, length)

    def entropy(self, length: int) -> float:
        """Entropy in nats per sequence."""
        if length != self.length:
            raise UserError(f"length = {length}: this law lists sequences of length {self.length}")
        return float(torch.special.entr(self.table).sum())

    def kl(self, other: EnumeratedDistribution) -> float:
        """KL(self || other) in nats per sequence, exact; inf where `other` misses mass."""
        return float((torch.special.xlogy(self.table, self.table) - torch.special.xlogy(self.table, other.table)).sum())

    def total_variation(self, other: EnumeratedDistribution) -> float:
        """Half the L1 distance, in [0, 1]."""
        return float((self.table - other.table).abs().sum() / 2)

    def support_mismatch(self, target: ExactDistribution) -> str | None:
        """Name the first sequence that is impossible under exactly one law."""
        if not isinstance(target, EnumeratedDistribution) or target.length != self.length:
            raise UserError(
                "a ratio needs two laws of one kind and length; use `EnumeratedDistribution.of(law, length)` for both"
            )
        shape = (self.states,) * self.length
        return first_mismatch("probabilities", self.table.view(shape), target.table.view(shape))


def check_enumerable(states: int, length: int) -> None:
    """Refuse to list too many sequences.

    Raises:
        UserError: V^L exceeds the limit, or V or L is below 1.
    """
    if states < 1 or length < 1:
        raise UserError(f"{states} states, length {length}: both must be at least 1")
    if states**length > ENUMERATION_LIMIT:
        raise UserError(
            f"{states}^{length} sequences are too many to list (limit {ENUMERATION_LIMIT:,}); use a shorter length, or "
            "MarkovChain, which is exact at any length"
        )


def all_sequences(states: int, length: int) -> Tensor:
    """Every sequence in lexicographic order, Long[V^L, L].

    Raises:
        UserError: more than 20,000 sequences.
    """
    check_enumerable(states, length)
    return _digits(torch.arange(states**length), states, length)


def exact_nelbo(denoiser: Conditionals, x_0: Tensor, mask_index: int) -> Tensor:
    """Eq. 1 of each sequence with the expectation over t and masks taken exactly, over all 2^L masks.

    A mask of k positions has weight int (1/t) t^k (1-t)^(L-k) dt = (k-1)! (L-k)! / L!, whatever the schedule. With
    exact conditionals every order of revealing gives -log p(x_0), so this does too; its mean over p is the entropy.

    Args:
        denoiser: (x_t, t) -> Float[b,l,v] log-probabilities or logits that do not depend on t; t is the masked share.
        x_0: Long[b,l].
        mask_index: the mask's id.

    Returns:
        Float64[b], nats per sequence.

    Raises:
        UserError: more than 20,000 masks, or a denoiser that gives another shape, NaN, infinity or no law.
    """
    batch, length = x_0.shape
    if 2**length > ENUMERATION_LIMIT:
        raise UserError(f"2^{length} masks are too many to list (limit {ENUMERATION_LIMIT:,}); use `any_order_kl`")
    total = torch.zeros(batch, dtype=torch.float64, device=x_0.device)
    guard = Guard(mask_index, denoiser)
    patterns = torch.tensor(list(itertools.product((False, True), repeat=length))[1:], device=x_0.device)
    for masked in patterns.split(max(1, CHUNK // batch)):
        count = masked.sum(1)
        weight = torch.tensor(
            [1 / (k * math.comb(length, k)) for k in count.tolist()], dtype=torch.float64, device=x_0.device
        )
        clean = x_0.expand(len(masked), -1, -1)
        x_t = clean.masked_fill(masked.unsqueeze(1), mask_index).flatten(0, 1)
        log_prob = _law(guard, denoiser, x_t, (count / length).repeat_interleave(batch), mask_index)
        log_true = log_prob.gather(-1, clean.flatten(0, 1).unsqueeze(-1)).view(len(masked), batch, length)
        total -= (log_true.masked_fill(~masked.unsqueeze(1), 0.0).sum(-1) * weight.unsqueeze(1)).sum(0)
    guard.settle()
    return total


def model_law(
    conditionals: Conditionals,
    states: int,
    length: int,
    position_weights: Callable[[Tensor], Tensor] | None = None,
) -> EnumeratedDistribution:
    """The exact law of sequences made by revealing one position at a time, by recursion over all partial sequences.

    A learned model's conditionals need not agree with one another, so its law depends on the order in which positions
    are revealed; at a uniformly random order it is the mixture over all L! orders.

    Args:
        conditionals: (x_t, t) -> Float[b,l,v], log-probabilities or logits of the revealed token, guided or not;
            the mask id is `states`.
        states: V.
        length: L.
        position_weights: x_t -> Float[b,l], relative probability of revealing each masked position; None: uniform.

    Raises:
        UserError: too many sequences (V^L) or partial sequences ((V + 1)^L) to list; conditionals of another shape,
            NaN, infinite or no law.
    """
    check_enumerable(states, length)
    base = states + 1
    if base**length > PARTIAL_LIMIT:
        raise UserError(
            f"{base}^{length} partly masked sequences are too many to list (limit {PARTIAL_LIMIT:,}); use a shorter "
            "length, or `any_order_kl` for an upper bound at any length"
        )
    place = base ** torch.arange(length - 1, -1, -1)
    codes = torch.arange(base**length)
    revealed = (_digits(codes, base, length) != states).sum(1)
    mass = torch.zeros(base**length, dtype=torch.float64)
    mass[-1] = 1.0  # all masked
    guard = Guard(states, conditionals)
    for level in range(length):
        for code in codes[revealed == level].split(CHUNK):
            x_t = _digits(code, base, length)
            masked = x_t == states
            t = torch.full((len(x_t),), 1 - level / length)
            weights = torch.ones(x_t.shape) if position_weights is None else position_weights(x_t)
            weights = weights.double().masked_fill(~masked, 0.0)
            reveal = weights / weights.sum(1, keepdim=True) * mass[code].unsqueeze(1)
            flow = reveal.unsqueeze(-1) * _law(guard, conditionals, x_t, t, states).exp()[..., :states]
            reached = code.view(-1, 1, 1) + place.view(1, -1, 1) * (torch.arange(states) - states)
            keep = masked.unsqueeze(-1).expand_as(flow)
            mass.index_add_(0, reached[keep], flow[keep])
    guard.settle()
    full = (all_sequences(states, length) * place).sum(1)
    return EnumeratedDistribution(mass[full].view((states,) * length))


def any_order_kl(
    law: ExactDistribution, conditionals: Conditionals, *, n: int, length: int, generator: torch.Generator
) -> tuple[float, float]:
    """Upper bound on KL(law || model) at any V and L, by the exact conditionals of `law`; nats per sequence.

    With p_theta the model's conditionals, U the unmasked and M the masked positions, it is
    sum_{k=1..L} E_{x ~ law, |M| = k} mean_{l in M} KL( law(x_l | x_U) || p_theta(x_l | x_U) ) = E_law[eq. 1] - entropy.
    It bounds the KL to the model that reveals positions in random order (Jensen, over orders), with equality where the
    conditionals agree with one another, and is zero exactly when all conditionals are right. Drawn are only x and the
    mask, in equal strata of k; the inner KL is exact.

    Returns:
        estimate and its standard error.

    Raises:
        UserError: fewer than two draws for each number of masked positions; conditionals as in `model_law`.
    """
    if n < 2 * length:
        raise UserError(f"n = {n}: give at least {2 * length}, two draws for each number of masked positions")
    x_0 = law.sample(n, length, generator)
    masked_count = torch.arange(n, device=x_0.device) % length + 1
    rank = torch.rand(x_0.shape, generator=generator, device=x_0.device).argsort(1).argsort(1)
    masked = rank < masked_count.unsqueeze(1)
    x_t = x_0.masked_fill(masked, law.mask_index)
    values = []
    guard = Guard(law.mask_index, conditionals)
    for rows, hidden, count in zip(x_t.split(CHUNK), masked.split(CHUNK), masked_count.split(CHUNK), strict=True):
        log_q = law.posterior(rows)
        log_p = _law(guard, conditionals, rows, count / length, law.mask_index)
        gap = torch.where(log_q.isneginf(), 0.0, log_q.exp() * (log_q - log_p)).sum(-1)
        values.append(gap.masked_fill(~hidden, 0.0).sum(1) / count)
    guard.settle()
    value = torch.cat(values)
    strata = [value[masked_count == k] for k in range(1, length + 1)]
    variance = sum(float(s.var() / len(s)) for s in strata)
    return sum(float(s.mean()) for s in strata), math.sqrt(variance)


def _law(guard: Guard, conditionals: Conditionals, x_t: Tensor, t: Tensor, mask_index: int) -> Tensor:
    """Float64[b,l,v] of the conditionals at masks, as every reader has it; zeros elsewhere."""
    output = tensor_of(conditionals(x_t, t), (*x_t.shape, "v"), conditionals, "denoiser")
    masked = x_t == mask_index
    full = torch.zeros(output.shape, dtype=torch.float64, device=output.device)
    full[masked] = guard.law(output[masked]).double()
    return full


def _digits(code: Tensor, base: int, length: int) -> Tensor:
    """Digits of Long[n] in `base`, most significant first: Long[n, length]."""
    place = base ** torch.arange(length - 1, -1, -1, device=code.device)
    return code.unsqueeze(1) // place % base
