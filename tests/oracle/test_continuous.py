"""Continuous-time sampling (docs/method.md eq. 10): the score, the rates, the law of a walk, and its limit.

On short chains the law that a walk of N steps ends in is computed exactly, state by state, from the same `transition`
that the sampler draws from. So the distance to the target is known without sampling noise and its order in N can be
read off; and the sampler is tested against the law of its own N, not against a limit. Seeds are fixed, false alarms
below 1e-9 a statistic.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gtl_lightning import Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.core.continuous import (
    Leap,
    euler,
    first_event,
    sample_continuous,
    tau_leaping,
    transition,
)
from gtl_lightning.core.forward import posterior, uniform_nelbo_terms, uniform_score
from gtl_lightning.core.guidance import guided_log_probs
from gtl_lightning.core.noise import Absorbing, Noise, Uniform
from gtl_lightning.core.schedule import Cosine, LogLinear, NoiseSchedule, Polynomial
from gtl_lightning.errors import UserError
from gtl_lightning.laws.enumerated import EnumeratedDistribution, all_sequences
from gtl_lightning.laws.exact import ExactRatio
from tests.oracle.markov_checks import FALSE_ALARM, cells, law_p_value, random_chain

V, LENGTH, N = 3, 3, 20_000
SOURCE, TARGET = random_chain(V, 11), random_chain(V, 12)
PROCESSES: dict[str, tuple[Noise, NoiseSchedule | None]] = {
    "absorbing": (Absorbing(V), None),
    "uniform": (Uniform(V), LogLinear()),
}
LEAPS: dict[str, Leap] = {"euler": euler, "tau": tau_leaping}
STATES = torch.cartesian_prod(*[torch.arange(V + 1)] * LENGTH)  # masks included: the walk's states under either noise
CLEAN = (STATES != V).all(1)

processes = pytest.mark.parametrize("process", PROCESSES)
leaps = pytest.mark.parametrize("leap", LEAPS)


def table(law: EnumeratedDistribution) -> Tensor:
    return law.table


TARGET_TABLE = table(EnumeratedDistribution.of(TARGET, LENGTH))
SOURCE_TABLE = table(EnumeratedDistribution.of(SOURCE, LENGTH))


def guidance(process: str, kind: str = "token", gamma: float = 1.0, stabilise: bool = True) -> Guidance:
    ratio = ExactRatio(SOURCE, TARGET, PROCESSES[process][1])
    wrapped = TokenRatio(ratio.token) if kind == "token" else SequenceRatio(ratio.sequence)
    return Guidance(wrapped, gamma, stabilise=stabilise, chunk=100_000)


def states_of(process: str) -> Tensor:
    return STATES if process == "absorbing" else STATES[CLEAN]


def joint(step: Tensor, states: Tensor) -> Tensor:
    """Float64[s,s]: the law of the next state, positions being independent given this one."""
    columns = [step[:, position][:, states[:, position]] for position in range(LENGTH)]
    return torch.stack(columns).prod(0)


def walk_law(process: str, steps: int, leap: Leap, guide: Guidance | None) -> Tensor:
    """Float64[v^l]: the exact law of what `sample_continuous` returns."""
    noise, schedule = PROCESSES[process]
    states = states_of(process)
    grid = noise.grid(steps)
    if process == "absorbing":
        mass = (states == V).all(1).double()
    else:
        mass = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
    denoiser = SOURCE.denoiser(schedule)
    for t, s in pairwise(grid):
        step = transition(denoiser, noise, states, t, s, guidance=guide, leap=leap)
        mass = mass @ joint(step, states)
    if process == "absorbing":  # leftovers are revealed independently
        last = transition(denoiser, noise, states, grid[-2], -math.inf, guidance=guide, leap=first_event)
        mass = (mass @ joint(last, states))[CLEAN]
    return mass


def distance(law: Tensor, goal: Tensor) -> float:
    return float((law - goal).abs().sum() / 2)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.97])
def test_the_score_is_the_ratio_of_neighbours(alpha: float) -> None:
    """From the posterior alone, eq. 10's score of uniform noise is p_t(y) / p_t(x) for every one-token change."""
    x = all_sequences(V, LENGTH)
    share = torch.full((len(x),), alpha, dtype=torch.float64)
    score = uniform_score(SOURCE.posterior(x, share)[..., :V].exp(), x, share)
    exact = (SOURCE.log_neighbours(x, share)[..., :V] - SOURCE.log_marginal(x, share)[:, None, None]).exp()
    torch.testing.assert_close(score, exact)


@processes
@pytest.mark.parametrize("kind", ["token", "sequence"])
@pytest.mark.parametrize("t", [0.9, 0.4, 0.02])
def test_guided_rates_are_the_targets(process: str, kind: str, t: float) -> None:
    """Eq. 10 with exact score and ratio: the rates of the target's own reverse process, with no stabiliser."""
    noise, schedule = PROCESSES[process]
    x, times = states_of(process), torch.full((len(states_of(process)),), t, dtype=torch.float64)
    guided = noise.rates(
        SOURCE.denoiser(schedule)(x, times), x, times, LogLinear(), guidance(process, kind, stabilise=False)
    )
    exact = noise.rates(TARGET.denoiser(schedule)(x, times), x, times, LogLinear())
    torch.testing.assert_close(guided, exact, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(noise.rates(SOURCE.denoiser(schedule)(x, times), x, times, LogLinear()), exact, rtol=0.1)


@processes
def test_zero_gamma_leaves_the_rates_and_the_stabiliser_is_neutral_at_one(process: str) -> None:
    noise, schedule = PROCESSES[process]
    x, t = states_of(process), torch.full((len(states_of(process)),), 0.3, dtype=torch.float64)
    log_p = SOURCE.denoiser(schedule)(x, t)
    plain = noise.rates(log_p, x, t, LogLinear())
    for stabilise in (True, False):
        off = noise.rates(log_p, x, t, LogLinear(), guidance(process, gamma=0.0, stabilise=stabilise))
        torch.testing.assert_close(off, plain)
        never = SequenceRatio(lambda x, t: torch.full((len(x),), -torch.inf, dtype=torch.float64))
        off = noise.rates(log_p, x, t, LogLinear(), Guidance(never, gamma=0.0, stabilise=stabilise))
        torch.testing.assert_close(off, plain)
    one, raw = (noise.rates(log_p, x, t, LogLinear(), guidance(process, stabilise=s)) for s in (True, False))
    torch.testing.assert_close(one, raw)
    two, raw = (noise.rates(log_p, x, t, LogLinear(), guidance(process, gamma=2.0, stabilise=s)) for s in (True, False))
    assert torch.allclose(two, raw) == (process == "uniform")  # only the mask has odds that could be kept


def test_an_euler_step_is_an_ancestral_step() -> None:
    """Under absorbing noise on the log-linear schedule, eq. 10 followed by Euler is eq. 5, table by table."""
    t, s = 0.7, 0.45
    step = transition(SOURCE, Absorbing(V), STATES, t, s, guidance=guidance("absorbing"))
    times = [torch.full((len(STATES),), value, dtype=torch.float64) for value in (t, s)]
    tilted = guided_log_probs(SOURCE(STATES), ExactRatio(SOURCE, TARGET).token(STATES))
    exact = posterior(tilted, STATES, *times, LogLinear(), V).exp()
    torch.testing.assert_close(step, exact)


@processes
@leaps
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
def test_walks_converge_at_first_order(process: str, leap: str, guided: bool) -> None:
    """Both leaps are of order one: twice the steps, half the distance to the law, without sampling noise."""
    guide, goal = (guidance(process), TARGET_TABLE) if guided else (None, SOURCE_TABLE)
    error = [distance(walk_law(process, steps, LEAPS[leap], guide), goal) for steps in (32, 64, 128)]
    assert error[0] < 0.05
    for coarse, fine in pairwise(error):
        assert 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Polynomial()], ids=lambda s: type(s).__name__)
def test_the_ancestral_sampler_converges_at_first_order(schedule: NoiseSchedule) -> None:
    """The same for `sampling.sample` in steps: its law composed from eqs. 2 and 5."""
    log_p = guided_log_probs(SOURCE(STATES), ExactRatio(SOURCE, TARGET).token(STATES))
    error = []
    for steps in (32, 64, 128):
        mass = (STATES == V).all(1).double()
        for t, s in pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()):
            times = [torch.full((len(STATES),), value, dtype=torch.float64) for value in (t, s)]
            mass = mass @ joint(posterior(log_p, STATES, *times, schedule, V).exp(), STATES)
        error.append(distance(mass[CLEAN], TARGET_TABLE))
    assert error[0] < 0.05
    for coarse, fine in pairwise(error):
        assert 1.8 < coarse / fine < 2.2


@processes
@leaps
@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_samples_follow_the_law_of_their_own_steps(process: str, leap: str, kind: str) -> None:
    """Few steps, so that the law is far from the target's: chi-square against the law of this very walk."""
    noise, schedule = PROCESSES[process]
    law = walk_law(process, 6, LEAPS[leap], guidance(process))
    x = sample_continuous(
        SOURCE.denoiser(schedule),
        noise,
        batch=N,
        length=LENGTH,
        steps=6,
        guidance=guidance(process, kind),
        leap=LEAPS[leap],
        generator=torch.Generator().manual_seed(0),
    )
    counts = cells(x, tuple(range(LENGTH)), V).flatten()
    assert law_p_value(counts, law) > FALSE_ALARM
    assert law_p_value(counts, TARGET_TABLE) < FALSE_ALARM  # the statistic tells the two apart


@processes
@leaps
def test_fine_walks_sample_the_target(process: str, leap: str) -> None:
    """With the remaining distance below what the chi-square resolves, samples are the target's."""
    noise, schedule = PROCESSES[process]
    x = sample_continuous(
        SOURCE.denoiser(schedule),
        noise,
        batch=2000,
        length=LENGTH,
        steps=120,
        guidance=guidance(process),
        leap=LEAPS[leap],
        generator=torch.Generator().manual_seed(1),
    )
    assert law_p_value(cells(x, tuple(range(LENGTH)), V).flatten(), TARGET_TABLE) > FALSE_ALARM


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_no_mask_is_left_where_strong_guidance_takes_every_rate_to_zero(gamma: float) -> None:
    """Without the stabiliser a ratio that falls with every reveal leaves nothing of the rates in single precision."""
    guidance = Guidance(SequenceRatio(lambda x, t: -30.0 * (x != 3).sum(-1).float()), gamma, stabilise=False)
    x = sample_continuous(
        lambda x, t: torch.zeros(*x.shape, 4),
        Absorbing(3),
        batch=100,
        length=3,
        steps=20,
        guidance=guidance,
        generator=torch.Generator().manual_seed(0),
    )
    assert not (x == 3).any() and len(x.unique()) == 3


def test_continuous_and_revealing_samplers_agree() -> None:
    """Absorbing: the limit of eq. 10 is the law of section 2.4, at a gamma where that is neither p nor q.

    Every masked position is as likely to be next in both, so the laws agree also where the order matters.
    """
    guide = guidance("absorbing", gamma=2.0)
    law = walk_law("absorbing", 400, euler, guide)
    generator = torch.Generator().manual_seed(2)
    x = sample(SOURCE, batch=8000, length=LENGTH, mask_index=V, guidance=guide, generator=generator)
    counts = cells(x, tuple(range(LENGTH)), V).flatten()
    pooled = law * len(x) < 10
    merged = [torch.cat([part[~pooled], part[pooled].sum().view(1)]) for part in (counts, law)]
    keep = merged[1] * len(x) >= 5
    assert law_p_value(merged[0][keep], merged[1][keep] / merged[1][keep].sum()) > FALSE_ALARM
    assert distance(law, TARGET_TABLE) > 0.1


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()], ids=lambda s: type(s).__name__)
def test_the_nelbo_under_uniform_noise_is_the_likelihood(schedule: NoiseSchedule) -> None:
    """Its integral with exact posteriors is -log p(x_0) for every sequence, and more for another chain's posteriors."""
    x_0 = all_sequences(V, 2)
    states = all_sequences(V, 2)
    nodes, weights = _gauss_legendre(200)
    total, other = torch.zeros(len(x_0), dtype=torch.float64), torch.zeros(len(x_0), dtype=torch.float64)
    for t, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        times = torch.full((len(states),), t, dtype=torch.float64)
        alpha = schedule.alpha(times)
        for law, value in ((SOURCE, total), (TARGET, other)):
            p = law.posterior(states, alpha)[..., :V].exp()
            for index, clean in enumerate(x_0):
                keep = torch.where(states == clean, alpha[:, None], 0.0) + (1 - alpha[:, None]) / V
                terms = uniform_nelbo_terms(p, clean.expand_as(states), states, times, schedule)
                value[index] += weight * (keep.prod(1) * terms).sum()
    torch.testing.assert_close(total, -SOURCE.log_prob(x_0), rtol=1e-3, atol=1e-3)
    assert ((total - other) * SOURCE.log_prob(x_0).exp()).sum() < -0.05


def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on (0, 1), crowded at both ends by u -> u^2 (3 - 2 u), where the integrand is steep."""
    import numpy as np

    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(n))
    u = (nodes + 1) / 2
    t = u**2 * (3 - 2 * u)
    # Where alpha rounds to 0 the rate is infinite and what it multiplies is 0.
    return t.clamp(1e-9, 1 - 1e-6), weights / 2 * 6 * u * (1 - u)


def _wide_open(x_t: Tensor, t: Tensor) -> Tensor:
    """A denoiser that takes any ids."""
    return torch.zeros(*x_t.shape, V + 1).log_softmax(-1)


def test_nothing_is_drawn_for_no_sequences() -> None:
    assert sample_continuous(SOURCE, Absorbing(V), batch=0, length=3, steps=2).shape == (0, 3)


MISTAKES = {
    "no steps": (lambda: _draw(steps=0), "steps = 0"),
    "no tokens": (lambda: _draw(length=0), "length = 0"),
    "pruning under uniform noise": (
        lambda: _draw(process="uniform", guide=Guidance(TokenRatio(lambda x, t: x), n_ratio=2)),
        "n_ratio is for absorbing noise",
    ),
    "a mask that is no token": (
        lambda: sample_continuous(SOURCE, Absorbing(9), batch=2, length=2, steps=1),
        "x_t holds ids 9..9",
    ),
    "a mask beyond the denoiser": (
        lambda: sample_continuous(_wide_open, Absorbing(9), batch=2, length=2, steps=1),
        "mask_index = 9 is no id of the denoiser's 4 tokens",
    ),
    "more tokens than the denoiser has": (
        lambda: sample_continuous(_wide_open, Uniform(9), batch=2, length=2, steps=1),
        "vocab_size = 9; the denoiser has 4 tokens",
    ),
    "pruning that favours the mask": (
        lambda: _draw(guide=Guidance(TokenRatio(ExactRatio(SOURCE, TARGET).token), n_ratio=2, stabilise=False)),
        "n_ratio without the stabiliser",
    ),
}


def _draw(process: str = "absorbing", steps: int = 4, length: int = LENGTH, guide: Guidance | None = None) -> Tensor:
    noise, schedule = PROCESSES[process]
    return sample_continuous(SOURCE.denoiser(schedule), noise, batch=2, length=length, steps=steps, guidance=guide)


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_is_named(name: str) -> None:
    act, message = MISTAKES[name]
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
