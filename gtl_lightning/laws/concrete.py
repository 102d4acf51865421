"""What a listed law says of clean text given noise: posteriors, their marginals, two-sided conditionals, tilts.

The exact side of docs/method.md section 3, for absorbing noise: `laws.exact` gives the marginals of a position, these
the joint law of all of them, which targets of concrete scores are means over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gtl_lightning.core.guidance import guided_log_probs
from gtl_lightning.laws.enumerated import Conditionals, EnumeratedDistribution, all_sequences, check_enumerable


def masked_texts(states: int, length: int) -> Tensor:
    """Long[n,l]: every partly masked sequence with a mask in it, the mask being `states`; the last is all masked.

    Raises:
        UserError: too many to list.
    """
    partial = all_sequences(states + 1, length)
    return partial[(partial == states).any(-1)]


def posteriors(law: EnumeratedDistribution, x_t: Tensor) -> Tensor:
    """Float64[n,V^l]: p(x_0 | x_t) of every sequence, for Long[n,l] that the law allows."""
    states = all_sequences(law.states, law.length)
    agrees = ((x_t[:, None] == states) | (x_t[:, None] == law.mask_index)).all(-1)
    joint = agrees * law.table
    return joint / joint.sum(-1, keepdim=True)


def marginals(law: EnumeratedDistribution, weights: Tensor) -> Tensor:
    """Float64[n,V^l] weights that sum to one -> Float64[n,l,V], the law of each position under them."""
    one_hot = torch.nn.functional.one_hot(all_sequences(law.states, law.length), law.states)
    return torch.einsum("ns,slv->nlv", weights, one_hot.to(weights))


def neighbours(states: int, length: int) -> Tensor:
    """Long[V^l,l,V]: where [y, x^{-i}] stands in the list of all sequences.

    Raises:
        UserError: too many to list.
    """
    check_enumerable(states, length)
    place = states ** torch.arange(length - 1, -1, -1)
    x = all_sequences(states, length)
    own = (x * place).sum(-1)[:, None, None]
    return own + (torch.arange(states) - x[..., None]) * place[:, None]


def two_sided(law: EnumeratedDistribution) -> Tensor:
    """Float64[V^l,l,V]: pi_i, the law of x^i given all the others as they are in each sequence."""
    joint = law.table[neighbours(law.states, law.length)]
    return joint / joint.sum(-1, keepdim=True)


def tilted(law: EnumeratedDistribution, log_weight: Tensor) -> EnumeratedDistribution:
    """The law proportional to p exp(log_weight), Float64[V^l]: p_R for R / beta."""
    table = torch.softmax(law.table.log() + log_weight, -1)
    return EnumeratedDistribution(table.view((law.states,) * law.length))


def guided(denoiser: Conditionals, token_log_ratio: Conditionals, gamma: float = 1.0) -> Conditionals:
    """The conditionals that guidance samples from, for `laws.enumerated.model_law`."""
    return lambda x_t, t: guided_log_probs(denoiser(x_t, t), token_log_ratio(x_t, t), gamma)


class Table:
    """A number, or a row of them, for every partly masked sequence: a model that can be anything.

    Args:
        values: Float[(V+1)^l,...], in the order of `all_sequences(V + 1, l)`.
        states: V.
    """

    def __init__(self, values: Tensor, states: int) -> None:
        self.values, self.states = values, states

    def __call__(self, x_t: Tensor) -> Tensor:
        """Long[b,l] -> Float[b,...]."""
        base = self.states + 1
        return self.values[(x_t * base ** torch.arange(x_t.shape[-1] - 1, -1, -1)).sum(-1)]

    def denoiser(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Of rows Float[...,l,V] of logits: Float64[b,l,V+1] log-probabilities, carried over where not masked."""
        log_p = torch.log_softmax(self(x_t).double(), -1)
        kept = torch.nn.functional.one_hot(x_t, self.states + 1).double().log()
        return torch.where(
            (x_t == self.states)[..., None], torch.nn.functional.pad(log_p, (0, 1), value=-torch.inf), kept
        )
