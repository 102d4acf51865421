"""TCSM's objective on enumerable laws: its identities in double precision, its minimiser, and what the shortcuts miss.

Section 3.1 of docs/method.md. Every z_t of V = 3 and L = 4 is visited, p(x_0 | z_t) is summed over exactly.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gtl_lightning.core.forward import nelbo_terms
from gtl_lightning.core.noise import Absorbing, Noise, Uniform
from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.errors import UserError
from gtl_lightning.laws.enumerated import EnumeratedDistribution, exact_nelbo
from gtl_lightning.networks import BackboneConfig, MaskedDenoiser, log_prob_of, log_probs, seeded
from gtl_lightning.papers.tcsm import (
    Conditional,
    distillation_loss,
    generalised_kl,
    mean_log_prob,
    score_loss,
    score_terms,
    weighted,
)
from tests.oracle.concrete import distance, marginals, neighbours, posterior, random_model, two_sided
from tests.oracle.enumeration import random_laws
from tests.oracle.test_losses import minimise

V, LENGTH, ALPHA = 3, 4, 0.4
LAWS = random_laws(V, LENGTH, seed=0)
TABLE = LAWS.q  # the more peaked of the two
NOISES: dict[str, tuple[Noise, Tensor]] = {
    "absorbing": (Absorbing(V), LAWS.partial[(LAWS.partial == V).any(-1)]),
    "uniform": (Uniform(V), LAWS.states),
}
noises = pytest.mark.parametrize("noise", NOISES)


def setting(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z_t Long[n,l], positions Bool[n,l], p(x_0 | z_t) Float64[n,v^l], and its marginals Float64[n,l,v]."""
    noise, z_t = NOISES[name]
    positions = z_t == V if name == "absorbing" else torch.ones_like(z_t, dtype=torch.bool)
    weight = posterior(LAWS, TABLE, z_t, noise, ALPHA)
    return z_t, positions, weight, marginals(LAWS, weight)


def log_score(weight: Tensor) -> Tensor:
    """Float64[n,v^l,l,v]: log c_p(y, i) = log p([y, x^{-i}] | z_t) / p(x_0 | z_t), of x_0 that are possible."""
    return (weight[:, neighbours(LAWS)] / weight[..., None, None]).log()


def log_model_score(log_p: Tensor) -> Tensor:
    """Float64[n,v^l,l,v]: log c_theta(y, i) of independent positions."""
    own = log_p.gather(-1, LAWS.states.T.expand(len(log_p), -1, -1))  # [n,l,v^l]
    return log_p[:, None] - own.transpose(1, 2)[..., None]


def score_form(weight: Tensor, log_p: Tensor) -> Tensor:
    """Float64[n,l]: eq. 11 as it is defined, by the generalised KL, the mean over x_0 ~ p(. | z_t)."""
    divergence = generalised_kl(log_score(weight), log_model_score(log_p))
    return torch.where(weight[..., None] > 0, weight[..., None] * divergence, 0.0).sum(1)


def three_terms(weight: Tensor, log_p: Tensor) -> Tensor:
    """Float64[n,l]: the mean over x_0 of what training computes from one x_0."""
    true = LAWS.states.expand(len(log_p), -1, -1)
    rows = log_p[:, None].expand(-1, len(LAWS.states), -1, -1)
    return torch.einsum("ns,nsl->nl", weight, score_loss(rows, true, floor=1e-30))


@noises
def test_the_score_form_is_the_distribution_form_of_kl_and_itakura_saito(noise: str) -> None:
    """(11) with the generalised KL = V KL + IS in form (12), at every z_t, position and model, to 1e-10."""
    _, positions, weight, _ = setting(noise)
    pi = two_sided_given(noise)
    log_p = random_model((len(weight), LENGTH, V), 1)
    ratio = pi / log_p.exp()[:, None]
    kl = torch.special.xlogy(pi, ratio).sum(-1)
    itakura_saito = torch.where(pi > 0, ratio - ratio.log() - 1, 0.0).sum(-1)
    expected = torch.einsum("ns,nsl->nl", weight, V * kl + itakura_saito)
    torch.testing.assert_close(score_form(weight, log_p)[positions], expected[positions], rtol=1e-10, atol=1e-10)


def two_sided_given(name: str) -> Tensor:
    """Float64[n,v^l,l,v]: pi_i(y) = p(x^i = y | x^{-i}, z_t) of every sequence."""
    noise, z_t = NOISES[name]
    tokens = torch.arange(V).expand(*z_t.shape, V)
    factor = noise.log_likelihood(tokens, z_t, torch.full(z_t.shape, ALPHA, dtype=torch.float64)).exp()
    joint = two_sided(LAWS, TABLE) * factor[:, None]
    return joint / joint.sum(-1, keepdim=True)


@noises
def test_three_terms_are_the_score_form_over_v(noise: str) -> None:
    """Up to a number that no model changes: the difference of two models is the same to 1e-10."""
    _, positions, weight, _ = setting(noise)
    first, second = random_model((len(weight), LENGTH, V), 1), random_model((len(weight), LENGTH, V), 2)
    whole = (score_form(weight, first) - score_form(weight, second)) / V
    terms = three_terms(weight, first) - three_terms(weight, second)
    torch.testing.assert_close(terms[positions], whole[positions], rtol=1e-10, atol=1e-10)
    assert whole[positions].abs().max() > 1


@noises
def test_the_mean_concrete_score_is_the_ratio_of_marginals(noise: str) -> None:
    """(13): given x_0^i and z_t, over x_0^{-i}, E c(y, i) = p(y | z_t) / p(x_0^i | z_t), to 1e-10."""
    _, positions, weight, marginal = setting(noise)
    one_hot = torch.nn.functional.one_hot(LAWS.states, V).double()
    score = torch.where(weight[..., None, None] > 0, log_score(weight).exp() * weight[..., None, None], 0.0)
    given = torch.einsum("nsly,sla->nlay", score, one_hot) / marginal[..., None]
    expected = marginal[:, :, None] / marginal[..., None]
    torch.testing.assert_close(given[positions], expected[positions], rtol=1e-10, atol=1e-10)


@noises
def test_the_minimiser_is_the_posterior_marginal(noise: str) -> None:
    """At the marginals the gradient of the three terms vanishes, and an optimiser that starts elsewhere ends there."""
    _, positions, weight, marginal = setting(noise)
    logits = marginal.clamp(min=1e-300).log().requires_grad_()
    three_terms(weight, torch.log_softmax(logits, -1))[positions].sum().backward()
    assert logits.grad is not None
    assert logits.grad[positions].abs().max() < 1e-10

    def risk(table: Tensor) -> Tensor:
        return three_terms(weight, torch.log_softmax(table, -1))[positions].mean()

    found = torch.softmax(minimise(tuple(marginal.shape), risk), -1)
    assert distance(found, marginal)[positions].max() < 1e-4


def test_with_the_model_first_the_minimiser_is_biased() -> None:
    """KL(p_theta || pi_i), the order of distillation by samples of the model, has exp E log pi_i for its minimiser.

    Measured: total variation to the posterior marginal .060 in the mean over all z_t, .44 at worst.
    """
    _, positions, weight, marginal = setting("absorbing")
    pi = two_sided(LAWS, TABLE)

    def risk(table: Tensor) -> Tensor:
        log_p = torch.log_softmax(table, -1)
        reverse = (log_p.exp()[:, None] * (log_p[:, None] - pi.log())).sum(-1)
        return torch.einsum("ns,nsl->nl", weight, reverse)[positions].sum()

    found = torch.softmax(minimise(tuple(marginal.shape), risk), -1)
    closed = torch.softmax(torch.einsum("ns,slv->nlv", weight, pi.log()), -1)
    assert distance(found, closed)[positions].max() < 1e-4
    off = distance(closed, marginal)[positions]
    assert 0.03 < off.mean() < 0.2
    assert off.max() > 0.2


def test_with_other_x_0_the_minimiser_is_biased_for_a_factorised_model_only() -> None:
    """(12) over x_0 uniform among those that z_t allows: the mean of pi_i under another law than the posterior.

    Measured: total variation to the posterior marginal .077 in the mean over all z_t, .41 at worst. A model of the
    joint law loses nothing: with (11) over uniform x_0 its minimiser is the law itself, here where all is masked.
    """
    _, positions, weight, marginal = setting("absorbing")
    allowed = (weight > 0).double()
    uniform = allowed / allowed.sum(-1, keepdim=True)
    pi = two_sided(LAWS, TABLE)

    def risk(table: Tensor, over: Tensor) -> Tensor:
        cross_entropy = -(pi * torch.log_softmax(table, -1)[:, None]).sum(-1)
        return torch.einsum("ns,nsl->nl", over, cross_entropy)[positions].sum()

    found = torch.softmax(minimise(tuple(marginal.shape), lambda table: risk(table, uniform)), -1)
    off = distance(found, marginal)[positions]
    assert 0.03 < off.mean() < 0.2
    assert off.max() > 0.2
    right = torch.softmax(minimise(tuple(marginal.shape), lambda table: risk(table, weight)), -1)
    assert distance(right, marginal)[positions].max() < 1e-4
    score = TABLE[neighbours(LAWS)].log() - TABLE.log()[:, None, None]

    def joint(table: Tensor) -> Tensor:
        return generalised_kl(score, table[neighbours(LAWS)] - table[:, None, None]).mean()

    assert distance(torch.softmax(minimise((len(TABLE),), joint), -1), TABLE) < 1e-4


def test_on_data_the_distribution_form_is_mdlm() -> None:
    """Eq. 12 with the token seen in the place of pi_i, weighted, is the NELBO's estimate to the last bit."""
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(V, (64, LENGTH), generator=generator)
    masked = torch.rand(64, LENGTH, generator=generator) < 0.6
    t = torch.rand(64, generator=generator, dtype=torch.float64)
    log_p = random_model((64, LENGTH, V), 3)
    one_hot = torch.nn.functional.one_hot(x_0, V).double().log().flatten(0, 1)
    terms = distillation_loss(log_p.flatten(0, 1), Conditional.whole(one_hot)).view(64, LENGTH)
    mdlm = nelbo_terms(log_p.gather(-1, x_0[..., None]).squeeze(-1), masked, t, LogLinear())
    assert torch.equal(weighted(terms, masked, t, LogLinear()), mdlm)
    assert mdlm.abs().max() > 1


def test_the_minimiser_reaches_the_entropy() -> None:
    """What both forms are minimised by has the least NELBO there is: the entropy of p."""
    law = EnumeratedDistribution(TABLE.view((V,) * LENGTH))
    z_t, _, _, marginal = setting("absorbing")
    place = (V + 1) ** torch.arange(LENGTH - 1, -1, -1)
    table = torch.zeros((V + 1) ** LENGTH, LENGTH, V, dtype=torch.float64)
    table[(z_t * place).sum(-1)] = marginal

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        found = table[(x_t * place).sum(-1)].log()
        return torch.nn.functional.pad(found, (0, 1), value=-math.inf)

    nelbo = exact_nelbo(denoiser, LAWS.states, V)
    assert abs(float((TABLE * nelbo).sum()) - law.entropy(LENGTH)) < 1e-10


def test_the_score_form_needs_no_probability_but_the_true_tokens() -> None:
    """From the logit of x_0, the mean logit of a network and log p_theta(x_0): the value and gradient of whole rows."""
    config = BackboneConfig(vocab_size=11, mask_index=9, pad_index=10, length=6, width=16, depth=1, heads=2, cond_dim=8)
    with seeded(0):
        network = MaskedDenoiser(config)
    torch.nn.init.normal_(network.output.bias)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(40, 16, generator=generator, requires_grad=True)
    true = torch.randint(9, (40,), generator=generator)
    whole = score_loss(log_probs(network, h), true)
    log_p_true = log_prob_of(network, h, true)
    mean = mean_log_prob(log_p_true, network.logits(h, true), network.mean_logit(h))
    parts = score_terms(log_p_true, mean, 9)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss.sum(), h)[0] for loss in (parts, whole)), rtol=1e-4, atol=1e-6
    )
    # Mask and padding are no tokens: their logits change nothing.
    with torch.no_grad():
        network.output.bias[9:] += 5.0
    torch.testing.assert_close(network.mean_logit(h), (network.logits(h)[:, :9]).mean(-1))
    torch.testing.assert_close(score_loss(log_probs(network, h), true), whole)


def test_the_floor_keeps_the_loss_finite_bounded_and_pushing() -> None:
    """A token given up has a finite loss and is pushed up; what is certain has a loss bounded from below.

    Above the floor nothing changes.
    """
    log_p = random_model((50, V), 5)
    true = torch.arange(50) % V
    torch.testing.assert_close(score_loss(log_p, true, 1e-3), score_loss(log_p, true, 1e-30), rtol=0, atol=0)
    for scale in (20.0, 100.0, 1000.0):
        logits = (torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64) * scale).requires_grad_()
        certain = score_loss(torch.log_softmax(logits, -1), torch.tensor([0]))
        assert certain >= math.log(1e-3 / V)
        wrong = score_loss(torch.log_softmax(logits, -1), torch.tensor([1]))
        wrong.sum().backward()
        assert wrong.isfinite().all() and logits.grad is not None
        assert logits.grad[0, 1] < -1 and logits.grad.isfinite().all()
    for floor in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(UserError, match="floor"):
            score_loss(log_p, true, floor)


def test_a_target_of_other_positions_or_tokens_is_refused() -> None:
    log_p = random_model((5, V), 0)
    with pytest.raises(UserError, match="5 positions"):
        distillation_loss(log_p, Conditional.whole(random_model((4, V), 1)))
    with pytest.raises(UserError, match="tokenizer"):
        distillation_loss(log_p, Conditional.whole(random_model((5, V + 1), 1)))
