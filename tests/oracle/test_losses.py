"""On enumerable laws the losses' minimisers are the exact log-ratios, and the guided NELBO is the likelihood.

A tabular model has one number for each (x_U) or each (x_U, l, v), so the expected loss, summed exactly over all clean
sequences and masks, is minimised entry by entry.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gtl_lightning.core.forward import nelbo_terms
from gtl_lightning.core.guidance import guided_log_prob_true, guided_log_probs
from gtl_lightning.core.schedule import Cosine, LogLinear, NoiseSchedule
from gtl_lightning.laws.enumerated import model_law
from gtl_lightning.papers.gtl import (
    bce_loss,
    cycle_loss,
    gkl_loss,
    log_mse_loss,
    martingale_penalty,
    token_bce_loss,
    token_gkl_loss,
)
from tests.oracle.enumeration import Enumeration, random_laws

LAWS = random_laws(vocab=3, length=3, seed=0)


def every_mask(laws: Enumeration) -> tuple[Tensor, Tensor, Tensor]:
    """All (x_0, mask) pairs but the empty mask: index Long[n] of x_0, x_t Long[n,l] and masked Bool[n,l]."""
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * laws.length)[1:]
    index = torch.arange(len(laws.p)).repeat_interleave(len(masks))
    masked = masks.repeat(len(laws.p), 1)
    return index, laws.states[index].masked_fill(masked, laws.mask_index), masked


INDEX, X_T, MASKED = every_mask(LAWS)
STATES, WHERE = X_T.unique(dim=0, return_inverse=True)  # one row of a table for each x_U
TRUE = LAWS.states[INDEX]
HIDDEN = STATES.eq(LAWS.mask_index)
NOW = torch.zeros(len(STATES))


def minimise(shape: tuple[int, ...], risk: Callable[[Tensor], Tensor]) -> Tensor:
    """The minimiser of a smooth convex risk over a table, started at zero."""
    table = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [table],
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=1e-15,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = risk(table)
        value.backward()
        return value

    optimiser.step(closure)
    return table.detach()


def test_martingale_identity() -> None:
    """Eq. 6: the mean of r over the next token is r, at every masked position; hence the penalty is zero."""
    log_p, g = LAWS.denoiser(STATES, NOW), LAWS.token_log_ratio(STATES, NOW)
    mean = torch.logsumexp(log_p + g, -1)
    expected = LAWS.sequence_log_ratio(STATES, NOW)[:, None].expand_as(mean)
    torch.testing.assert_close(mean[HIDDEN], expected[HIDDEN])
    assert martingale_penalty(log_p, g, HIDDEN).max() < 1e-20
    assert martingale_penalty(log_p, 2 * g, HIDDEN).max() > 1e-2


@pytest.mark.parametrize("loss", ["gkl", "bce", "log_mse"])
def test_sequence_loss_minimisers(loss: str) -> None:
    """gkl (7b) and bce (7c) find log r(x_U); log_mse (7a) finds the mean of log r*, below it by Jensen."""
    log_r_star = (LAWS.q / LAWS.p).log()[INDEX]
    p, q = LAWS.p[INDEX], LAWS.q[INDEX]
    yes = torch.ones(len(INDEX), dtype=torch.bool)

    def risk(table: Tensor) -> Tensor:
        f = table[WHERE]
        if loss == "gkl":
            return (p * gkl_loss(f, log_r_star)).sum()
        if loss == "bce":
            return (0.3 * q * bce_loss(f, yes, share_target=0.3) + 0.7 * p * bce_loss(f, ~yes, share_target=0.3)).sum()
        return (p * log_mse_loss(f, log_r_star)).sum()

    found, exact = minimise((len(STATES),), risk), LAWS.sequence_log_ratio(STATES, NOW)
    if loss != "log_mse":
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
        return
    weight = LAWS.compatible(STATES) * LAWS.p
    mean_log = (weight @ (LAWS.q / LAWS.p).log()) / weight.sum(-1)
    torch.testing.assert_close(found, mean_log, rtol=0, atol=1e-5)
    hidden = HIDDEN.any(-1)
    assert (found < exact)[hidden].all()
    assert (exact - found)[hidden].mean() > 0.1


def test_guidance_by_the_published_minimiser_misses_the_target() -> None:
    """Jensen's bias in samples: all else exact, the law guided by 7a's minimiser is not q; by 7b's it is."""
    weight = LAWS.compatible(LAWS.partial) * LAWS.p
    log_r = (LAWS.q / LAWS.p).log()
    share = weight / weight.sum(-1, keepdim=True)
    tables = {"log_mse": share @ log_r, "gkl": (share @ log_r.exp()).log()}
    distance = {}
    for name, table in tables.items():

        def conditionals(x_t: Tensor, t: Tensor, table: Tensor = table) -> Tensor:
            length = x_t.shape[1]
            tried = x_t[:, None, None].repeat(1, length, LAWS.vocab, 1)
            for position in range(length):
                tried[:, position, :, position] = torch.arange(LAWS.vocab)
            place = (LAWS.vocab + 1) ** torch.arange(length - 1, -1, -1)
            log_f = torch.nn.functional.pad(table[(tried * place).sum(-1)], (0, 1))
            return guided_log_probs(LAWS.denoiser(x_t, t), log_f)

        made = model_law(conditionals, LAWS.vocab, LAWS.length)
        distance[name] = float((made.table - LAWS.q).abs().sum() / 2)
    assert distance["gkl"] < 1e-9
    assert distance["log_mse"] > 0.03


@pytest.mark.parametrize("loss", ["gkl", "bce"])
def test_token_loss_minimisers(loss: str) -> None:
    """Eq. 9 in both forms finds log r(x_U + {l: v}) for every masked l and token v."""
    log_r_star = (LAWS.q / LAWS.p).log()[INDEX]
    p, q = LAWS.p[INDEX], LAWS.q[INDEX]
    yes = torch.ones(len(INDEX), dtype=torch.bool)

    def risk(table: Tensor) -> Tensor:
        g_true = table[WHERE].gather(-1, TRUE[..., None]).squeeze(-1)
        if loss == "gkl":
            return (p * token_gkl_loss(g_true, MASKED, log_r_star)).sum()
        target = token_bce_loss(g_true, MASKED, yes, share_target=0.4)
        return (0.4 * q * target + 0.6 * p * token_bce_loss(g_true, MASKED, ~yes, share_target=0.4)).sum()

    found = minimise((len(STATES), LAWS.length, LAWS.vocab), risk)
    exact = LAWS.token_log_ratio(STATES, NOW)[..., : LAWS.vocab]
    torch.testing.assert_close(found[HIDDEN], exact[HIDDEN], rtol=0, atol=1e-3)


def test_cycle_loss_minimiser() -> None:
    """Eq. 8 on target data is minimised by the classifier's log-ratio itself."""
    exact = LAWS.sequence_log_ratio(STATES, NOW)
    found = minimise((len(STATES),), lambda table: (LAWS.q[INDEX] * cycle_loss(table[WHERE], exact[WHERE])).sum())
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def test_guided_likelihood_minimiser() -> None:
    """Eq. 9': softmax(log p + g) becomes q(v | x_U), so g is log r(x_U + {l: v}) up to a number for each (x_U, l)."""
    log_p = LAWS.denoiser(STATES, NOW)
    some_time = torch.full((len(INDEX),), 0.5, dtype=torch.float64)

    def risk(table: Tensor) -> Tensor:
        log_prob = guided_log_prob_true(log_p[WHERE], table[WHERE], TRUE)
        return (LAWS.q[INDEX] * nelbo_terms(log_prob, MASKED, some_time, LogLinear())).sum()

    found = torch.log_softmax(log_p + minimise(tuple(log_p.shape), risk), -1)
    expected = LAWS.target_denoiser(STATES, NOW)
    torch.testing.assert_close(found[HIDDEN].exp(), expected[HIDDEN].exp(), rtol=0, atol=1e-5)


def nelbo(laws: Enumeration, log_prob: Tensor, noise: NoiseSchedule) -> Tensor:
    """Float64[v^l]: the NELBO of each clean sequence, summed over masks and integrated over t in (0, 1].

    The probability of a mask of k positions times the weight is a smooth function of t, here by Gauss-Legendre nodes
    (Legendre roots as eigenvalues of the Jacobi matrix).
    """
    n = 40
    beta = torch.arange(1, n, dtype=torch.float64)
    beta = beta / (4 * beta**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    times, widths = (nodes + 1) / 2, vectors[0] ** 2
    total = torch.zeros(len(laws.p), dtype=torch.float64)
    k = MASKED.sum(-1)
    for time, width in zip(times, widths, strict=True):
        alpha = noise.alpha(time)
        probability = (1 - alpha) ** k * alpha ** (laws.length - k)
        terms = nelbo_terms(log_prob, MASKED, time.expand(len(INDEX)), noise)
        total.index_add_(0, INDEX, width * probability * terms)
    return total


@pytest.mark.parametrize("noise", [LogLinear(), Cosine()], ids=["loglinear", "cosine"])
def test_nelbo_of_the_exact_denoiser_is_the_likelihood(noise: NoiseSchedule) -> None:
    """Any-order identity: with the exact posterior eq. 1 equals -log p(x_0), whatever the schedule."""
    log_prob = LAWS.denoiser(X_T, NOW).gather(-1, TRUE[..., None]).squeeze(-1)
    torch.testing.assert_close(nelbo(LAWS, log_prob, noise), -LAWS.p.log())


def test_guided_nelbo_is_the_target_likelihood_and_otherwise_a_bound() -> None:
    """With exact p and r the guided NELBO is -log q; unguided or over-guided it exceeds the entropy of q."""
    log_p, g = LAWS.denoiser(X_T, NOW), LAWS.token_log_ratio(X_T, NOW)
    entropy = -(LAWS.q * LAWS.q.log()).sum()
    exact = nelbo(LAWS, guided_log_prob_true(log_p, g, TRUE), LogLinear())
    torch.testing.assert_close(exact, -LAWS.q.log())
    for gamma in (0.0, 0.5, 2.0):
        other = nelbo(LAWS, guided_log_prob_true(log_p, g, TRUE, gamma), LogLinear())
        assert (LAWS.q * other).sum() > entropy + 0.02
