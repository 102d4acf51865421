"""Brute force for concrete scores: posteriors, marginals and two-sided conditionals of a table of all sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from gtl_lightning.core.noise import Noise
from tests.oracle.enumeration import Enumeration


def posterior(laws: Enumeration, table: Tensor, z_t: Tensor, noise: Noise, alpha: float) -> Tensor:
    """Float64[n,v^l]: p(x_0 | z_t) of every sequence, by Bayes' rule."""
    seen = z_t[:, None, :].expand(-1, len(table), -1)
    share = torch.full(seen.shape, alpha, dtype=torch.float64)
    likelihood = noise.log_likelihood(laws.states[None, :, :, None].expand(len(z_t), -1, -1, 1), seen, share)
    joint = likelihood.squeeze(-1).sum(-1).exp() * table
    return joint / joint.sum(-1, keepdim=True)


def marginals(laws: Enumeration, weights: Tensor) -> Tensor:
    """Float64[n,v^l] -> Float64[n,l,v]: the law of each position, of weights that sum to one."""
    return torch.einsum("ns,slv->nlv", weights, torch.nn.functional.one_hot(laws.states, laws.vocab).double())


def neighbours(laws: Enumeration) -> Tensor:
    """Long[v^l,l,v]: where [y, x^{-i}] stands in the table."""
    changed = laws.states[:, None, None].repeat(1, laws.length, laws.vocab, 1)
    for position in range(laws.length):
        changed[:, position, :, position] = torch.arange(laws.vocab)
    return laws.index(changed)


def two_sided(laws: Enumeration, table: Tensor) -> Tensor:
    """Float64[v^l,l,v]: the law of x^i given all the others, as they are in each sequence."""
    joint = table[neighbours(laws)]
    return joint / joint.sum(-1, keepdim=True)


class TableTeacher:
    """A table as an autoregressive model (`papers.tcsm.Teacher`)."""

    def __init__(self, laws: Enumeration, table: Tensor) -> None:
        self.vocab = laws.vocab
        self.input_embedding = torch.eye(laws.vocab, dtype=torch.float64)
        cube = table.view((laws.vocab,) * laws.length)
        self.prefixes = [cube.flatten(j + 1).sum(-1) if j + 1 < laws.length else cube for j in range(laws.length)]

    def __call__(self, x: Tensor) -> Tensor:
        rows = []
        for j, joint in enumerate(self.prefixes):
            joint = joint[tuple(x[:, k] for k in range(j))] if j else joint.expand(len(x), -1)
            rows.append(joint.log() - joint.sum(-1, keepdim=True).log())
        return torch.stack(rows, 1)

    def log_prob(self, x: Tensor, embedded: Tensor | None = None) -> Tensor:
        return self(x).gather(-1, x[..., None]).squeeze(-1)

    def next_log_probs(self, x: Tensor, row: Tensor, position: Tensor) -> Tensor:
        return self(x)[row, position]


def random_model(shape: tuple[int, ...], seed: int) -> Tensor:
    """Float64[...,v] log-probabilities of nothing in particular."""
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(shape, generator=generator, dtype=torch.float64), -1)


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Total variation along the last axis."""
    return (p - q).abs().sum(-1) / 2
