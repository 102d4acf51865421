"""AR2Diff's masks, losses and decoding by exact law: what they are on average, and where their minimum lies."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from gtl_lightning.core.forward import nelbo_terms, uniform_sample
from gtl_lightning.core.noise import Uniform
from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.errors import UserError
from gtl_lightning.papers.ar2diff import (
    annealed_mask,
    annealed_share,
    at,
    begun,
    best,
    causal_mask,
    decode,
    decode_best,
    drawn,
    full_mask,
    likeliest,
    masked_loss,
    prefix_mask,
    random_prefix,
    sink_mask,
    starts,
    sundae_loss,
    targets,
    unrolled,
)
from tests.oracle.enumeration import random_laws, total_variation_bound

LAWS = random_laws(vocab=3, length=3, seed=0)
X, V, L = LAWS.states, LAWS.vocab, LAWS.length
ENTROPY = float(-(LAWS.p * LAWS.p.log()).sum())


def seed(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def test_the_causal_mask_reads_back_and_the_full_one_all() -> None:
    i, j = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    assert torch.equal(causal_mask(4), i >= j)
    assert full_mask(4).all()


@pytest.mark.parametrize("step", [0, 3, 6, 9, 40])
def test_an_annealed_mask_lets_its_share_of_the_upper_triangle_in_and_all_of_the_lower(step: int) -> None:
    n, share = 300, min(1.0, (step + 1) / 10)
    assert annealed_share(step, 10) == share
    mask = annealed_mask(n, step, 10, seed(step))
    above = mask[~causal_mask(n)].double()
    assert mask[causal_mask(n)].all()
    assert abs(above.mean() - share) <= 5 * math.sqrt(share * (1 - share) / len(above))
    assert torch.equal(mask, annealed_mask(n, step, 10, seed(step)))
    assert mask.all() == (step >= 9)
    if step < 9:  # every entry for itself: neighbours in a row or in a column do not go together
        assert not torch.equal(mask, annealed_mask(n, step, 10, seed(step + 1)))
        upper = ~causal_mask(n)
        for pair, both in ((mask[:-1] & mask[1:], upper[1:]), (mask[:, :-1] & mask[:, 1:], upper[:, :-1])):
            assert abs(pair[both].double().mean() - share**2) < 0.01


def test_without_annealing_all_is_read_at_once_and_no_step_is_negative() -> None:
    assert annealed_share(0, 0) == 1.0 and annealed_mask(5, 0, 0, seed(0)).all()
    for step, steps in ((-1, 3), (0, -1)):
        with pytest.raises(UserError, match="negative"):
            annealed_share(step, steps)


def test_a_random_prefix_leaves_a_target_and_is_uniform() -> None:
    length = torch.tensor([1, 4, 7]).repeat(20_000)
    prefix = random_prefix(length, seed(0)).view(-1, 3)
    for column, n in zip(prefix.T, (1, 4, 7), strict=True):
        law = torch.full((n,), 1 / n, dtype=torch.float64)
        found = torch.bincount(column, minlength=n).double() / len(column)
        assert len(found) == n and 0.5 * (found - law).abs().sum() < total_variation_bound(law, len(column))


@pytest.mark.parametrize("attention", [causal_mask(5), full_mask(5), annealed_mask(5, 1, 4, seed(1))])
def test_a_prefix_is_read_by_all_and_reads_itself_alone(attention: Tensor) -> None:
    prefix = torch.tensor([0, 2, 5])
    mask = prefix_mask(attention, prefix)
    assert mask.shape == (3, 5, 5)
    for row, m in zip(mask, prefix.tolist(), strict=True):
        assert row[:, :m].all()
        assert not row[:m, m:].any()
        assert torch.equal(row[m:, m:], attention[m:, m:])


@pytest.mark.parametrize("attention", [causal_mask(5), full_mask(5), annealed_mask(5, 1, 4, seed(1)), ~full_mask(5)])
def test_a_start_reads_itself_alone_wherever_it_stands_and_the_rest_as_before(attention: Tensor) -> None:
    start = torch.tensor([0, 2, 4])
    for given in (attention, attention.expand(3, -1, -1)):
        mask = sink_mask(given, start)
        assert mask.shape == (3, 5, 5) and torch.equal(sink_mask(mask, start), mask)
        for row, s in zip(mask, start.tolist(), strict=True):
            assert row[s].nonzero().flatten().tolist() == [s]
            others = torch.arange(5) != s
            assert torch.equal(row[others], attention[others])
    first = torch.tensor([0])
    assert torch.equal(sink_mask(causal_mask(5), first)[0], causal_mask(5))  # the decoder's start does
    if attention[:, 0].all():  # read by all, it is a prefix of its own
        assert torch.equal(sink_mask(attention, first), prefix_mask(attention, first + 1))


def test_a_start_stands_before_the_first_token_of_every_row() -> None:
    x = torch.tensor([[1, 2, 3], [1, 9, 9], [9, 1, 2], [9, 9, 1], [9, 9, 9]])
    assert begun(x, 7, 9).tolist() == [[7, 1, 2, 3], [7, 1, 9, 9], [9, 7, 1, 2], [9, 9, 7, 1], [9, 9, 9, 9]]
    assert begun(x[:1], 7, -1).tolist() == [[7, 1, 2, 3]]


def test_targets_are_neither_padding_nor_prefix() -> None:
    x = torch.tensor([[1, 2, 3, 9], [1, 2, 9, 9]])
    assert targets(x, 9).tolist() == [[True, True, True, False], [True, True, False, False]]
    assert targets(x, 9, torch.tensor([2, 1])).tolist() == [[False, False, True, False], [False, True, False, False]]
    assert targets(x, -1).all()  # padding that is a token is learned


def exactly(x_0: Tensor, target: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every mask of one row's targets, its probability at t Float[n], and the exact log p(x_0^l | x_t)."""
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * L)
    masks = masks[~(masks & ~target).any(-1)]
    many = masks.repeat(len(t), 1)
    time = t.repeat_interleave(len(masks))[:, None]
    chance = torch.where(many, time, 1 - time).masked_fill(~target, 1.0).prod(-1)
    x_t = x_0.masked_fill(many, LAWS.mask_index)
    true = at(LAWS.denoiser(x_t, time[:, 0]), x_0.expand(len(many), -1))
    return many, chance, true


def integral(values: Tensor, t: Tensor, weights: Tensor) -> float:
    """Of Float[times * masks] over t by quadrature, over the masks as they are."""
    return float((values.view(len(t), -1).sum(-1) * weights).sum())


def test_the_masked_loss_of_the_exact_denoiser_is_the_likelihood_and_by_the_masked_count_it_is_not() -> None:
    """Sequence by sequence; with a prefix that of the targets given it. Divided by the count of masks it is far off."""
    nodes, weights = (torch.tensor(values) for values in np.polynomial.legendre.leggauss(40))
    t, weights = (nodes + 1) / 2, weights / 2
    by_count, per_token = 0.0, 0.0
    for index, x_0 in enumerate(X):
        for prefix in (0, 1):
            target = torch.arange(L) >= prefix
            masked, chance, true = exactly(x_0, target, t)
            time = t.repeat_interleave(len(masked) // len(t))
            terms = nelbo_terms(true, masked, time, LogLinear())
            given = x_0.where(~target, torch.tensor(LAWS.mask_index))[None]
            log_p = LAWS.p[index].log() - (LAWS.compatible(given)[0] @ LAWS.p).log()
            assert integral(terms * chance, t, weights) == pytest.approx(-float(log_p), abs=1e-10)
            if prefix == 0:
                per_token += float(LAWS.p[index]) * integral(terms * chance, t, weights) / L
                divided = terms / masked.sum(-1).clamp(min=1)
                by_count += float(LAWS.p[index]) * integral(divided * chance, t, weights)
    assert per_token == pytest.approx(ENTROPY / L, abs=1e-10)
    assert by_count > 1.3 * ENTROPY / L


def test_the_masked_loss_is_counted_by_what_could_be_masked() -> None:
    masked = torch.tensor([[False, True, True], [False, False, False]])
    target = torch.tensor([[False, True, True], [False, True, False]])
    t = torch.tensor([0.5, 0.25])
    total, count = masked_loss(torch.full((2, 3), -1.0), masked, target, t, LogLinear())
    assert (total.item(), count.item()) == (4.0, 3)


def noise_law(t: Tensor) -> Tensor:
    """Float64[n,n]: P(x_t = row j | x_0 = row i) of the corruption: every token uniform with probability t."""
    same = (X[:, None] == X[None]).double()
    return ((1 - t) * same + t / V).prod(-1)


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_the_corruption_is_uniform_noise_and_the_optimum_its_posterior(t: float) -> None:
    """alpha = 1 - t: samples have the law; core's process starts with it; the exact posterior is stationary."""
    time, n = torch.tensor(t, dtype=torch.float64), 60_000
    law = noise_law(time)
    assert torch.allclose(law.sum(-1), torch.ones(len(X), dtype=torch.float64))
    x_t = uniform_sample(X[5].expand(n, -1), torch.full((n,), t), LogLinear(), V, seed(0))
    found = torch.bincount(LAWS.index(x_t), minlength=len(X)).double() / n
    assert 0.5 * (found - law[5]).abs().sum() < total_variation_bound(law[5], n)
    assert torch.allclose(noise_law(torch.tensor(1.0)), torch.full_like(law, 1 / len(X)))
    start = Uniform(V).start(n, L, seed(1), torch.device("cpu"))
    even = torch.full((len(X),), 1 / len(X), dtype=torch.float64)
    counts = torch.bincount(LAWS.index(start), minlength=len(X)).double() / n
    assert 0.5 * (counts - even).abs().sum() < total_variation_bound(even, n)
    joint = LAWS.p[:, None] * law  # (x_0, x_t)
    assert stationary(marginals(joint), joint)
    assert not stationary(marginals(LAWS.p[:, None] * noise_law(time / 2)), joint)


def marginals(joint: Tensor) -> Tensor:
    """Float64[n,l,V]: p(x_0^l = v | what is read) of a joint law (x_0, what is read)."""
    one_hot = torch.nn.functional.one_hot(X, V).double()
    return torch.einsum("xz,xlv->zlv", joint, one_hot) / joint.sum(0)[:, None, None]


def read_by(table: Tensor) -> "partial[Tensor]":
    return partial(lambda table, x: torch.log_softmax(table, -1)[LAWS.index(x)], table)


def expected(table: Tensor, joint: Tensor, term: int | None = None, again: Tensor | None = None) -> Tensor:
    """The loss of a table of logits Float64[n,l,V], over all (x_0, x_t); `again` unrolls by other logits."""
    x_0, x_t = X.repeat_interleave(len(X), 0), X.repeat(len(X), 1)
    target = torch.ones_like(x_0, dtype=torch.bool)
    if again is None:
        terms = unrolled(read_by(table), at, likeliest, x_0, x_t, target)
    else:
        terms = unrolled(read_by(table), at, lambda seen: likeliest(again[LAWS.index(x_t)]), x_0, x_t, target)
    terms = terms.mean(1) if term is None else terms[:, term]
    return (terms.sum(-1) * joint.flatten()).sum()


def stationary(law: Tensor, joint: Tensor, **options: int) -> bool:
    """Whether the gradient of the loss vanishes at a table: it is convex in the logits, so that this is the minimum."""
    table = law.clamp(min=1e-300).log().requires_grad_()
    (slope,) = torch.autograd.grad(expected(table, joint, **({"term": 0} | options)), table)
    return bool(slope.abs().max() < 1e-12)


def test_each_term_is_least_at_the_posterior_given_what_it_reads() -> None:
    """The second reads what the first made of the noise; both together, the mean of the two laws of what is read."""
    joint = LAWS.p[:, None] * noise_law(torch.tensor(0.6, dtype=torch.float64))
    first = marginals(joint)
    made = torch.zeros_like(joint).index_add_(1, LAWS.index(likeliest(first)), joint)
    read = made.sum(0) > 0
    second = torch.where(read[:, None, None], marginals(made.clamp(min=1e-300)), first)
    both = marginals(joint + made)
    logits = first.log()
    for law, term, least in ((second, 1, True), (first, 1, False), (both, None, True), (first, None, False)):
        table = law.log().clamp(min=-700).requires_grad_()
        (slope,) = torch.autograd.grad(expected(table, joint, term, again=logits), table)
        assert (slope.abs().max() < 1e-12) == least


def test_no_gradient_passes_through_what_is_read_again() -> None:
    """The slope is that of two cross-entropies at tokens that are what they are."""
    generator, target = seed(3), torch.tensor([[True, False, True]] * len(X))
    table = torch.randn(len(X), L, V, generator=generator, dtype=torch.float64).requires_grad_()
    x_t = uniform_sample(X, torch.full((len(X),), 0.5), LogLinear(), V, generator, ~target)
    assert torch.equal(x_t[:, 1], X[:, 1])
    for again in (likeliest, lambda log_p: drawn(log_p, seed(8))):
        terms = unrolled(read_by(table), at, again, X, x_t, target)
        x_1 = again(read_by(table)(x_t)).where(target, X)
        assert (x_1 != x_t).any()
        by_hand = [-at(read_by(table)(x), X).masked_fill(~target, 0.0) for x in (x_t, x_1)]
        assert torch.equal(terms, torch.stack(by_hand, 1))
        assert not terms[:, :, 1].any()
        total, count = sundae_loss(terms, target)
        assert count == 2 * len(X) and torch.isclose(total, sum(by_hand).sum() / 2)
        slopes = [torch.autograd.grad(value, table)[0] for value in (total, sum(by_hand).sum() / 2)]
        assert torch.allclose(*slopes)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_by_their_law_and_its_temperature(temperature: float) -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
    law = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    x = drawn(p.log().expand(50_000, -1), seed(0), temperature)
    found = torch.bincount(x, minlength=4).double() / len(x)
    assert found[1] == 0 and 0.5 * (found - law).abs().sum() < total_variation_bound(law, len(x))
    assert (drawn(p.log().expand(9, -1), seed(0), 0.0) == 0).all()


def test_decoding_redraws_the_targets_and_scores_the_last_input_under_the_last_output() -> None:
    seen = []
    table = torch.randn(len(X), L, V, generator=seed(1), dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return read_by(table)(x)

    target = torch.tensor([[True, True, False]]).expand(len(X), -1)
    y, score = decode(model, X, target, steps=4, temperature=0.7, generator=seed(2))
    assert len(seen) == 4 and torch.equal(seen[0], X)
    assert torch.equal(y[:, 2], X[:, 2]) and (y[:, :2] != X[:, :2]).any()
    assert torch.allclose(score, -at(read_by(table)(seen[3]), seen[3])[:, :2].sum(-1))
    again, _ = decode(model, X, target, steps=4, temperature=0.7, generator=seed(2))
    assert torch.equal(y, again)
    for wrong in ({"steps": 0}, {"temperature": -1.0}):
        with pytest.raises(UserError, match="at least 1 step"):
            decode(model, X, target, **wrong)  # type: ignore[arg-type]


def test_reranking_returns_the_arg_min_of_each_row() -> None:
    x = torch.arange(24).view(3, 4, 2)
    score = torch.rand(3, 4, generator=seed(0))
    expected = [x[min(range(3), key=lambda n: score[n, row].item()), row].tolist() for row in range(4)]
    assert best(x, score).tolist() == expected


def test_a_row_has_one_start_and_a_sample_that_came_to_no_number_is_not_the_best() -> None:
    assert starts(torch.tensor([[9, 5, 9, 6], [5, 9, 9, 6], [9, 9, 9, 9]]), 9).int().tolist() == [
        [0, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    x = torch.arange(3)[:, None, None]
    assert best(x, torch.tensor([[torch.nan], [2.0], [3.0]])).item() == 1


def test_the_best_of_n_is_the_best_of_what_is_drawn() -> None:
    table = torch.randn(len(X), L, V, generator=seed(1), dtype=torch.float64)
    target = torch.tensor([[False, True, True]]).expand(5, -1)
    noise = lambda shape: torch.randint(V, shape, generator=seed(4))  # noqa: E731
    options = {"steps": 3, "temperature": 0.9}
    found = decode_best(read_by(table), X[:5], target, noise, samples=6, generator=seed(2), **options)
    start = torch.where(target.repeat(6, 1), noise((30, L)), X[:5].repeat(6, 1))
    y, score = decode(read_by(table), start, target.repeat(6, 1), generator=seed(2), **options)
    y, score = y.view(6, 5, L), score.view(6, 5)
    assert len(score.unique()) > 5
    for row in range(5):
        assert torch.equal(found[row], y[score[:, row].argmin(), row])
    with pytest.raises(UserError, match="samples = 0"):
        decode_best(read_by(table), X[:5], target, noise, samples=0)
