"""Post-training by a density ratio, summed exactly: the three losses, implicit and explicit, and their closed forms.

Section 3.3 of docs/method.md. BCE with a network of its own is in test_conditional_ratio.py too, with its sampler.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gtl_lightning.core.guidance import guided_log_probs
from gtl_lightning.papers.tcsm import (
    bce_pair_loss,
    conditional_bce_loss,
    conditional_gkl_loss,
    conditional_lsif_loss,
    gkl_pair_loss,
    implicit_log_ratio,
    lsif_pair_loss,
)
from tests.oracle.concrete import distance, marginals, neighbours, random_model
from tests.oracle.enumeration import random_laws
from tests.oracle.test_losses import every_mask, minimise

LAWS = random_laws(vocab=3, length=3, seed=0)
V, LENGTH = LAWS.vocab, LAWS.length
INDEX, X_T, MASKED = every_mask(LAWS)
STATES, WHERE = X_T.unique(dim=0, return_inverse=True)
HIDDEN, TRUE = LAWS.mask_index == STATES, LAWS.states[INDEX]
NOW = torch.zeros(len(STATES))
LOG_P = LAWS.denoiser(STATES, NOW)[..., :V]
LOG_Q = LAWS.target_denoiser(STATES, NOW)[..., :V]
TOKEN = {"lsif": conditional_lsif_loss, "bce": conditional_bce_loss, "gkl": conditional_gkl_loss}
PAIRS = {"lsif": lsif_pair_loss, "bce": bce_pair_loss, "gkl": gkl_pair_loss}


def risk(g: Tensor, loss: str) -> Tensor:
    """Over target texts alone, all masks alike: what the tables of g say of each x_U."""
    return (LAWS.q[INDEX, None] * TOKEN[loss](g[WHERE], LOG_P[WHERE], TRUE) * MASKED).sum()


@pytest.mark.parametrize("loss", TOKEN)
def test_explicit_ratios_find_the_token_ratio_less_that_of_the_context(loss: str) -> None:
    """g[i,v] = log r(x_U + {i: v}) - log r(x_U), entry by entry: GTL's token ratio, without a text of its source.

    All three are convex in the entries of r or of log r, so the gradient says it; an optimiser finds it too.
    """
    token = LAWS.token_log_ratio(STATES, NOW)[..., :V] - LAWS.sequence_log_ratio(STATES, NOW)[:, None, None]
    if loss == "gkl":  # LSIF is flat where r is small, and BCE slow; for BCE see test_conditional_ratio.py
        found = minimise((len(STATES), LENGTH, V), lambda g: risk(g, loss))
        torch.testing.assert_close(found[HIDDEN], token[HIDDEN], rtol=0, atol=1e-3)
    there = token.requires_grad_()
    risk(there, loss).backward()
    assert there.grad is not None
    assert there.grad[HIDDEN].abs().max() < 1e-12


@pytest.mark.parametrize("loss", TOKEN)
def test_implicit_ratios_train_the_denoiser_to_the_target(loss: str) -> None:
    """With log r = log p_theta / p_ref the minimiser is p_theta = q(v | x_U), whatever the loss."""

    def implicit(table: Tensor) -> Tensor:
        return risk(implicit_log_ratio(torch.log_softmax(table, -1), LOG_P), loss)

    found = torch.softmax(minimise((len(STATES), LENGTH, V), implicit), -1)
    assert distance(found, LOG_Q.exp())[HIDDEN].max() < 1e-3
    assert distance(LOG_P.exp(), LOG_Q.exp())[HIDDEN].max() > 0.3
    there = LOG_Q.clone().requires_grad_()
    implicit(there).backward()
    assert there.grad is not None
    assert there.grad[HIDDEN].abs().max() < 1e-12


def test_the_mean_of_an_implicit_ratio_is_one() -> None:
    """E_ref r = 1, position by position and over whole texts, at any parameters, to 1e-10."""
    log_p = random_model((len(STATES), LENGTH, V), 1)
    log_r = implicit_log_ratio(log_p, LOG_P)
    one = (LOG_P + log_r).logsumexp(-1)
    assert one[HIDDEN].abs().max() < 1e-10
    whole = sum(pick(log_r, i) for i in range(LENGTH))
    ref = sum(pick(LOG_P, i) for i in range(LENGTH))
    assert (whole + ref).logsumexp(-1)[HIDDEN.all(-1)].abs().max() < 1e-10


def pick(rows: Tensor, position: int) -> Tensor:
    """Float64[n,v^l]: of each text, its token's entry at a position."""
    return rows[:, position, LAWS.states[:, position]]


def test_the_implicit_gkl_is_fine_tuning() -> None:
    """Its gradient in every logit is the cross-entropy's to 1e-10; its value differs by what no parameter moves."""
    tables = [random_model((len(STATES), LENGTH, V), seed).requires_grad_() for seed in (1, 1)]
    log_p = torch.log_softmax(tables[0], -1)
    risk(implicit_log_ratio(log_p, LOG_P), "gkl").backward()
    cross_entropy = -torch.log_softmax(tables[1], -1)[WHERE].gather(-1, TRUE[..., None]).squeeze(-1)
    (LAWS.q[INDEX, None] * cross_entropy * MASKED).sum().backward()
    assert tables[0].grad is not None and tables[1].grad is not None
    torch.testing.assert_close(tables[0].grad, tables[1].grad, rtol=1e-10, atol=1e-10)
    assert tables[0].grad.abs().max() > 1e-3


def test_the_second_moment_of_an_implicit_ratio_has_a_closed_form() -> None:
    """E_ref r^2 = prod_i sum_v p_theta^2 / p_ref, to 1e-10: over whole texts, and in LSIF at one position."""
    log_p = random_model((len(STATES), LENGTH, V), 1)
    log_r = implicit_log_ratio(log_p, LOG_P)
    rows = HIDDEN.all(-1)
    summed = (2 * sum(pick(log_r, i) for i in range(LENGTH)) + sum(pick(LOG_P, i) for i in range(LENGTH)))[rows]
    closed = (2 * log_p - LOG_P).logsumexp(-1)[rows].sum(-1)
    torch.testing.assert_close(summed.logsumexp(-1), closed, rtol=1e-10, atol=1e-10)
    true = torch.zeros(HIDDEN.shape, dtype=torch.long)
    value = conditional_lsif_loss(log_r, LOG_P, true)
    expected = (log_p.exp() ** 2 / LOG_P.exp()).sum(-1) / 2 - log_r[..., 0].exp()
    torch.testing.assert_close(value[HIDDEN], expected[HIDDEN], rtol=1e-10, atol=1e-10)


def test_lsif_does_not_overflow() -> None:
    """Where the model is sure of what the reference hardly knows, value and gradient are finite in single precision."""
    logits = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    ref = torch.log_softmax(torch.tensor([[0.0, -80.0, 0.0]]), -1)
    loss = conditional_lsif_loss(implicit_log_ratio(torch.log_softmax(logits, -1), ref), ref, torch.tensor([0]))
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[0, 1] >= 0


@pytest.mark.parametrize("loss", PAIRS)
def test_pairs_of_whole_texts_find_the_joint_ratio(loss: str) -> None:
    """Positives q(x_0 | z_t), negatives p(x_0 | z_t): log r = GTL's ratio of the texts less that of z_t.

    And drawn pairs have the risk that is summed here in the mean: the two halves of the loss separate.
    """
    f_true, f_ref = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    halves = PAIRS[loss](f_true, zero) + PAIRS[loss](zero, f_ref) - PAIRS[loss](zero, zero)
    torch.testing.assert_close(PAIRS[loss](f_true, f_ref), halves)
    compatible = LAWS.compatible(STATES)
    p, q = (compatible * law for law in (LAWS.p, LAWS.q))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)

    def joint(f: Tensor) -> Tensor:
        return (q * PAIRS[loss](f, zero) + p * PAIRS[loss](zero, f)).sum()

    expected = (LAWS.q / LAWS.p).log() - LAWS.sequence_log_ratio(STATES, NOW)[:, None]
    if loss != "lsif":
        found = minimise(tuple(p.shape), joint)
        torch.testing.assert_close(found[compatible.bool()], expected[compatible.bool()], rtol=0, atol=5e-3)
    there = expected.requires_grad_()
    joint(there).backward()
    assert there.grad is not None
    assert there.grad.abs().max() < 1e-12


def test_a_product_over_positions_against_whole_texts_is_biased() -> None:
    """LSIF of whole texts with the implicit form of independent positions does not lead to the marginals of q.

    No such product is the ratio of the joint laws, and LSIF cares where it is not. All masked: total variation .054 in
    the mean over positions to the marginals of q, which the loss of single positions finds.
    """
    all_masked = int(HIDDEN.all(-1).nonzero())
    ref, q = LOG_P[all_masked], marginals(LAWS, LAWS.q[None])[0]

    def whole(table: Tensor) -> Tensor:
        log_r = implicit_log_ratio(torch.log_softmax(table, -1), ref)[None]
        log_ref = sum(pick(ref[None], i) for i in range(LENGTH))
        f = sum(pick(log_r, i) for i in range(LENGTH))
        return (log_ref.exp() * (2 * f).exp() / 2 - LAWS.q * f.exp()).sum()

    off = distance(torch.softmax(minimise((LENGTH, V), whole), -1), q)
    assert 0.02 < off.mean() < 0.2


def test_an_energy_of_whole_texts_normalised_at_a_position_is_a_guided_denoiser() -> None:
    """p_theta(y | x^{-i}, z) proportional to p_ref(y | z) exp f([y, x^{-i}]), f = log q/p: the two-sided law of q.

    p_ref is here p's law of the position given all the others.
    """
    around = neighbours(LAWS)
    ref = LAWS.p[around].log().log_softmax(-1)
    found = guided_log_probs(ref, (LAWS.q / LAWS.p).log()[around])
    torch.testing.assert_close(found, LAWS.q[around].log().log_softmax(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", TOKEN)
def test_what_both_denoisers_exclude_costs_nothing(loss: str) -> None:
    """Mask and padding, -inf in both: value and gradients as without them, none into the reference."""
    logits = torch.tensor([[0.3, -0.2, -math.inf]], requires_grad=True)
    ref = torch.tensor([[-0.7, -0.6, -math.inf]], requires_grad=True)
    log_p = torch.log_softmax(logits, -1)
    value = TOKEN[loss](implicit_log_ratio(log_p, ref), ref, torch.tensor([0]))
    value.sum().backward()
    assert ref.grad is None and logits.grad is not None
    assert logits.grad[0, :2].isfinite().all() and not logits.grad[0, 2].abs() > 0
    short = TOKEN[loss](implicit_log_ratio(log_p[:, :2], ref[:, :2]), ref[:, :2], torch.tensor([0]))
    torch.testing.assert_close(value, short)
