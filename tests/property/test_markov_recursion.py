"""Forward-backward against brute force over all sequences, written here without the package's own recursions."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from gtl_lightning.core.schedule import Cosine
from gtl_lightning.laws.chains import MarkovChain
from gtl_lightning.laws.enumerated import EnumeratedDistribution
from gtl_lightning.laws.exact import ExactDistribution, ExactRatio

assert_tight = partial(assert_close, rtol=1e-10, atol=1e-12)


def random_chain(states: int, seed: int, zeros: bool = False) -> MarkovChain:
    """Rows spread over four orders of magnitude; with `zeros` about a third of the transitions is impossible."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(states + 1, states, generator=g, dtype=torch.float64).pow(4) + 1e-4
    if zeros:
        allowed = torch.rand(states + 1, states, generator=g) < 0.67
        allowed[torch.arange(states + 1), torch.randint(states, (states + 1,), generator=g)] = True
        weights = weights * allowed
    weights = weights / weights.sum(1, keepdim=True)
    return MarkovChain(weights[0], weights[1:])


def random_rows(states: int, length: int, seed: int, masks: bool = True) -> Tensor:
    return torch.randint(states + int(masks), (6, length), generator=torch.Generator().manual_seed(seed))


def probability(chain: MarkovChain, x: tuple[int, ...]) -> float:
    """p(x) straight from the definition."""
    value = float(chain.initial[x[0]])
    for here, there in itertools.pairwise(x):
        value *= float(chain.transition[here, there])
    return value


def emission(z: int, y: int, states: int, alpha: float | None) -> float:
    """P(z | y): absorbing noise up to its factor, or uniform noise."""
    if alpha is None:
        return float(z in (states, y))
    return alpha * float(z == y) + (1 - alpha) / states


def brute_joint(chain: MarkovChain, z: tuple[int, ...], alpha: float | None) -> Tensor:
    """sum_x p(x) P(z | x) 1[x_l = y]: Float64[l,V]."""
    joint = torch.zeros(len(z), chain.states, dtype=torch.float64)
    for x in itertools.product(range(chain.states), repeat=len(z)):
        noise = math.prod(emission(a, b, chain.states, alpha) for a, b in zip(z, x, strict=True))
        for position, token in enumerate(x):
            joint[position, token] += probability(chain, x) * noise
    return joint


CHAINS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6), st.booleans())
NOISE = st.one_of(st.none(), st.floats(0.05, 0.95))


@settings(max_examples=40)
@given(case=CHAINS, alpha=NOISE)
def test_posterior_and_marginal_are_those_of_brute_force(case: tuple[int, int, int, bool], alpha: float | None) -> None:
    states, length, seed, zeros = case
    chain = random_chain(states, seed, zeros)
    z = random_rows(states, length, seed, masks=alpha is None)
    tables: tuple[ExactDistribution, ...] = (chain, EnumeratedDistribution.of(chain, length))
    brute = torch.stack([brute_joint(chain, tuple(row.tolist()), alpha) for row in z])
    total = brute[:, 0].sum(-1)
    possible = total > 0
    for law in tables:
        assert_tight(law.log_marginal(z, alpha).exp(), total)
        if bool(possible.any()):
            posterior = law.posterior(z[possible], alpha)
            expected = brute[possible] / total[possible, None, None]
            assert_tight(posterior[..., :states].exp(), expected)
            assert bool(posterior[..., states].isneginf().all())


@settings(max_examples=40)
@given(case=CHAINS, alpha=NOISE)
def test_neighbours_are_the_marginals_after_substitution(case: tuple[int, int, int, bool], alpha: float | None) -> None:
    """Every column of the one-pass table, the mask's too, equals the marginal of the sequence with that token set."""
    states, length, seed, zeros = case
    chain = random_chain(states, seed, zeros)
    z = random_rows(states, length, seed, masks=alpha is None)
    table = chain.log_neighbours(z, alpha).exp()
    assert_tight(table, EnumeratedDistribution.of(chain, length).log_neighbours(z, alpha).exp())
    for position, token in itertools.product(range(length), range(states)):
        changed = z.clone()
        changed[:, position] = token
        assert_tight(table[:, position, token], chain.log_marginal(changed, alpha).exp())
    # Unobserved: what is left when all noisy values of the position are summed out.
    left_out = table[..., :states].sum(-1)
    assert_tight(table[..., states], left_out)
    if alpha is None:
        masked = z == states
        whole = chain.log_marginal(z).exp()[:, None].expand_as(masked)
        assert_tight(table[..., states][masked], whole[masked])


@settings(max_examples=40)
@given(case=CHAINS, alpha=NOISE)
def test_marginals_add_up_to_one(case: tuple[int, int, int, bool], alpha: float | None) -> None:
    states, length, seed, zeros = case
    chain = random_chain(states, seed, zeros)
    everything = torch.cartesian_prod(*[torch.arange(states)] * length).view(-1, length)
    assert_tight(chain.log_marginal(everything, alpha).exp().sum().item(), 1.0)
    hidden = torch.full((1, length), states)
    assert_tight(chain.log_marginal(hidden).item(), 0.0)
    assert_tight(chain.posterior(hidden)[0, :, :states].exp(), chain.marginals(length))


@settings(max_examples=40)
@given(states=st.integers(2, 6), length=st.integers(1, 24), seed=st.integers(0, 10**6))
def test_the_ratio_is_a_martingale_and_tilts_p_into_q(states: int, length: int, seed: int) -> None:
    """Eq. 6, both halves, at any mask pattern and far beyond enumeration."""
    source, target = random_chain(states, seed), random_chain(states, seed + 1)
    x_t = random_rows(states, length, seed)
    ratio = ExactRatio(source, target)
    masked = x_t == states
    log_r = ratio.sequence(x_t)[:, None].expand(x_t.shape)
    tilted = source.posterior(x_t)[..., :states] + ratio.token(x_t)[..., :states]
    assert_close(tilted.logsumexp(-1)[masked], log_r[masked], rtol=1e-9, atol=1e-9)
    reached = (tilted - log_r.unsqueeze(-1)).exp()
    assert_close(reached[masked], target.posterior(x_t)[..., :states].exp()[masked], rtol=1e-9, atol=1e-12)
    assert_close(ratio.token(x_t)[..., states][masked], log_r[masked], rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(case=CHAINS, t=st.floats(0.05, 0.95), uniform=st.booleans())
def test_the_ratio_is_the_posterior_mean_of_the_clean_ratio(
    case: tuple[int, int, int, bool], t: float, uniform: bool
) -> None:
    """Eq. 3 by brute force over x_0, both noises; t reaches the law through the schedule."""
    states, length, seed, _ = case
    source, target = random_chain(states, seed), random_chain(states, seed + 1)
    schedule = Cosine() if uniform else None
    z = random_rows(states, length, seed, masks=not uniform)
    alpha = 1 - math.sin(t * math.pi / 2) if uniform else None
    ratio = ExactRatio(source, target, schedule)
    got = ratio.sequence(z, torch.full((len(z),), t, dtype=torch.float64)).exp()
    for row, value in zip(z.tolist(), got.tolist(), strict=True):
        mean, mass = 0.0, 0.0
        for x in itertools.product(range(states), repeat=length):
            weight = probability(source, x) * math.prod(
                emission(a, b, states, alpha) for a, b in zip(row, x, strict=True)
            )
            mean += weight * probability(target, x) / probability(source, x)
            mass += weight
        assert math.isclose(value, mean / mass, rel_tol=1e-9)


@settings(max_examples=20)
@given(states=st.integers(2, 6), seed=st.integers(0, 10**6), share=st.floats(0.0, 1.0))
def test_long_chains_neither_underflow_nor_drift(states: int, seed: int, share: float) -> None:
    """L = 128 against the closed form by matrix powers: only the nearest revealed neighbours matter."""
    length = 128
    chain = random_chain(states, seed)
    g = torch.Generator().manual_seed(seed)
    x_0 = chain.sample(2, length, g)
    by_definition = chain.initial[x_0[:, 0]].log() + chain.transition[x_0[:, :-1], x_0[:, 1:]].log().sum(1)
    assert_close(chain.log_prob(x_0), by_definition, rtol=1e-10, atol=1e-10)
    x_t = x_0.masked_fill(torch.rand(x_0.shape, generator=g) < share, states)
    posterior = chain.posterior(x_t)[..., :states].exp()
    for row in range(2):
        for position in range(0, length, 17):
            left = [i for i in range(position + 1) if int(x_t[row, i]) < states]
            right = [i for i in range(position, length) if int(x_t[row, i]) < states]
            if left:
                law = torch.linalg.matrix_power(chain.transition, position - left[-1])[x_t[row, left[-1]]]
            else:
                law = chain.initial @ torch.linalg.matrix_power(chain.transition, position)
            if right:
                law = law * torch.linalg.matrix_power(chain.transition, right[0] - position)[:, x_t[row, right[0]]]
            assert_close(posterior[row, position], law / law.sum(), rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(states=st.integers(1, 5), seed=st.integers(0, 10**6), length=st.integers(1, 5))
def test_uniform_noise_at_its_ends(states: int, seed: int, length: int) -> None:
    """alpha = 1 tells everything, alpha = 0 nothing."""
    chain = random_chain(states, seed)
    z = random_rows(states, length, seed, masks=False)
    clean = torch.nn.functional.one_hot(z, states).double()
    assert_tight(chain.posterior(z, 1.0)[..., :states].exp(), clean)
    assert_tight(chain.log_marginal(z, 1.0), chain.log_prob(z))
    blind = chain.posterior(z, 0.0)[..., :states].exp()
    assert_tight(blind, chain.marginals(length).expand_as(blind))
    assert_tight(chain.log_marginal(z, 0.0), torch.full((6,), -length * math.log(states), dtype=torch.float64))


@settings(max_examples=30)
@given(case=CHAINS)
def test_entropy_and_divergence_equal_enumeration(case: tuple[int, int, int, bool]) -> None:
    states, length, seed, zeros = case
    chain, other = random_chain(states, seed, zeros), random_chain(states, seed + 1)
    listed = EnumeratedDistribution.of(chain, length)
    everything = list(itertools.product(range(states), repeat=length))
    p = [probability(chain, x) for x in everything]
    q = [probability(other, x) for x in everything]
    entropy = -sum(a * math.log(a) for a in p if a > 0)
    assert math.isclose(chain.entropy(length), entropy, rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(listed.entropy(length), entropy, rel_tol=1e-9, abs_tol=1e-9)
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    assert math.isclose(chain.kl(other, length), divergence, rel_tol=1e-9, abs_tol=1e-9)
    exact = listed.kl(EnumeratedDistribution.of(other, length))
    assert math.isclose(exact, divergence, rel_tol=1e-9, abs_tol=1e-9)
