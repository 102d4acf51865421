"""The ratio of counts (docs/method.md 2.2): limits, and one token as all tokens."""

import pytest
import torch
from torch import Tensor

from gtl_lightning.core.counts import Pairs, pair_log_ratio, source_law, token_log_ratio
from gtl_lightning.core.protocols import Look
from gtl_lightning.networks import CountTokenRatio

V, MASK, PAD = 8, 6, 7


def law(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, V, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def pairs(counts: Tensor) -> Pairs:
    """Of Float[v,v] counts, [beside, token]."""
    keys = counts.flatten().nonzero().squeeze(-1)
    return Pairs(keys, counts.flatten()[keys])


def test_the_counted_ratio_of_many_texts_is_the_ratio() -> None:
    p, q = law(0), law(1)
    found = token_log_ratio(1e9 * q, 1e9 * p, prior=1000.0)
    torch.testing.assert_close(found, (q / p).log(), atol=1e-4, rtol=0)
    # Of pairs: p(u) p(v|u) and q(u) q(v|u), each with its tokens' law as its marginal.
    p_of, q_of = law(2, V), law(3, V)
    table = pair_log_ratio(
        pairs(1e9 * q[:, None] * q_of), pairs(1e12 * p[:, None] * p_of), source_law(1e12 * p), found, prior=1e-6
    ).view(V, V)
    wanted = (q_of / p_of).log() - found
    torch.testing.assert_close(
        table - table.mean(1, keepdim=True), wanted - wanted.mean(1, keepdim=True), atol=1e-3, rtol=0
    )


def test_no_texts_no_ratio() -> None:
    p = law(0)
    torch.testing.assert_close(token_log_ratio(torch.zeros(V), 1e6 * p, prior=5000.0), torch.zeros(V))
    nothing = pairs(torch.zeros(V, V))
    assert len(pair_log_ratio(nothing, pairs(1e3 * law(2, V)), p, torch.zeros(V), prior=1.0)) == 0
    # A strong prior is the source, whatever was counted.
    assert token_log_ratio(1e3 * law(1), 1e6 * p, prior=1e9).abs().max() < 1e-3


def test_pairs_of_independent_tokens_say_nothing() -> None:
    p, q = law(0), law(1)
    log_r = (q / p).log()
    source = pairs(1e9 * p[:, None] * p[None])
    table = pair_log_ratio(pairs(1e6 * q[:, None] * q[None]), source, p, log_r, prior=1.0).view(V, V)
    torch.testing.assert_close(table, table.mean(1, keepdim=True).expand(V, V), atol=1e-3, rtol=0)


@pytest.mark.parametrize("prior", [0.1, 1.0, 10.0])
def test_the_posterior_of_a_token_beside_another_is_the_one_by_hand(prior: float) -> None:
    p, log_r = law(0), 0.3 * torch.randn(V, generator=torch.Generator().manual_seed(4))
    log_r = log_r - (p * log_r.exp()).sum().log()
    source, target = 50 * law(2, V), torch.randint(1, 9, (V, V), generator=torch.Generator().manual_seed(5)).float()
    table = pair_log_ratio(pairs(target), pairs(source), p, log_r, prior).view(V, V)
    beside = (source + 50 * p) / (source.sum(1, keepdim=True) + 50)
    base = (beside * log_r.exp()) / (beside * log_r.exp()).sum(1, keepdim=True)
    posterior = (target + prior * base) / (target.sum(1, keepdim=True) + prior)
    wanted = (posterior / base).log()
    torch.testing.assert_close(table - table[:, :1], wanted - wanted[:, :1], atol=1e-5, rtol=1e-5)


def filled(reach: int = 2, per_table: int = 9, seed: int = 0) -> CountTokenRatio:
    generator = torch.Generator().manual_seed(seed)
    tables = {}
    for place in range(-reach, reach + 1):
        if place:
            keys = torch.randperm(36, generator=generator)[:per_table].sort().values
            keys = keys // 6 * V + keys % 6
            tables[place] = keys, torch.rand(per_table, generator=generator)
    ratio = CountTokenRatio(V, MASK, PAD, reach, 2 * reach * per_table)
    ratio.fill(torch.randn(V, generator=generator), tables)
    with torch.no_grad():
        ratio.strengths.copy_(torch.rand(1 + 2 * reach, generator=generator))
    return ratio


def test_one_token_and_all_tokens_have_the_same_log_ratio() -> None:
    ratio = filled()
    x_t = torch.randint(0, V, (5, 7), generator=torch.Generator().manual_seed(1))
    h = ratio.encode(x_t, torch.rand(5))
    whole = ratio.decode(h)
    for v in range(V):
        torch.testing.assert_close(ratio.decode_at(h, torch.full((5, 7), v)), whole[..., v])
    some = torch.tensor([[0, 3, 5]]).expand(35, 3)
    torch.testing.assert_close(ratio.decode_at(h.flatten(0, 1)[:, None], some), whole.flatten(0, 1).gather(-1, some))


def test_what_is_read_are_the_visible_neighbours_by_their_places() -> None:
    ratio = filled(reach=2)
    x_t = torch.tensor([[1, MASK, 3, MASK, 2, PAD]])
    h = ratio.encode(x_t, torch.ones(1))
    # Of the mask between 3 and 2: two places before it a mask, two after it padding.
    assert h[0, 3].tolist() == [-1.0, 3.0, 2.0, -1.0]
    expected = ratio.strengths[0] * ratio.tokens
    for slot, neighbour in ((1, 3), (2, 2)):
        for key, value in zip(ratio.keys.tolist(), ratio.values.tolist(), strict=True):
            if key // V == slot * V + neighbour:
                expected = expected.clone()
                expected[key % V] += ratio.strengths[1 + slot] * value
    torch.testing.assert_close(ratio.decode(h)[0, 3], expected)
    assert torch.equal(ratio.encode(x_t, torch.ones(1), Look(places=torch.tensor([[3]])))[0, 0], h[0, 3])


def test_alone_among_masks_every_position_has_the_ratio_of_tokens() -> None:
    ratio = filled()
    h = ratio.encode(torch.full((1, 4), MASK), torch.ones(1))
    torch.testing.assert_close(ratio.decode(h), (ratio.strengths[0] * ratio.tokens).expand(1, 4, V))


def test_of_no_pairs_the_ratio_of_tokens_is_left() -> None:
    ratio = CountTokenRatio(V, MASK, PAD, 1, 0)
    empty = torch.empty(0, dtype=torch.long), torch.empty(0)
    ratio.fill(torch.arange(V).float(), {-1: empty, 1: empty})
    x_t = torch.tensor([[0, MASK, 2]])
    torch.testing.assert_close(ratio.decode(ratio.encode(x_t, torch.ones(1)))[0, 1], torch.arange(V).float())


def test_the_strengths_have_the_gradient_of_the_tables() -> None:
    ratio = filled().double()
    x_t = torch.randint(0, V, (2, 5), generator=torch.Generator().manual_seed(2))
    h = ratio.encode(x_t, torch.ones(2))
    weight = torch.randn(2, 5, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(strengths: Tensor) -> Tensor:
        return (torch.func.functional_call(ratio, {"strengths": strengths}, (x_t, torch.ones(2))) * weight).sum()

    assert torch.autograd.gradcheck(value, (ratio.strengths.detach().requires_grad_(),))
    assert h.dtype == torch.float32
