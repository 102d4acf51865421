"""Statistical verdicts on samples of a Markov chain, each with a stated false-alarm rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gtl_lightning.laws.chains import MarkovChain
from gtl_lightning.laws.exact import ExactDistribution

FALSE_ALARM = 1e-9
"""Of one statistic. All tests together evaluate under 500 of them, so that they fail by chance below 1e-6."""


def random_chain(states: int, seed: int, floor: float = 0.3) -> MarkovChain:
    """Rows with entries floor..1 before normalisation: no ties, no cell too rare for a chi-square."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(states + 1, states, generator=g, dtype=torch.float64) * (1 - floor) + floor
    weights[torch.arange(1, states + 1), torch.randperm(states, generator=g)] += 1.0
    weights = weights / weights.sum(1, keepdim=True)
    return MarkovChain(weights[0], weights[1:])


def chi_square_p_value(counts: Tensor, expected: Tensor, freedom: int) -> float:
    """Upper tail of sum (counts - expected)^2 / expected at `freedom` degrees of freedom."""
    assert float(expected.min()) >= 5, "a cell is too rare for the chi-square approximation"
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic / 2))


def law_p_value(counts: Tensor, law: Tensor) -> float:
    """Independent draws counted in cells against their law."""
    return chi_square_p_value(counts.flatten(), law.flatten() * counts.sum(), law.numel() - 1)


def transition_p_value(x: Tensor, chain: MarkovChain) -> float:
    """Bigram counts given how often each state is left: V (V - 1) degrees of freedom (a martingale limit theorem)."""
    v = chain.states
    counts = torch.bincount((x[:, :-1] * v + x[:, 1:]).flatten(), minlength=v * v).view(v, v).double()
    return chi_square_p_value(counts, counts.sum(1, keepdim=True) * chain.transition, v * (v - 1))


def cells(x: Tensor, positions: tuple[int, ...], states: int) -> Tensor:
    """Counts of the joint values at `positions`: Float64[V,...,V]."""
    code = torch.zeros(len(x), dtype=torch.long)
    for position in positions:
        code = code * states + x[:, position]
    return torch.bincount(code, minlength=states ** len(positions)).double().view((states,) * len(positions))


def kolmogorov_smirnov_gap(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Largest gap of two empirical distribution functions, and the bound that DKW puts on each half of it, added."""
    grid = torch.cat([a, b]).sort().values
    functions = [torch.searchsorted(s.sort().values, grid, right=True) / len(s) for s in (a, b)]
    bound = sum(math.sqrt(math.log(4 / FALSE_ALARM) / (2 * len(s))) for s in (a, b))
    return float((functions[0] - functions[1]).abs().max()), bound


def chain_verdicts(x: Tensor, chain: MarkovChain, exact: Tensor) -> dict[str, bool]:
    """Is Long[n,l] a sample of `chain`? `exact` is a sample known to be."""
    n, length = x.shape
    marginals = chain.marginals(length)
    log_prob = chain.log_prob(x)
    middle = length // 2
    triple = marginals[middle - 1, :, None, None] * chain.transition[:, :, None] * chain.transition
    ends = marginals[0, :, None] * torch.linalg.matrix_power(chain.transition, length - 1)
    gap, bound = kolmogorov_smirnov_gap(log_prob, chain.log_prob(exact))
    z = (float(log_prob.mean()) + chain.entropy(length)) / (float(log_prob.std()) / math.sqrt(n))
    each = [law_p_value(cells(x, (i,), chain.states), marginals[i]) for i in range(length)]
    return {
        "transitions": transition_p_value(x, chain) > FALSE_ALARM,
        "marginals": min(each) > FALSE_ALARM / length,
        "three neighbours": law_p_value(cells(x, (middle - 1, middle, middle + 1), chain.states), triple) > FALSE_ALARM,
        "both ends": law_p_value(cells(x, (0, length - 1), chain.states), ends) > FALSE_ALARM,
        "mean log-likelihood": abs(z) < 6.11,  # the two-sided normal quantile at 1e-9
        "law of the log-likelihood": gap < bound,
    }


def exact_conditional_sample(law: ExactDistribution, prompt: Tensor, generator: torch.Generator) -> Tensor:
    """Fill the masks of Long[n,l] left to right from the exact conditionals, without the package's samplers."""
    x = prompt.clone()
    for position in range(x.shape[1]):
        probability = law.posterior(x)[:, position].exp()
        x[:, position] = torch.multinomial(probability, 1, generator=generator).squeeze(1)
    return x
