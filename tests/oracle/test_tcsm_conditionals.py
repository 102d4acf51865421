"""The two-sided conditionals of a teacher, by every strategy, against tables; and what distilling them is worth.

Section 3.2 of docs/method.md. Teachers are tables (any dependence), Markov chains and a network.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from gtl_lightning.core.noise import Absorbing, Uniform
from gtl_lightning.errors import UserError
from gtl_lightning.laws.chains import ChainTeacher, MarkovChain, paper_chain
from gtl_lightning.laws.enumerated import all_sequences
from gtl_lightning.networks import BackboneConfig, CausalLM, seeded
from gtl_lightning.papers.tcsm import (
    Conditional,
    Proposed,
    TopK,
    conditional,
    distillation_loss,
    exact,
    first_order,
    given_noise,
)
from tests.oracle.concrete import TableTeacher, distance, marginals, posterior, random_model, two_sided
from tests.oracle.enumeration import random_laws
from tests.oracle.markov_checks import random_chain

V, LENGTH, ALPHA = 3, 4, 0.4
LAWS = random_laws(V, LENGTH, seed=0)
TEACHER = TableTeacher(LAWS, LAWS.q)
EVERYWHERE = torch.ones_like(LAWS.states, dtype=torch.bool)
MASKED = LAWS.partial[(LAWS.partial == V).any(-1)]


def spread(target: Conditional) -> Tensor:
    """Float64[m,v]: probabilities, each where its token stands; the bucket is left out."""
    full = torch.zeros(len(target.ids), target.vocab_size, dtype=target.log_pi.dtype)
    return full.scatter(-1, target.ids, target.log_pi.exp())


def test_exact_is_the_law_of_one_position_given_all_the_others() -> None:
    found = conditional(TEACHER, LAWS.states, EVERYWHERE, exact)
    torch.testing.assert_close(spread(found), two_sided(LAWS, LAWS.q).flatten(0, 1), rtol=1e-10, atol=1e-10)
    assert found.complete and found.log_rest.isneginf().all()


def test_rows_are_those_of_the_marked_positions_in_their_order() -> None:
    some = torch.rand(EVERYWHERE.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    found = conditional(TEACHER, LAWS.states, some, exact)
    torch.testing.assert_close(spread(found), two_sided(LAWS, LAWS.q)[some], rtol=1e-10, atol=1e-10)
    teacher, (x, _) = network(), texts()
    for how in (exact, first_order, TopK(9), Proposed(9)):
        nothing = conditional(teacher, x, torch.zeros_like(x, dtype=torch.bool), how)
        assert nothing.ids.shape == (0, 9) and distillation_loss(torch.zeros(0, 9), nothing).shape == (0,)


@pytest.mark.parametrize("how", [TopK, Proposed])
def test_all_tokens_in_any_batches_are_the_exact_law(how: type[TopK] | type[Proposed]) -> None:
    """K = V equals exact to 1e-10, the bucket is empty, and how many texts are scored at once changes nothing."""
    chain = random_chain(V, 3, floor=0.05)
    expected = spread(conditional(ChainTeacher(chain), LAWS.states, EVERYWHERE, exact))
    for chunk in (1, 7, 10_000):
        found = conditional(ChainTeacher(chain), LAWS.states, EVERYWHERE, how(V, chunk))
        torch.testing.assert_close(spread(found), expected, rtol=1e-10, atol=1e-10)
        assert found.complete and found.log_rest.isneginf().all()


@pytest.mark.parametrize("k", [1, 2])
def test_of_fewer_tokens_the_odds_are_exact_and_the_others_share_a_bucket(k: int) -> None:
    """Each row sums to one with its bucket, holds the true token, and has the exact odds between its tokens.

    The bucket has the share that the left context gives it, which is its exact share in the mean over continuations.
    """
    found = conditional(TEACHER, LAWS.states, EVERYWHERE, TopK(k))
    whole = two_sided(LAWS, LAWS.q).flatten(0, 1)
    torch.testing.assert_close(found.log_pi.exp().sum(-1) + found.log_rest.exp(), torch.ones(len(whole)).double())
    assert (found.ids == LAWS.states[EVERYWHERE][:, None]).any(-1).all()
    kept = whole.gather(-1, found.ids)
    torch.testing.assert_close(found.log_pi.softmax(-1), kept / kept.sum(-1, keepdim=True), rtol=1e-10, atol=1e-10)
    left = TEACHER(LAWS.states).exp().flatten(0, 1)
    share = 1 - left.gather(-1, found.ids).sum(-1)
    torch.testing.assert_close(found.log_rest.exp(), share, rtol=1e-9, atol=1e-9)


def test_first_order_is_exact_on_a_markov_chain_if_the_token_is_input_and_target() -> None:
    """Error below 1e-10; by the input's gradient alone, or the target's, off by more than a nat.

    Measured on a chain of diagonal .8: 4e-15; input alone 2.56 nats, target alone (the causal law) 2.56 nats.
    """
    for chain, v, length in ((random_chain(V, 1, floor=0.05), V, LENGTH), (paper_chain(0.8), 5, 3)):
        teacher, x = ChainTeacher(chain), all_sequences(v, length)
        everywhere = torch.ones_like(x, dtype=torch.bool)
        whole = conditional(teacher, x, everywhere, exact).log_pi
        found = conditional(teacher, x, everywhere, first_order).log_pi
        assert (found - whole).abs().max() < 1e-10
        as_target = teacher(x)[everywhere]
        as_input = torch.log_softmax(found - as_target, -1)
        assert (as_input - whole).abs().max() > 1
        assert (as_target - whole).abs().max() > 1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_proposed_by_an_exact_gradient_the_bucket_is_exact_too(k: int) -> None:
    """On a Markov chain, for any number of tokens; the k are the likeliest of the two-sided law beside the true one."""
    chain = random_chain(5, 2, floor=0.05)
    teacher, x = ChainTeacher(chain), all_sequences(5, 3)
    everywhere = torch.ones_like(x, dtype=torch.bool)
    whole = conditional(teacher, x, everywhere, exact).log_pi.exp()
    found = conditional(teacher, x, everywhere, Proposed(k))
    kept = whole.gather(-1, found.ids)
    torch.testing.assert_close(found.log_pi.exp(), kept, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_rest.exp(), 1 - kept.sum(-1), rtol=1e-9, atol=1e-9)
    others = whole.scatter(-1, x[everywhere][:, None], -1.0).topk(k, -1).values
    assert (kept.sum(-1) >= others[:, : k - 1].sum(-1)).all()


def test_a_bucket_is_compared_with_all_that_the_model_gives_its_tokens() -> None:
    """KL of k + 1 outcomes: 0 for a model that is right about them, however it splits the bucket; never above whole."""
    found = conditional(TEACHER, LAWS.states, EVERYWHERE, TopK(1))
    rest = found.log_rest.exp()[:, None] * torch.tensor([0.3, 0.7], dtype=torch.float64)
    model = torch.zeros(len(rest), V, dtype=torch.float64).scatter(-1, found.ids, found.log_pi.exp())
    others = torch.ones_like(model, dtype=torch.bool).scatter(-1, found.ids, False)
    model[others] = rest.flatten()
    assert distillation_loss(model.log(), found).abs().max() < 1e-12
    log_p = random_model(tuple(model.shape), 4)
    pi = two_sided(LAWS, LAWS.q).flatten(0, 1)
    one = pi.gather(-1, found.ids)
    coarse = Conditional(found.ids, one.log(), (1 - one).squeeze(-1).log(), V)
    whole = distillation_loss(log_p, Conditional.whole(pi.log()))
    torch.testing.assert_close(whole, torch.nn.functional.kl_div(log_p, pi, reduction="none").sum(-1))
    assert (distillation_loss(log_p, coarse) <= whole + 1e-12).all()


def test_a_whole_law_becomes_a_few_tokens_and_a_bucket() -> None:
    """The k likeliest with their own probabilities and the sum of the others, from whole laws and from coarse ones."""
    whole = conditional(TEACHER, LAWS.states, EVERYWHERE, exact)
    pi = spread(whole).sort(-1, descending=True).values
    for found in (whole.top(1), whole.top(2).top(1)):
        assert found.ids.shape[-1] == 1 and not found.complete
        torch.testing.assert_close(found.log_pi.exp(), pi[:, :1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.log_rest.exp(), pi[:, 1:].sum(-1), rtol=1e-12, atol=1e-12)
    assert whole.top(V).complete and whole.top(V).log_rest.isneginf().all()
    torch.testing.assert_close(spread(whole.top(V)), spread(whole), rtol=0, atol=0)
    with pytest.raises(UserError, match="exceeds the 3 tokens"):
        whole.top(4)


def test_under_uniform_noise_the_mean_target_is_the_posterior_marginal() -> None:
    """E over x_0 ~ p(. | z_t) of pi_i(y) proportional to p([y, x^{-i}]) p(z_t^i | y), all z_t and positions, to 1e-10.

    Without the noise's factor it is not.
    """
    z_t, noise = LAWS.states, Uniform(V)
    weight = posterior(LAWS, LAWS.q, z_t, noise, ALPHA)
    marginal = marginals(LAWS, weight)
    bare = conditional(TEACHER, LAWS.states, EVERYWHERE, exact)
    for n in range(0, len(z_t), 7):
        seen = z_t[n].expand_as(LAWS.states)[EVERYWHERE]
        pi = given_noise(bare, noise, seen, torch.full(seen.shape, ALPHA, dtype=torch.float64))
        mean = torch.einsum("s,slv->lv", weight[n], spread(pi).view(-1, LENGTH, V))
        torch.testing.assert_close(mean, marginal[n], rtol=1e-10, atol=1e-10)
        without = torch.einsum("s,slv->lv", weight[n], spread(bare).view(-1, LENGTH, V))
        assert distance(without, marginal[n]).max() > 0.02
    with pytest.raises(UserError, match="every token"):
        given_noise(conditional(TEACHER, LAWS.states, EVERYWHERE, TopK(2)), noise, seen, seen.double())


def test_under_absorbing_noise_the_factor_changes_nothing_at_masks_and_fixes_the_others() -> None:
    bare = conditional(TEACHER, LAWS.states, EVERYWHERE, exact)
    seen = LAWS.states[EVERYWHERE].clone()
    seen[::2] = V
    pi = spread(given_noise(bare, Absorbing(V), seen, torch.full(seen.shape, ALPHA, dtype=torch.float64)))
    torch.testing.assert_close(pi[::2], spread(bare)[::2], rtol=1e-12, atol=1e-12)
    assert torch.equal(pi[1::2], torch.nn.functional.one_hot(seen[1::2], V).double())


def test_the_noisy_concrete_score_is_a_mean_over_clean_texts() -> None:
    """sum_x0 p(x_0 | z) K(x_0^i, y) / K(x_0^i, z^i) = p_t([y, z^{-i}]) / p_t(z), K the noise, to 1e-10."""
    noise, z, v = Uniform(V), LAWS.states, LAWS.vocab
    weight = posterior(LAWS, LAWS.q, z, noise, ALPHA)
    alpha = torch.tensor(ALPHA, dtype=torch.float64)
    tokens = torch.arange(v)
    # kernel[a, b] = P(z^i = b | x^i = a)
    kernel = torch.stack([noise.log_likelihood(tokens, b, alpha) for b in tokens], -1).exp()
    torch.testing.assert_close(kernel.sum(-1), torch.ones(v, dtype=torch.float64))
    table = LAWS.q.view((v,) * LENGTH)
    for _ in range(LENGTH):  # every axis once: each contraction sends its axis to the end
        table = torch.tensordot(table, kernel, dims=([0], [0]))
    noisy = table.flatten()
    for position in range(LENGTH):
        ratio = (
            kernel[LAWS.states[:, position]][None]
            / kernel[LAWS.states[None, :, position], z[:, position, None]][..., None]
        )
        score = torch.einsum("ns,nsy->ny", weight, ratio)
        changed = z[:, None].repeat(1, v, 1)
        changed[:, :, position] = tokens
        torch.testing.assert_close(score, noisy[LAWS.index(changed)] / noisy[:, None], rtol=1e-10, atol=1e-10)


def test_the_causal_law_is_the_wrong_target() -> None:
    """Its mean over x_0 is p(x^i | x^{<i}) of the teacher: what follows, though it is in z_t, is thrown away.

    Measured: total variation to the posterior marginal .18 in the mean over all z_t, .75 at worst; two-sided 0.
    """
    weight = posterior(LAWS, LAWS.q, MASKED, Absorbing(V), ALPHA)
    marginal, masked = marginals(LAWS, weight), MASKED == V
    causal = torch.einsum("ns,slv->nlv", weight, TEACHER(LAWS.states).exp())
    both = torch.einsum("ns,slv->nlv", weight, two_sided(LAWS, LAWS.q))
    assert distance(both, marginal)[masked].max() < 1e-10
    off = distance(causal, marginal)[masked]
    assert 0.1 < off.mean() < 0.4
    assert off.max() > 0.4


def test_on_other_text_than_the_teachers_the_minimiser_is_a_mixture() -> None:
    """Data of p, teacher of q: neither the teacher's posterior marginal nor the data's.

    Measured: total variation .097 in the mean over all z_t to the teacher's, .38 to the data's, which are .40 apart.
    """
    of_teacher = marginals(LAWS, posterior(LAWS, LAWS.q, MASKED, Absorbing(V), ALPHA))
    weight = posterior(LAWS, LAWS.p, MASKED, Absorbing(V), ALPHA)
    of_data, masked = marginals(LAWS, weight), MASKED == V
    pi = Conditional.whole(two_sided(LAWS, LAWS.q).log().flatten(0, 1))

    mixed = torch.einsum("ns,slv->nlv", weight, two_sided(LAWS, LAWS.q))
    logits = mixed.log().requires_grad_()
    for n, log_p in enumerate(torch.log_softmax(logits, -1)):
        terms = distillation_loss(log_p.repeat(len(LAWS.states), 1), pi).view(-1, LENGTH)
        (weight[n, :, None] * terms)[:, masked[n]].sum().backward(retain_graph=True)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-10  # convex in the logits: it is the minimiser
    assert 0.03 < distance(mixed, of_teacher)[masked].mean() < 0.3
    assert 0.1 < distance(mixed, of_data)[masked].mean() < 0.6


@pytest.mark.parametrize(("diagonal", "expected"), [(0.8, 0.498), (0.5, 0.148), (0.3, 0.0174)])
def test_distillation_has_the_gradient_of_cross_entropy_with_less_noise(diagonal: float, expected: float) -> None:
    """Markov chains, V = 5, L = 6, t uniform: the same mean in every logit, and .50, .15, .017 of its variance.

    The gradient in a position's logits is p_theta less the target, so both variances are the targets' given z_t,
    summed over masked positions. A masked share uniform in [0, 1] makes all counts of masks equally likely.
    """
    v, length = 5, 6
    chain = paper_chain(diagonal)
    x = all_sequences(v, length)
    law = chain.log_prob(x).exp()
    everywhere = torch.ones_like(x, dtype=torch.bool)
    pi = conditional(ChainTeacher(chain), x, everywhere, first_order).log_pi.exp().view(-1, length, v)
    token = torch.nn.functional.one_hot(x, v).double()
    place = v ** torch.arange(length)
    noise = {"distillation": 0.0, "cross-entropy": 0.0}
    for pattern in list(product((False, True), repeat=length))[1:]:
        masked = torch.tensor(pattern)
        count = int(masked.sum())
        z_t, where = (x * ~masked * place).sum(-1).unique(return_inverse=True)
        mass = torch.zeros(len(z_t), dtype=torch.float64).index_add_(0, where, law)
        means = {}
        for name, target in (("distillation", pi[:, masked]), ("cross-entropy", token[:, masked])):
            total = torch.zeros(len(z_t), count, v, dtype=torch.float64)
            total.index_add_(0, where, law[:, None, None] * target)
            means[name] = total / mass[:, None, None]
            variance = (law[:, None, None] * (target - means[name][where]) ** 2).sum()
            noise[name] += float(variance) / math.comb(length, count)
        torch.testing.assert_close(means["distillation"], means["cross-entropy"], rtol=1e-10, atol=1e-10)
    assert noise["distillation"] / noise["cross-entropy"] == pytest.approx(expected, rel=0.01)


def network() -> CausalLM:
    config = BackboneConfig(vocab_size=9, mask_index=7, pad_index=8, length=6, width=16, depth=2, heads=2, cond_dim=0)
    with seeded(0):
        made = CausalLM(config)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return made.double().eval()


def texts() -> tuple[Tensor, Tensor]:
    """Long[4,6] with padding on either side, and the positions that are none."""
    x = torch.randint(7, (4, 6), generator=torch.Generator().manual_seed(1))
    x[1, 4:], x[2, :2] = 8, 8
    return x, x != 8


def test_a_network_teaches_as_its_own_scores_say() -> None:
    """`exact` is the softmax of the log-probabilities of the changed texts; mask and padding stay impossible."""
    teacher, (x, tokens) = network(), texts()
    found = conditional(teacher, x, tokens, exact)
    assert found.log_pi[:, 7:].isneginf().all()
    row, position = tokens.nonzero(as_tuple=True)
    for i in range(0, len(row), 3):
        tried = x[row[i]].repeat(7, 1)
        tried[:, position[i]] = torch.arange(7)
        own = torch.log_softmax(teacher.log_prob(tried).sum(-1), -1)
        torch.testing.assert_close(found.log_pi[i, :7], own.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(spread(conditional(teacher, x, tokens, TopK(9))), spread(found), rtol=1e-6, atol=1e-6)


def test_a_network_reads_embeddings_as_it_reads_tokens() -> None:
    teacher, (x, _) = network(), texts()
    embedded = teacher.input_embedding[x]
    torch.testing.assert_close(teacher.log_prob(x, embedded), teacher.log_prob(x), rtol=0, atol=0)
    moved = embedded.detach().clone()
    moved[:, 3] = moved[:, 3].flip(-1)  # of what is read at 3, positions after it hear, it and those before do not
    change = (teacher.log_prob(x, moved) - teacher.log_prob(x)).abs().detach()
    assert change[:, :4].max() == 0
    assert change[0, 4:].min() > 0


def test_a_networks_first_order_is_the_derivative_of_its_scores() -> None:
    """Against differences: a one-hot vector that is a little less x^i and a little more y, as input and as target."""
    teacher, (x, tokens) = network(), texts()
    found = conditional(teacher, x, tokens, first_order).log_pi
    row, position = tokens.nonzero(as_tuple=True)
    step = 1e-2
    for i in range(0, len(row), 5):
        text, at = x[row[i] : row[i] + 1], position[i]
        slopes = []
        for y in range(7):
            values = []
            for sign in (1, -1):
                embedded = teacher.input_embedding[text].detach().clone()
                embedded[0, at] += sign * step * (teacher.input_embedding[y] - teacher.input_embedding[text[0, at]])
                values.append(teacher.log_prob(text, embedded).sum())
            slopes.append((values[0] - values[1]) / (2 * step))
        left = teacher.next_log_probs(text, torch.tensor([0]), at[None])[0, :7]
        expected = torch.log_softmax(torch.stack(slopes) + left, -1).detach()
        torch.testing.assert_close(found[i, :7], expected, rtol=0, atol=2e-3)
    assert found[:, 7:].isneginf().all()
    assert all(weight.grad is None for weight in teacher.parameters())


def test_bad_input_is_told_in_one_line() -> None:
    x = LAWS.states[:2]
    for how in (TopK, Proposed):
        for k, wanted in ((0, "at least 1, got 0"), (-1, "at least 1, got -1"), (1.5, "a whole number, got 1.5")):
            with pytest.raises(UserError, match=f"k must be {wanted}"):
                how(k)
        with pytest.raises(UserError, match="chunk"):
            how(2, 0)
        with pytest.raises(UserError, match="exceeds the teacher's vocabulary of 3"):
            conditional(ChainTeacher(random_chain(V, 0)), x, EVERYWHERE[:2], how(4))
    with pytest.raises(UserError, match="cannot teach"):
        ChainTeacher(MarkovChain(torch.tensor([1.0, 0.0]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])))


def test_a_law_of_which_nothing_is_left_over_has_a_gradient() -> None:
    """All clean tokens are listed and only the specials are not, which the model excludes: a bucket of nothing."""
    raw = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    excluded = torch.tensor([False, False, False, True, True])
    weights = raw.clone().requires_grad_()
    log_p = weights.masked_fill(excluded, -math.inf).log_softmax(-1)
    teacher = raw.flip(0).masked_fill(excluded, -math.inf).log_softmax(-1)
    found = Conditional.whole(teacher).top(3)
    assert not found.complete and found.log_rest.isneginf().all()
    loss = distillation_loss(log_p, found)
    torch.testing.assert_close(loss, distillation_loss(log_p, Conditional.whole(teacher)))
    (gradient,) = torch.autograd.grad(loss.sum(), weights)
    assert gradient.isfinite().all()
