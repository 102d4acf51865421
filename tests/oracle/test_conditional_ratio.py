"""TCSM's ratio to a denoiser's own predictions, on enumerable laws: its minimiser, what it samples, where it is silent.

Target texts alone are read: the risk weighs every (x_0, mask) by q, never by p.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gtl_lightning import Guidance, TokenRatio, sample
from gtl_lightning.core.guidance import guided_log_probs
from gtl_lightning.laws.enumerated import model_law
from gtl_lightning.papers.gtl import bce_loss
from gtl_lightning.papers.tcsm import conditional_bce_loss
from tests.oracle.enumeration import random_laws, total_variation, total_variation_bound
from tests.oracle.test_losses import every_mask, minimise

LAWS = random_laws(vocab=3, length=3, seed=0)
INDEX, X_T, MASKED = every_mask(LAWS)
STATES, WHERE = X_T.unique(dim=0, return_inverse=True)
HIDDEN = STATES.eq(LAWS.mask_index)
NOW = torch.zeros(len(STATES))
TRUE = LAWS.states[INDEX]
Denoiser = Callable[[Tensor, Tensor], Tensor]


def blurred(x_t: Tensor, t: Tensor) -> Tensor:
    """A denoiser of no law at all: target conditionals that are too flat, and tilted by position."""
    tilt = torch.linspace(0.0, 1.0, LAWS.vocab + 1, dtype=torch.float64) * torch.arange(1, LAWS.length + 1)[:, None]
    masked = x_t.eq(LAWS.mask_index)[..., None]
    exact = LAWS.target_denoiser(x_t, t)
    return torch.where(masked, torch.log_softmax(0.5 * exact + tilt, -1), exact)


DENOISERS = pytest.mark.parametrize("denoiser", [LAWS.denoiser, blurred], ids=["source", "blurred"])


def risk(table: Tensor, log_p: Tensor, weight: Tensor | None = None) -> Tensor:
    """The loss over all of the target's (x_0, mask), by what the tables say of each x_U."""
    terms = conditional_bce_loss(table[WHERE], log_p[WHERE], TRUE) * MASKED
    return (LAWS.q[INDEX, None] * terms * (1 if weight is None else weight)).sum()


def trained(denoiser: Denoiser, weight: Tensor | None = None) -> Tensor:
    """Float64[n,l,v]: the minimiser, one number for each (x_U, l, v)."""
    log_p = denoiser(STATES, NOW)[..., : LAWS.vocab]
    return minimise((len(STATES), LAWS.length, LAWS.vocab), lambda table: risk(table, log_p, weight))


def exact(denoiser: Denoiser) -> Tensor:
    """log q(v | x_U) - log p_theta(v | x_U) where it is masked."""
    difference = LAWS.target_denoiser(STATES, NOW) - denoiser(STATES, NOW)
    return torch.where(HIDDEN[..., None], difference, 0.0)[..., : LAWS.vocab]


@DENOISERS
def test_the_minimiser_is_the_ratio_of_the_conditionals(denoiser: Denoiser) -> None:
    """Entry by entry and not up to a constant: p e^g sums to one."""
    found = trained(denoiser)
    torch.testing.assert_close(found[HIDDEN], exact(denoiser)[HIDDEN], rtol=0, atol=1e-3)
    total = torch.logsumexp(denoiser(STATES, NOW)[..., : LAWS.vocab] + found, -1)
    torch.testing.assert_close(total[HIDDEN], torch.zeros_like(total[HIDDEN]), rtol=0, atol=1e-3)
    assert exact(denoiser)[HIDDEN].abs().max() > 0.5
    # Free of any optimiser: the risk is convex in each entry, and its slope there is zero.
    there = exact(denoiser).requires_grad_()
    risk(there, denoiser(STATES, NOW)[..., : LAWS.vocab]).backward()
    assert there.grad is not None
    assert there.grad.abs().max() < 1e-15


def test_against_the_sources_denoiser_it_is_the_token_ratio_less_that_of_the_context() -> None:
    """log r(x_U + {l: v}) - log r(x_U), without a text of the source."""
    token = LAWS.token_log_ratio(STATES, NOW)[..., : LAWS.vocab] - LAWS.sequence_log_ratio(STATES, NOW)[:, None, None]
    torch.testing.assert_close(trained(LAWS.denoiser)[HIDDEN], token[HIDDEN], rtol=0, atol=1e-3)


def test_the_weight_of_a_position_moves_no_minimiser() -> None:
    """Mean over masked positions, or eq. 1's weights of the noise level: one optimum."""
    weight = 1.0 / MASKED.sum(-1, keepdim=True).double() ** 2
    torch.testing.assert_close(trained(blurred, weight)[HIDDEN], exact(blurred)[HIDDEN], rtol=0, atol=1e-3)


def test_a_perfect_denoiser_leaves_nothing_to_learn() -> None:
    """At g = 0 the gradient is zero to the last bits, and the minimum is there."""
    log_q = LAWS.target_denoiser(STATES, NOW)[..., : LAWS.vocab]
    zero = torch.zeros_like(log_q, requires_grad=True)
    risk(zero, log_q).backward()
    assert zero.grad is not None
    assert zero.grad.abs().max() < 1e-15
    found = trained(LAWS.target_denoiser)
    assert found[HIDDEN].abs().max() < 1e-6
    # Not so for a denoiser that is off.
    off = torch.zeros_like(log_q, requires_grad=True)
    risk(off, blurred(STATES, NOW)[..., : LAWS.vocab]).backward()
    assert off.grad is not None
    assert off.grad.abs().max() > 1e-3


@DENOISERS
def test_guided_by_it_the_denoiser_samples_the_target(denoiser: Denoiser) -> None:
    """gamma = 1: as a law, and drawn by the sampler, whatever the denoiser was."""
    rows = torch.nn.functional.pad(trained(denoiser), (0, 1))
    place = (LAWS.vocab + 1) ** torch.arange(LAWS.length - 1, -1, -1)
    table = torch.zeros((LAWS.vocab + 1) ** LAWS.length, LAWS.length, LAWS.vocab + 1, dtype=torch.float64)
    table[(STATES * place).sum(-1)] = rows

    def ratio(x_t: Tensor, t: Tensor) -> Tensor:
        return table[(x_t * place).sum(-1)]

    made = model_law(lambda x_t, t: guided_log_probs(denoiser(x_t, t), ratio(x_t, t)), LAWS.vocab, LAWS.length)
    unguided = model_law(denoiser, LAWS.vocab, LAWS.length)
    assert (made.table - LAWS.q).abs().sum() / 2 < 1e-4
    assert (unguided.table - LAWS.q).abs().sum() / 2 > 0.1

    n, options = 20_000, {"mask_index": LAWS.mask_index, "batch": 20_000, "length": LAWS.length}
    for guidance, near in ((Guidance(TokenRatio(ratio)), True), (None, False)):
        x = sample(denoiser, guidance=guidance, generator=torch.Generator().manual_seed(0), **options)
        assert (total_variation(x, LAWS.q, LAWS) < total_variation_bound(LAWS.q, n)) == near


def test_negatives_are_summed_as_if_they_were_drawn() -> None:
    """The mean over v ~ p of the cross-entropy of a pair (true token, v), which is eq. 7c's, token by token."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(40, 7, generator=generator, dtype=torch.float64)
    log_p = torch.log_softmax(torch.randn(40, 7, generator=generator, dtype=torch.float64), -1)
    true = torch.randint(0, 7, (40,), generator=generator)
    yes = torch.ones(40, dtype=torch.bool)
    pairs = [bce_loss(g[torch.arange(40), true], yes) + bce_loss(g[:, v], ~yes) for v in range(7)]
    expected = (torch.stack(pairs, -1) * log_p.exp()).sum(-1)
    torch.testing.assert_close(conditional_bce_loss(g, log_p, true), expected)


def test_what_the_denoiser_excludes_costs_nothing_and_it_is_not_trained() -> None:
    """Mask and padding have log-probability -inf; the loss and its gradients stay finite."""
    log_p = torch.tensor([[-0.7, -0.6, float("-inf")]], requires_grad=True)
    g = torch.tensor([[0.3, -0.2, 50.0]], requires_grad=True)
    conditional_bce_loss(g, log_p, torch.tensor([0])).sum().backward()
    assert log_p.grad is None
    assert g.grad is not None
    assert g.grad.isfinite().all()
    assert g.grad[0, 2] == 0
