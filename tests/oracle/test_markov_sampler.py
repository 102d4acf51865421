"""The guided sampler against chains too long to enumerate: 5^12 sequences, every conditional exact.

docs/method.md eq. 6: with the exact denoiser and ratio, revealing one position at a time draws from q itself, in any
order.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gtl_lightning import Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.core.guidance import guided_log_probs
from gtl_lightning.core.protocols import Planner
from gtl_lightning.laws.enumerated import EnumeratedDistribution, model_law
from gtl_lightning.laws.exact import ExactRatio
from tests.oracle.markov_checks import (
    FALSE_ALARM,
    cells,
    chain_verdicts,
    exact_conditional_sample,
    kolmogorov_smirnov_gap,
    law_p_value,
    random_chain,
)

V, LENGTH, BATCH = 5, 12, 4000
SOURCE, TARGET = random_chain(V, 1), random_chain(V, 2)
RATIO = ExactRatio(SOURCE, TARGET)
TOKEN, SEQUENCE = TokenRatio(RATIO.token), SequenceRatio(RATIO.sequence)
EXACT = TARGET.sample(BATCH, LENGTH, torch.Generator().manual_seed(100))


def middle_out(x_t: Tensor) -> Tensor:
    """A planner that reads the sequence: the middle first, positions beside a token 0 later."""
    place = torch.arange(x_t.shape[1], dtype=torch.float64)
    beside = torch.nn.functional.pad((x_t == 0).double(), (1, 0))[:, :-1]
    return -(place - x_t.shape[1] / 2).abs() - 3.0 * beside


PLANNERS: list[str | Planner] = ["random", "confidence", "margin", "entropy", middle_out]


def draw(guidance: Guidance | None, seed: int, planner: str | Planner = "random", n: int = BATCH) -> Tensor:
    return sample(
        SOURCE,
        batch=n,
        length=LENGTH,
        mask_index=V,
        guidance=guidance,
        planner=planner,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda p: p if isinstance(p, str) else p.__name__)
def test_token_guidance_samples_the_target_in_any_order(planner: str | Planner) -> None:
    """Six statistics of `chain_verdicts`, false alarm 1e-9 each."""
    verdicts = chain_verdicts(draw(Guidance(TOKEN), 0, planner), TARGET, EXACT)
    assert all(verdicts.values()), verdicts


@pytest.mark.parametrize("planner", ["random", "confidence"])
def test_sequence_guidance_samples_the_target(planner: str) -> None:
    verdicts = chain_verdicts(draw(Guidance(SEQUENCE), 1, planner), TARGET, EXACT)
    assert all(verdicts.values()), verdicts


def test_unguided_and_gamma_0_sample_the_source() -> None:
    exact = SOURCE.sample(BATCH, LENGTH, torch.Generator().manual_seed(101))
    for guidance in (None, Guidance(TOKEN, gamma=0.0)):
        verdicts = chain_verdicts(draw(guidance, 2), SOURCE, exact)
        assert all(verdicts.values()), verdicts


@pytest.mark.parametrize("gamma", [0.0, 0.8, 1.25])
def test_the_verdicts_tell_a_wrong_strength(gamma: float) -> None:
    """The checks above have power: a gamma that is off by a fifth is found out."""
    verdicts = chain_verdicts(draw(Guidance(TOKEN, gamma=gamma), 3), TARGET, EXACT)
    assert not verdicts["transitions"]
    assert not verdicts["mean log-likelihood"]


# Prompts

PROMPTS = {
    "prefix": [0, 3, 1, V, V, V, V, V, V, V, V, V],
    "infilling": [V, V, 2, V, V, V, 4, V, V, V, V, 0],
    "suffix": [V, V, V, V, V, V, V, V, V, V, 1, 1],
}


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda p: p if isinstance(p, str) else p.__name__)
def test_prompts_give_the_conditional_law(planner: str | Planner) -> None:
    """One batch of three prompts with different numbers of masks, each against q(. | prompt)."""
    order = torch.randperm(3 * BATCH, generator=torch.Generator().manual_seed(0))
    prompt = torch.tensor(list(PROMPTS.values())).repeat_interleave(BATCH, 0)[order]
    x = sample(
        SOURCE,
        prompt=prompt,
        mask_index=V,
        guidance=Guidance(TOKEN),
        planner=planner,
        generator=torch.Generator().manual_seed(4),
    )
    assert torch.equal(x[prompt != V], prompt[prompt != V])
    assert int(x.max()) < V
    generator = torch.Generator().manual_seed(5)
    for kind, name in enumerate(PROMPTS):
        mine = x[order // BATCH == kind]
        given = torch.tensor([PROMPTS[name]])
        posterior = TARGET.posterior(given)[0, :, :V].exp()
        hidden = [i for i in range(LENGTH) if PROMPTS[name][i] == V]
        for position in hidden:
            assert law_p_value(cells(mine, (position,), V), posterior[position]) > FALSE_ALARM, (name, position)
        # Joint law of two neighbours given the prompt: posterior of the first, then of the second given both.
        for first in (i for i in hidden if i + 1 in hidden):
            both = given.repeat(V, 1)
            both[:, first] = torch.arange(V)
            joint = posterior[first, :, None] * TARGET.posterior(both)[:, first + 1, :V].exp()
            assert law_p_value(cells(mine, (first, first + 1), V), joint) > FALSE_ALARM, (name, first)
        exact = exact_conditional_sample(TARGET, given.repeat(BATCH, 1), generator)
        gap, bound = kolmogorov_smirnov_gap(TARGET.log_prob(mine), TARGET.log_prob(exact))
        assert gap < bound, name


# Any strength and pruning: the exact law of what the sampler does, on a chain that can be enumerated


@pytest.mark.parametrize("gamma, n_ratio", [(2.0, None), (0.5, None), (1.0, 2), (3.0, 2)])
@pytest.mark.parametrize("planner", ["random", "confidence"])
def test_the_samplers_law_is_the_recursions(gamma: float, n_ratio: int | None, planner: str) -> None:
    """gamma other than 1 draws neither p nor q; `model_law` says what, and the cells agree."""
    states, length = 3, 4
    source, target = random_chain(states, 5), random_chain(states, 6)
    ratio = ExactRatio(source, target)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        return guided_log_probs(source(x_t, t), ratio.token(x_t, t), gamma, n_ratio)

    def surest(x_t: Tensor) -> Tensor:
        score = source(x_t)[..., :states].amax(-1).masked_fill(x_t != states, -torch.inf)
        return torch.nn.functional.one_hot(score.argmax(-1), length)

    law = model_law(guided, states, length, surest if planner == "confidence" else None)
    x = sample(
        source,
        batch=40_000,
        length=length,
        mask_index=states,
        guidance=Guidance(TokenRatio(ratio.token), gamma=gamma, n_ratio=n_ratio),
        planner=planner,
        generator=torch.Generator().manual_seed(7),
    )
    counts = cells(x, tuple(range(length)), states).flatten()
    # What pruning makes impossible is never drawn; rare sequences share one cell, so that each expects 5 or more.
    assert float(counts[law.table == 0].sum()) == 0
    rare = law.table * len(x) < 20
    pooled = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([law.table[~rare], law.table[rare].sum().view(1)])
    occupied = expected > 0
    assert law_p_value(pooled[occupied], expected[occupied]) > FALSE_ALARM
    assert law.total_variation(EnumeratedDistribution.of(target, length)) > 0.03
