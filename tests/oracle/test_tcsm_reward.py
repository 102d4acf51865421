"""Post-training and guidance by a reward, summed exactly: what leads to p_R, what does not, and what is refused.

Section 3.4 of docs/method.md. Rewards are tables: independent normal numbers, and one that only whole texts earn.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gtl_lightning import Guidance, SequenceRatio, sample
from gtl_lightning.core.guidance import guided_log_probs
from gtl_lightning.core.noise import Absorbing
from gtl_lightning.errors import UserError
from gtl_lightning.laws.enumerated import EnumeratedDistribution, model_law
from gtl_lightning.laws.exact import ExactRatio
from gtl_lightning.papers.gtl import gkl_loss, token_gkl_loss
from gtl_lightning.papers.tcsm import Reward, effective_sample_size, rao_blackwell, reward_weights
from tests.oracle.concrete import distance, marginals, neighbours, posterior, two_sided
from tests.oracle.enumeration import random_laws, total_variation, total_variation_bound
from tests.oracle.test_losses import every_mask, minimise

V, LENGTH, BETA = 3, 4, 0.5
LAWS = random_laws(V, LENGTH, seed=0)
PRE, MASK = LAWS.p, V
MASKED_TEXTS = LAWS.partial[(LAWS.partial == V).any(-1)]
MASKED = MASKED_TEXTS == V
NORMAL = torch.randn(V**LENGTH, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
TWOS = (LAWS.states == 2).sum(-1)
TOGETHER = torch.where(TWOS == LENGTH, 2.5, torch.where(TWOS > 0, -1.5, 0.0)).double()
"""A text of twos is good, single ones are bad."""
rewards = pytest.mark.parametrize("table", [NORMAL, TOGETHER], ids=["normal", "together"])


def reward(table: Tensor) -> Reward:
    return Reward(lambda x_0: table[LAWS.index(x_0)], BETA)


def tilted(table: Tensor) -> Tensor:
    """Float64[v^l]: p_R proportional to p_pre exp(R / beta)."""
    law = PRE * (table / BETA).exp()
    return law / law.sum()


def given(law: Tensor) -> Tensor:
    """Float64[n,v^l]: the law of x_0 given each z_t."""
    return posterior(LAWS, law, MASKED_TEXTS, Absorbing(V), 0.5)


def normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def off(found: Tensor, table: Tensor) -> Tensor:
    """Total variation of Float64[n,l,v] to the marginals of p_R(. | z_t) where masked; the last row is all masked."""
    return distance(found, marginals(LAWS, given(tilted(table)))).where(MASKED, 0.0)


def changes(table: Tensor) -> Tensor:
    """Float64[v^l,l,v]: R([y, x^{-i}]) / beta, as `Reward` says it."""
    row, position = torch.ones_like(LAWS.states).nonzero(as_tuple=True)
    ids = torch.arange(V).expand(len(row), -1)
    return reward(table).of_changes(LAWS.states, row, position, ids, chunk=100).view(-1, LENGTH, V)


@rewards
def test_the_reward_of_every_change_is_the_reward_of_the_changed_text(table: Tensor) -> None:
    torch.testing.assert_close(changes(table), table[neighbours(LAWS)] / BETA)


@rewards
def test_weighted_joint_samples_train_to_the_posterior_of_p_r(table: Tensor) -> None:
    """(b): the weighted cross-entropy of x_0 from the joint posterior is least at p_R's marginals, for any Z."""
    weight = given(PRE)
    for log_z in (0.0, 3.0, None):
        scaled = reward_weights(reward(table).log_ratio(LAWS.states), log_z)
        logits = marginals(LAWS, given(tilted(table))).clamp(min=1e-300).log().requires_grad_()
        log_p = torch.log_softmax(logits, -1)
        one_hot = torch.nn.functional.one_hot(LAWS.states, V).double()
        cross_entropy = -torch.einsum("nlv,slv->nsl", log_p, one_hot)
        (weight * scaled)[..., None].mul(cross_entropy).sum(1)[MASKED].sum().backward()
        assert logits.grad is not None
        assert logits.grad[MASKED].abs().max() < 1e-10
    # The weights of all texts with one mean: p_R over p_pre.
    exact = reward_weights(reward(table).log_ratio(LAWS.states), (PRE * (table / BETA).exp()).sum().log())
    torch.testing.assert_close(exact, tilted(table) / PRE, rtol=1e-10, atol=1e-10)


@rewards
def test_numerators_summed_before_normalising_are_the_posterior_of_p_r(table: Tensor) -> None:
    """(c), all x_0 with their weights, to 1e-10; and (a), x_0 from p_R, sample by sample."""
    pi = two_sided(LAWS, PRE)
    weighted = given(PRE).T.log()[..., None, None] + pi.log()[:, None]
    found = rao_blackwell(weighted, changes(table)[:, None].expand_as(weighted)).exp()
    assert off(found, table).max() < 1e-10
    each = normalised(pi * changes(table).exp())
    assert off(torch.einsum("ns,slv->nlv", given(tilted(table)), each), table).max() < 1e-10


def test_rao_blackwell_has_less_noise_than_weights() -> None:
    """500 samples of the joint law where all is masked, many times: the mean error of (c) below that of (b)."""
    generator = torch.Generator().manual_seed(0)
    pi, one_hot = two_sided(LAWS, PRE), torch.nn.functional.one_hot(LAWS.states, V).double()
    errors = {"b": 0.0, "c": 0.0}
    exact = marginals(LAWS, tilted(NORMAL)[None])[0]
    for _ in range(50):
        drawn = torch.multinomial(PRE, 500, replacement=True, generator=generator)
        log_r = NORMAL[drawn] / BETA
        by_weight = torch.einsum("s,slv->lv", normalised(reward_weights(log_r)), one_hot[drawn])
        by_numerator = rao_blackwell(pi[drawn].log(), changes(NORMAL)[drawn]).exp()
        errors["b"] += float(distance(by_weight, exact).mean())
        errors["c"] += float(distance(by_numerator, exact).mean())
    assert errors["c"] < 0.8 * errors["b"]


def test_tilting_position_by_position_is_wrong() -> None:
    """By R([y, x^{-i}]), x^{-i} ~ p_pre, the position's law p_pre(y | z_t) or the two-sided one: neither gives p_R.

    Measured, all masked, a reward that only whole texts earn: total variation .47 and .47, where not tilting at all is
    .39; x_0 from one factorised step of the denoiser, by weight, .13. Normal rewards, all z_t: .10, .095, .33 and .052.
    """
    pi, weight, tilt = two_sided(LAWS, PRE), given(PRE), {}
    none = marginals(LAWS, weight)
    for name, table in (("normal", NORMAL), ("together", TOGETHER)):
        each = changes(table).exp()
        factors = torch.ones_like(weight)
        for i in range(LENGTH):
            factors = factors * torch.where(MASKED[:, i, None], none[:, i, LAWS.states[:, i]], 1.0)
        one_step = normalised(factors * LAWS.compatible(MASKED_TEXTS) * (table / BETA).exp())
        tilt[name] = {
            "none": off(none, table),
            "position": off(torch.einsum("ns,nslv->nlv", weight, normalised(none[:, None] * each)), table),
            "two-sided": off(torch.einsum("ns,slv->nlv", weight, normalised(pi * each)), table),
            "one step": off(marginals(LAWS, one_step), table),
        }
    for wrong in ("position", "two-sided"):
        assert 0.4 < tilt["together"][wrong][-1].mean() < 0.6
        assert tilt["together"][wrong][-1].mean() > 1.1 * tilt["together"]["none"][-1].mean()
        assert 0.05 < tilt["normal"][wrong][MASKED].mean() < 0.3
    assert 0.3 < tilt["together"]["none"][-1].mean() < 0.5
    assert tilt["together"]["one step"][-1].mean() > 0.05
    assert tilt["normal"]["one step"][MASKED].mean() > 0.02


def test_a_softmax_over_a_few_samples_is_biased_and_less_so_over_more() -> None:
    """Weights that are normalised among K samples of the joint law: the mean over all K-tuples, where all is masked.

    Measured: total variation to p_R .58 for K = 1, which is no tilting, .42 for 2, .33 for 3.
    """
    weights, found = (NORMAL / BETA).exp(), []
    for k in (1, 2, 3):
        axes = [[-1 if i == axis else 1 for i in range(k)] for axis in range(k)]
        total = sum(weights.view(axis) for axis in axes)
        chance = math.prod(PRE.view(axis) for axis in axes)
        share = (weights.view(axes[0]) / total * chance).reshape(len(PRE), -1).sum(-1)
        found.append(float(distance(k * share, tilted(NORMAL))))
    assert found[0] > found[1] + 0.1 > found[2] + 0.15 > 0.3


@rewards
def test_guided_at_one_by_the_known_ratio_the_frozen_denoiser_samples_p_r(table: Tensor) -> None:
    """As a law, to 1e-9, and drawn: total variation at sampling error. On clean text the exact ratio is R / beta."""
    cube = (V,) * LENGTH
    pre, wanted = EnumeratedDistribution(PRE.view(cube)), EnumeratedDistribution(tilted(table).view(cube))
    ratio = ExactRatio(pre, wanted)
    constant = ratio.sequence(LAWS.states) - reward(table).log_ratio(LAWS.states)
    assert (constant - constant[0]).abs().max() < 1e-10

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        return guided_log_probs(pre(x_t, t), ratio.token(x_t, t))

    assert model_law(guided, V, LENGTH).total_variation(wanted) < 1e-9
    n = 20_000
    for guidance, near in ((Guidance(SequenceRatio(ratio.sequence), 1.0), True), (None, False)):
        generator = torch.Generator().manual_seed(0)
        x = sample(pre, mask_index=V, batch=n, length=LENGTH, guidance=guidance, generator=generator)
        assert (total_variation(x, wanted.table, LAWS) < total_variation_bound(wanted.table, n)) == near


def test_strength_in_the_place_of_temperature_is_another_law() -> None:
    """gamma = 1 / beta with log r = log E exp R, and gamma = 1 with log E exp(R / beta), agree on clean text only.

    Measured at beta = .5: the first makes a law at total variation .12 from p_R, the second p_R.
    """
    cube = (V,) * LENGTH
    pre, wanted = EnumeratedDistribution(PRE.view(cube)), EnumeratedDistribution(tilted(NORMAL).view(cube))
    once = EnumeratedDistribution(normalised(PRE * NORMAL.exp()).view(cube))
    ratio = ExactRatio(pre, once)
    made = model_law(lambda x, t: guided_log_probs(pre(x, t), ratio.token(x, t), 1 / BETA), V, LENGTH)
    assert 0.01 < made.total_variation(wanted) < 0.2


def test_completions_stand_in_for_the_ratio_of_a_masked_text() -> None:
    """`Reward.ratio`: by the mean of exp(R / beta) over draws of the joint law, the sampler comes near to p_R.

    By what a masked text itself earns nothing could be said: on clean text it is R / beta to the bit.
    """
    generator = torch.Generator().manual_seed(0)
    law = EnumeratedDistribution(PRE.view((V,) * LENGTH))

    def complete(x_t: Tensor) -> Tensor:
        drawn = torch.multinomial(LAWS.compatible(x_t) * PRE, 1, generator=generator)
        return LAWS.states[drawn.squeeze(-1)]

    ratio = reward(NORMAL).ratio(complete, draws=16)
    now = torch.zeros(len(LAWS.states))
    torch.testing.assert_close(ratio.of(LAWS.states, now), NORMAL / BETA)
    assert torch.equal(reward(NORMAL).ratio().of(LAWS.states, now), NORMAL / BETA)
    wanted, n = tilted(NORMAL), 1_000
    x = sample(law, mask_index=V, batch=n, length=LENGTH, guidance=Guidance(ratio, chunk=100_000), generator=generator)
    assert total_variation(x, wanted, LAWS) < total_variation_bound(wanted, n)
    assert distance(PRE, wanted) > 0.5


def test_the_losses_of_guided_transfer_find_its_ratio() -> None:
    """7b and 9 with log r* = R / beta, on samples of p_pre alone: log E[exp(R / beta) | x_U], and the token's."""
    laws = random_laws(V, 3, seed=1)
    table = NORMAL[: V**3]
    index, x_t, masked = every_mask(laws)
    states, where = x_t.unique(dim=0, return_inverse=True)
    log_r_star = Reward(lambda x_0: table[laws.index(x_0)], BETA).log_ratio(laws.states[index])
    weight, true, hidden = laws.p[index], laws.states[index], states == V
    compatible = laws.compatible(states) * laws.p
    exact = (compatible @ (table / BETA).exp()).log() - compatible.sum(-1).log()
    found = minimise((len(states),), lambda f: (weight * gkl_loss(f[where], log_r_star)).sum())
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)

    def tokens(g: Tensor) -> Tensor:
        at = g[where].gather(-1, true[..., None]).squeeze(-1)
        return (weight * token_gkl_loss(at, masked, log_r_star)).sum()

    found = minimise((len(states), 3, V), tokens)
    place = (V + 1) ** torch.arange(2, -1, -1)
    look = torch.zeros((V + 1) ** 3, dtype=torch.float64)
    look[(states * place).sum(-1)] = exact
    look[(laws.states * place).sum(-1)] = table / BETA
    for row, position in hidden.nonzero():
        tried = states[row].repeat(V, 1)
        tried[:, position] = torch.arange(V)
        torch.testing.assert_close(found[row, position], look[(tried * place).sum(-1)], rtol=0, atol=2e-3)


def test_with_a_domains_log_ratio_for_reward_the_target_is_p_r() -> None:
    """R = log q / p and beta = 1: the transfer problem."""
    transfer = Reward(lambda x_0: (LAWS.q / LAWS.p).log()[LAWS.index(x_0)])
    weights = reward_weights(transfer.log_ratio(LAWS.states), 0.0)
    torch.testing.assert_close(LAWS.p * weights, LAWS.q, rtol=1e-10, atol=1e-10)


def test_the_effective_sample_size() -> None:
    """n for equal weights, 1 for one that outweighs all, k for k equal ones among nothing, 0 for nothing."""
    assert effective_sample_size(torch.full((7,), -3.0)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([900.0, 0.0, -900.0])) == pytest.approx(1)
    nothing = torch.full((2, 5), -math.inf)
    nothing[0, :3] = 400.0
    assert effective_sample_size(nothing).tolist() == pytest.approx([3, 0])
    log_w = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = log_w.exp()
    assert float(effective_sample_size(log_w)) == pytest.approx(float(w.sum() ** 2 / (w**2).sum()))


def test_texts_are_decoded_and_lists_are_numbers() -> None:
    x_0 = torch.tensor([[0, 1], [2, 2]])
    found = Reward(lambda texts: [len(text) for text in texts], 2.0, lambda ids: ["a" * int(row.sum()) for row in ids])
    assert found(x_0).tolist() == [1.0, 4.0]
    assert found.log_ratio(x_0).tolist() == [0.5, 2.0]
    forbids = Reward(lambda x: torch.tensor([0.0, -math.inf]))
    assert reward_weights(forbids.log_ratio(x_0)).tolist() == [2.0, 0.0]


def fails(x_0: Tensor) -> Tensor:
    raise RuntimeError("no\nmodel")


BAD = {
    "shape": (lambda x: torch.zeros(len(x), 1), r"\[2, 1\] for 2 texts"),
    "count": (lambda x: [1.0], r"\[1\] for 2 texts"),
    "number": (lambda x: 1.0, r"\[\] for 2 texts"),
    "nan": (lambda x: [0.0, math.nan], "gave nan for text 1 of 2"),
    "infinity": (lambda x: [math.inf, 0.0], "gave inf for text 0 of 2"),
    "words": (lambda x: ["good", "bad"], "failed on 2 texts"),
    "nothing": (lambda x: None, "failed on 2 texts"),
    "raises": (fails, r"the reward \(fails\) failed on 2 texts: RuntimeError: no model"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_reward_is_told_in_one_line(bad: str) -> None:
    f, message = BAD[bad]
    with pytest.raises(UserError, match=message) as told:
        Reward(f)(torch.zeros(2, 3, dtype=torch.long))
    assert "\n" not in str(told.value)


def test_bad_settings_are_told_in_one_line() -> None:
    for beta in (0, -1.0, math.nan, math.inf, "much", None):
        with pytest.raises(UserError, match="beta must be a positive number"):
            Reward(len, beta)
    with pytest.raises(UserError, match="reward is a int"):
        Reward(3)
    with pytest.raises(UserError, match="draws"):
        Reward(len).ratio(lambda x: x, 0)
    with pytest.raises(UserError, match="forbids every sample"):
        reward_weights(torch.full((3,), -math.inf))


def test_a_reward_may_write_where_it_reads_and_reuse_its_memory() -> None:
    given_x, memory = torch.tensor([[1, 3], [3, 3]]), torch.zeros(2)

    def rude(x: Tensor) -> Tensor:
        memory.copy_(x.sum(-1))
        x.zero_()
        return memory

    one = Reward(rude)
    first = one(given_x)
    assert given_x.tolist() == [[1, 3], [3, 3]] and first.tolist() == [4.0, 6.0]
    one(torch.zeros(2, 2).long())
    assert first.tolist() == [4.0, 6.0]
