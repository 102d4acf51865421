"""With an exact denoiser and an exact ratio the sampler's law is q, whatever the order and the kind of ratio.

Total variation is compared with `total_variation_bound`: exact samples exceed it with probability below 1e-7 a test.
The laws lie 0.65 apart, so guidance that did nothing, or the wrong thing, is seen. Seeds are fixed.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.core.schedule import Cosine
from tests.oracle.enumeration import Enumeration, random_laws, total_variation, total_variation_bound

LAWS = random_laws(vocab=3, length=3, seed=0)
TOKEN, SEQUENCE = TokenRatio(LAWS.token_log_ratio), SequenceRatio(LAWS.sequence_log_ratio)
N = 30_000

ratios = pytest.mark.parametrize("ratio", [TOKEN, SEQUENCE], ids=["token", "sequence"])


def right_first(x_t: Tensor) -> Tensor:
    """A sharp but random planner that looks at the tokens."""
    return torch.arange(x_t.shape[1]) * 1.5 - x_t.double()


def draw(laws: Enumeration = LAWS, n: int = N, seed: int = 0, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if "prompt" not in options:
        options |= {"batch": n, "length": laws.length}
    return sample(laws.denoiser, mask_index=laws.mask_index, generator=generator, **options)


def distance(x: Tensor, law: Tensor, laws: Enumeration = LAWS) -> float:
    """Total variation in units of the bound that exact samples keep."""
    return total_variation(x, law, laws) / total_variation_bound(law, len(x))


def test_the_test_has_power() -> None:
    """Source samples, and samples guided by the wrong ratio, are told from q with a wide margin."""
    assert distance(draw(), LAWS.q) > 8
    assert distance(draw(guidance=Guidance(TOKEN, gamma=0.5)), LAWS.q) > 3
    biased = TokenRatio(lambda x, t: 0.8 * LAWS.token_log_ratio(x, t))
    assert distance(draw(guidance=Guidance(biased)), LAWS.q) > 1.3


@pytest.mark.parametrize("planner", ["random", "confidence", "margin", "entropy", right_first])
def test_unguided_law_is_the_source(planner: Any) -> None:
    assert distance(draw(planner=planner), LAWS.p) < 1


@ratios
@pytest.mark.parametrize("planner", ["random", "confidence", "margin", "entropy", right_first])
def test_guided_law_is_the_target(ratio: SequenceRatio | TokenRatio, planner: Any) -> None:
    """Eq. 6, one position a step."""
    assert distance(draw(guidance=Guidance(ratio, chunk=50_000), planner=planner), LAWS.q) < 1


@ratios
def test_target_with_impossible_sequences(ratio: SequenceRatio | TokenRatio) -> None:
    """Where q is zero (log r = -inf) nothing is drawn, and the rest keeps its law."""
    laws = random_laws(vocab=3, length=3, seed=4, zeros=True)
    wrapped = TokenRatio(laws.token_log_ratio) if ratio is TOKEN else SequenceRatio(laws.sequence_log_ratio)
    x = draw(laws, guidance=Guidance(wrapped, chunk=50_000))
    assert (laws.q[laws.index(x)] > 0).all()
    assert distance(x, laws.q, laws) < 1


def test_longer_sequences_and_another_schedule() -> None:
    laws = random_laws(vocab=2, length=6, seed=5)
    guidance = Guidance(TokenRatio(laws.token_log_ratio))
    assert distance(draw(laws, n=20_000, guidance=guidance, schedule=Cosine(), planner="entropy"), laws.q, laws) < 1


@ratios
def test_infilling_law_is_the_conditional(ratio: SequenceRatio | TokenRatio) -> None:
    """Half of the rows keep the middle token, half the two outer ones; each follows q given what is kept."""
    m = LAWS.mask_index
    middle, outer = torch.tensor([[m, 1, m]]), torch.tensor([[2, m, 0]])
    prompt = torch.cat([middle, outer]).repeat(N // 2, 1)
    x = draw(prompt=prompt, guidance=Guidance(ratio, chunk=50_000))
    assert torch.equal(x[prompt != m], prompt[prompt != m])
    for kept, rows in ((middle, x[0::2]), (outer, x[1::2])):
        law = LAWS.compatible(kept)[0] * LAWS.q
        assert distance(rows, law / law.sum()) < 1


@pytest.mark.parametrize("stabilise", [True, False])
@ratios
def test_ancestral_converges(ratio: SequenceRatio | TokenRatio, stabilise: bool) -> None:
    """Eq. 5 on a time grid approaches q as the grid is refined: several reveals in a step become rare."""
    guidance = Guidance(ratio, stabilise=stabilise, chunk=50_000)
    coarse, fine, finest = (
        total_variation(draw(guidance=guidance, steps=steps, n=20_000), LAWS.q, LAWS) for steps in (1, 5, 40)
    )
    assert coarse > 2 * fine > 2 * finest
    assert finest < total_variation_bound(LAWS.q, 20_000)


def test_ancestral_unguided_converges_to_the_source() -> None:
    assert distance(draw(steps=40, n=20_000), LAWS.p) < 1


@ratios
def test_stabiliser_is_neutral_with_exact_inputs(ratio: SequenceRatio | TokenRatio) -> None:
    """At gamma = 1 the raw and the stabilised step have one law, also on a coarse grid where it is not q."""
    count = []
    for seed, stabilise in enumerate((True, False)):
        x = draw(seed=seed, steps=3, guidance=Guidance(ratio, stabilise=stabilise, chunk=50_000))
        count.append(torch.bincount(LAWS.index(x), minlength=len(LAWS.q)).double() / N)
    even = torch.full_like(LAWS.q, 1 / len(LAWS.q))  # the bound is largest here, so it serves for the unknown law
    assert 0.5 * (count[0] - count[1]).abs().sum() < 2 * total_variation_bound(even, N)


@pytest.mark.parametrize(("stabilise", "gamma", "n_ratio"), [(True, 2.0, None), (False, 2.0, None), (False, 0.0, 1)])
@ratios
def test_share_revealed_in_a_step(
    ratio: SequenceRatio | TokenRatio, stabilise: bool, gamma: float, n_ratio: int | None
) -> None:
    """The first of two steps from {0: 2}, where r is not 1: eq. 2's share if stabilised, else that of eq. 5.

    Without guidance pruning must not favour the mask either, so gamma = 0 reveals as eq. 2 does.
    """
    m, alpha_s, now = LAWS.mask_index, 0.5, torch.ones(1)
    prompt = torch.tensor([[2, m, m]])
    p, r = LAWS.denoiser(prompt, now).exp()[0, 1:], LAWS.token_log_ratio(prompt, now).exp()[0, 1:]
    own = LAWS.sequence_log_ratio(prompt, now).exp()
    assert abs(own.log()) > 0.2
    weight = alpha_s * p * r**gamma
    weight[:, m] = (1 - alpha_s) * own**gamma
    raw = 1 - weight[:, m] / weight.sum(-1)
    reveals = torch.full_like(raw, alpha_s) if stabilise else raw
    if not stabilise and gamma > 0:
        assert abs(raw.sum() - 2 * alpha_s) > 0.05
    seen: list[int] = []
    draw(
        steps=2,
        prompt=prompt.repeat(N, 1),
        guidance=Guidance(ratio, gamma, n_ratio, stabilise, chunk=50_000),
        observe=lambda step: seen.append(step.done),
    )
    assert abs(seen[0] - N * reveals.sum()) < 5.5 * (N * (reveals * (1 - reveals)).sum()).sqrt()
    assert seen[1] == 2 * N
