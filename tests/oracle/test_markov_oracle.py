"""Sampling laws, likelihood identities and divergences of the exact laws, against independent computations."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gtl_lightning import SequenceRatio, TokenRatio
from gtl_lightning.laws.chains import MarkovChain, paper_chain, stationary
from gtl_lightning.laws.enumerated import EnumeratedDistribution, all_sequences, any_order_kl, exact_nelbo, model_law
from gtl_lightning.laws.exact import ExactRatio
from tests.oracle.markov_checks import FALSE_ALARM, cells, chain_verdicts, law_p_value, random_chain

assert_tight = partial(assert_close, rtol=1e-10, atol=1e-12)


def random_law(states: int, length: int, seed: int) -> EnumeratedDistribution:
    weights = torch.rand((states,) * length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    return EnumeratedDistribution(weights / weights.sum())


def inconsistent(x_t: Tensor, t: Tensor) -> Tensor:
    """Conditionals of no joint law, V = 3: logits that depend on the whole pattern of x_t in an arbitrary way."""
    place = torch.arange(1, x_t.shape[1] + 1, dtype=torch.float64)
    pattern = ((x_t + 1) * place).sum(1)
    tokens = torch.arange(3, dtype=torch.float64)
    logits = torch.sin(pattern[:, None, None] * 0.7 + place[:, None] * 1.3 + tokens * 2.1)
    log_p = torch.cat([logits.log_softmax(-1), torch.full((*x_t.shape, 1), -math.inf)], dim=-1)
    kept = torch.nn.functional.one_hot(x_t, 4).double().log()
    return torch.where((x_t == 3)[..., None], log_p, kept)


# Samples


@pytest.mark.parametrize("states, length, seed", [(3, 4, 0), (2, 6, 1), (5, 3, 2)])
def test_samples_follow_the_table_and_the_chain(states: int, length: int, seed: int) -> None:
    """All V^L cells counted; chi-square, false alarm 1e-9 each."""
    chain = random_chain(states, seed)
    table = EnumeratedDistribution.of(chain, length)
    positions = tuple(range(length))
    for law in (chain, table):
        x = law.sample(40_000, length, torch.Generator().manual_seed(seed))
        assert law_p_value(cells(x, positions, states), table.table) > FALSE_ALARM
    other = random_chain(states, seed + 9).sample(40_000, length, torch.Generator().manual_seed(seed))
    assert law_p_value(cells(other, positions, states), table.table) < FALSE_ALARM


def test_a_long_sample_follows_the_chain_and_is_repeatable() -> None:
    chain = random_chain(5, 3)
    x, exact = (chain.sample(4000, 40, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    verdicts = chain_verdicts(x, chain, exact)
    assert all(verdicts.values()), verdicts
    assert torch.equal(x, chain.sample(4000, 40, torch.Generator().manual_seed(0)))


# NELBO and entropy


@pytest.mark.parametrize("length", [1, 3, 5])
def test_the_nelbo_of_exact_posteriors_is_the_negative_log_likelihood(length: int) -> None:
    """Eq. 1 over all 2^L masks: -log p(x) sequence by sequence, so its mean over p is the entropy."""
    chain = random_chain(3, length)
    table = EnumeratedDistribution.of(chain, length)
    x = all_sequences(3, length)
    for law in (chain, table, random_law(3, length, 5)):
        nelbo = exact_nelbo(law, x, 3)
        assert_tight(nelbo, -law.log_prob(x))
        assert math.isclose(float(law.log_prob(x).exp() @ nelbo), law.entropy(length), rel_tol=1e-10)


def test_exact_nelbo_is_the_integral_of_eq_1() -> None:
    """Gauss-Legendre in t is exact here: for each mask, weight 1/t times t^k (1-t)^(L-k) is a polynomial."""
    length = 4
    x = all_sequences(3, length)[::7]
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = torch.zeros(len(x), dtype=torch.float64)
    for mask in itertools.product((False, True), repeat=length):
        masked = torch.tensor(mask)
        x_t = x.masked_fill(masked, 3)
        log_true = inconsistent(x_t, torch.ones(len(x))).gather(-1, x.unsqueeze(-1)).squeeze(-1)[:, masked].sum(1)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            total -= weight / node * node ** sum(mask) * (1 - node) ** (length - sum(mask)) * log_true
    assert_tight(exact_nelbo(inconsistent, x, 3), total)


# The law of a model given by its conditionals


def mixture_over_orders(length: int, weight_of_order: dict[tuple[int, ...], float]) -> Tensor:
    """sum over orders of weight * prod of the `inconsistent` conditionals: Float64[3^L]."""
    x = all_sequences(3, length)
    total = torch.zeros(len(x), dtype=torch.float64)
    for order, weight in weight_of_order.items():
        log_prob = torch.zeros(len(x), dtype=torch.float64)
        x_t = torch.full_like(x, 3)
        for position in order:
            log_p = inconsistent(x_t, torch.ones(len(x)))[:, position]
            log_prob += log_p.gather(1, x[:, position : position + 1]).squeeze(1)
            x_t[:, position] = x[:, position]
        total += weight * log_prob.exp()
    return total


def test_model_law_is_the_mixture_over_all_orders() -> None:
    length = 4
    orders = list(itertools.permutations(range(length)))
    expected = mixture_over_orders(length, dict.fromkeys(orders, 1 / len(orders)))
    assert_tight(model_law(inconsistent, 3, length).table, expected)


def test_model_law_follows_the_planner() -> None:
    """Left to right is the chain rule in that order; two weighted orders mix."""
    left = model_law(inconsistent, 3, 4, lambda x_t: torch.nn.functional.one_hot((x_t == 3).int().argmax(1), 4))
    assert_tight(left.table, mixture_over_orders(4, {(0, 1, 2, 3): 1.0}))
    uneven = model_law(inconsistent, 3, 2, lambda x_t: torch.tensor([3.0, 1.0]).expand(x_t.shape))
    assert_tight(uneven.table, mixture_over_orders(2, {(0, 1): 0.75, (1, 0): 0.25}))


def test_model_law_of_exact_conditionals_is_the_law_in_any_order() -> None:
    law = random_law(4, 4, 3)
    by_token = torch.arange(1.0, 5.0)
    for weights in (None, lambda x_t: by_token.expand(x_t.shape), lambda x_t: law.posterior(x_t).amax(-1).exp()):
        assert model_law(law, 4, 4, weights).total_variation(law) < 1e-12


def test_guided_conditionals_make_the_target() -> None:
    """Eq. 6 through `model_law`: p tilted by the exact ratio is q; untilted it is p."""
    source, target = random_law(3, 5, 1), random_law(3, 5, 2)
    ratio = ExactRatio(source, target)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        return (source(x_t) + ratio.token(x_t, t)).log_softmax(-1)

    assert model_law(guided, 3, 5).total_variation(target) < 1e-12
    assert source.total_variation(target) > 0.1


# Divergences from a model


def test_any_order_kl_vanishes_only_for_the_exact_conditionals() -> None:
    chain, other = random_chain(5, 0), random_chain(5, 1)
    g = torch.Generator().manual_seed(0)
    estimate, error = any_order_kl(chain, chain, n=480, length=24, generator=g)
    assert abs(estimate) < 1e-9 and error < 1e-9
    # Another chain's conditionals agree with one another, so the bound is the divergence itself.
    estimate, error = any_order_kl(chain, other, n=9600, length=24, generator=g)
    assert abs(estimate - chain.kl(other, 24)) < 6 * error < 0.2 * chain.kl(other, 24)


def test_any_order_kl_bounds_the_divergence_from_the_model() -> None:
    """It is E[eq. 1] - entropy, which Jensen puts above KL(q || mixture over orders); here the gap is plain."""
    chain = random_chain(3, 4)
    table = EnumeratedDistribution.of(chain, 4)
    excess = float(table.table @ exact_nelbo(inconsistent, all_sequences(3, 4), 3)) - chain.entropy(4)
    estimate, error = any_order_kl(chain, inconsistent, n=20_000, length=4, generator=torch.Generator().manual_seed(0))
    assert abs(estimate - excess) < 6 * error < 0.1 * excess
    assert table.kl(model_law(inconsistent, 3, 4)) < 0.95 * excess


# Ratios in the samplers' wrappers


@pytest.mark.parametrize(
    "ratio, states, length",
    [
        (ExactRatio(random_chain(5, 0), random_chain(5, 1)), 5, 30),
        (ExactRatio(random_law(3, 6, 0), random_law(3, 6, 1)), 3, 6),
    ],
    ids=["chain", "table"],
)
def test_both_wrappers_score_the_same_candidates(ratio: ExactRatio, states: int, length: int) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(states, (8, length), generator=g)
    x = x.masked_fill(torch.rand(x.shape, generator=g) < 0.6, states)
    row, position = (x == states).nonzero(as_tuple=True)
    candidates = torch.arange(states).expand(len(row), -1)
    t = torch.full((8,), 0.6)
    one_pass = TokenRatio(ratio.token).log_ratio(x, t, t, row, position, candidates)
    one_each = SequenceRatio(ratio.sequence).log_ratio(x, t, t, row, position, candidates)
    assert_close(one_pass, one_each, rtol=1e-9, atol=1e-9)
    assert float(one_pass.std()) > 0.1


def test_where_neither_law_has_mass_the_ratio_is_neutral() -> None:
    source = MarkovChain(torch.tensor([0.5, 0.5]), torch.tensor([[0.0, 1.0], [0.3, 0.7]]))
    target = MarkovChain(torch.tensor([0.9, 0.1]), torch.tensor([[0.0, 1.0], [0.6, 0.4]]))
    ratio = ExactRatio(source, target)
    log_r = ratio.token(torch.tensor([[0, 2, 1]]))
    assert bool(log_r.isfinite().all()) and float(log_r[0, 1, 0]) == 0.0
    assert math.isclose(float(log_r[0, 1, 1]), math.log(0.9 * 1.0 * 0.4 / (0.5 * 1.0 * 0.7)), rel_tol=1e-6)
    assert float(ratio.sequence(torch.tensor([[0, 0, 1]]))) == 0.0


# Builders


def test_paper_chain_is_the_papers() -> None:
    source, target = paper_chain(0.1), paper_chain(0.8)
    for chain, diagonal in ((source, 0.1), (target, 0.8)):
        off = (1 - diagonal) / 4
        expected = torch.full((5, 5), off).double() + torch.eye(5).double() * (diagonal - off)
        assert_close(chain.transition, expected, rtol=0, atol=1e-8)
        assert_close(stationary(chain.transition), torch.full((5,), 0.2).double(), rtol=0, atol=1e-8)
    # H(q), L = 20: log 5 for the start and 19 rows.
    by_hand = math.log(5) + 19 * (-0.8 * math.log(0.8) - 0.2 * math.log(0.05))
    assert math.isclose(target.entropy(20), by_hand, rel_tol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_stationary_law_is_kept_by_the_chain(seed: int) -> None:
    chain = random_chain(6, seed)
    law = stationary(chain.transition)
    assert_tight(law @ chain.transition, law)
    assert_close(law, torch.linalg.matrix_power(chain.transition, 200)[0], rtol=1e-9, atol=1e-12)


def test_stationary_law_of_a_periodic_and_a_leaky_chain() -> None:
    assert_close(stationary(torch.tensor([[0.0, 1.0], [1.0, 0.0]])), torch.tensor([0.5, 0.5]).double())
    assert_close(stationary(torch.tensor([[0.5, 0.5], [0.0, 1.0]])), torch.tensor([0.0, 1.0]).double())


def test_fit_recovers_the_chain_at_the_statistical_rate() -> None:
    chain = random_chain(4, 0)
    x = chain.sample(4000, 30, torch.Generator().manual_seed(0))
    fitted = MarkovChain.fit(x, 4)
    # 2 N KL is chi-square with V (V - 1) = 12 degrees of freedom for the rows, 3 more for the start: mean 15 of 2 N KL.
    assert 4000 * 2 * chain.kl(fitted, 30) < 80
    counts = torch.tensor([[0, 0, 1], [0, 1, 0]])
    assert_close(MarkovChain.fit(counts, 2, 1.0).transition, torch.tensor([[2 / 5, 3 / 5], [2 / 3, 1 / 3]]).double())
    assert_close(MarkovChain.fit(counts, 2, 1.0).initial, torch.tensor([0.75, 0.25]).double())


def test_float32_input_becomes_exactly_stochastic() -> None:
    chain = MarkovChain(torch.full((3,), 1 / 3), torch.full((3, 3), 1 / 3))
    assert chain.transition.dtype == torch.float64
    assert float((chain.transition.sum(1) - 1).abs().max()) < 1e-15
