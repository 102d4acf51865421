"""Identities that hold for any numbers."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from gtl_lightning.core.guidance import guided_log_prob_true, guided_log_probs, top_candidates
from gtl_lightning.papers.gtl import bce_loss, gkl_loss, importance_draws, log_ratio_from_logit, unsmooth

seeds = st.integers(0, 2**31)
gammas = st.floats(0, 10)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(logit=st.floats(-8, 8), e=st.floats(0, 0.45))
def test_unsmooth_inverts_label_smoothing(logit: float, e: float) -> None:
    d = torch.sigmoid(torch.tensor(logit, dtype=torch.float64))
    smoothed = torch.logit(d * (1 - 2 * e) + e)
    assert abs(unsmooth(smoothed, e).item() - logit) < 1e-5


@given(log_r=st.floats(-6, 6), share=st.floats(0.01, 0.99))
def test_bayes_classifier_gives_back_the_ratio(log_r: float, share: float) -> None:
    odds = math.exp(log_r) * share / (1 - share)
    assert abs(log_ratio_from_logit(torch.tensor(math.log(odds)), share).item() - log_r) < 1e-4


@given(log_r=st.floats(-5, 5), share=st.floats(0.05, 0.95), e=st.floats(0, 0.4))
def test_bce_is_stationary_at_the_bayes_ratio(log_r: float, share: float, e: float) -> None:
    """Weighing the two labels by Bayes' rule at one x, the slope in f vanishes at log r (smoothed: at its logit)."""
    odds = math.exp(log_r) * share / (1 - share)
    posterior = odds / (1 + odds)
    smoothed = posterior * (1 - 2 * e) + e
    start = math.log(smoothed / (1 - smoothed)) - math.log(share / (1 - share))
    f = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    yes, no = torch.tensor([True]), torch.tensor([False])
    risk = posterior * bce_loss(f, yes, e, share) + (1 - posterior) * bce_loss(f, no, e, share)
    (slope,) = torch.autograd.grad(risk.sum(), f)
    assert abs(slope.item()) < 1e-9


@given(log_r=st.floats(-5, 5), offset=st.floats(-30, 30).filter(lambda d: abs(d) > 0.01))
def test_gkl_is_a_bregman_divergence(log_r: float, offset: float) -> None:
    """exp(f) - r f is least at f = log r and nowhere else."""
    target = torch.tensor([log_r], dtype=torch.float64)
    assert gkl_loss(target + offset, target) > gkl_loss(target, target)


@given(seed=seeds, gamma=gammas, n_ratio=st.integers(1, 6))
def test_guided_law_is_the_pruned_tilt(seed: int, gamma: float, n_ratio: int) -> None:
    log_p, log_r = draw(seed, 5, 6).log_softmax(-1), draw(seed + 1, 5, 6)
    weight = log_p.exp() * log_r.exp() ** gamma
    kept = log_p >= log_p.sort(-1, descending=True).values[:, n_ratio - 1, None]
    expected = weight * kept / (weight * kept).sum(-1, keepdim=True)
    torch.testing.assert_close(guided_log_probs(log_p, log_r, gamma, n_ratio).exp(), expected)


@given(seed=seeds, gamma=gammas)
def test_no_pruning_at_full_vocabulary_and_no_guidance_at_gamma_zero(seed: int, gamma: float) -> None:
    log_p, log_r = draw(seed, 5, 6).log_softmax(-1), draw(seed + 1, 5, 6)
    assert torch.equal(guided_log_probs(log_p, log_r, gamma, 6), guided_log_probs(log_p, log_r, gamma))
    torch.testing.assert_close(guided_log_probs(log_p, log_r, 0.0), log_p)


@given(seed=seeds, shift=st.floats(-50, 50))
def test_a_constant_ratio_guides_nowhere(seed: int, shift: float) -> None:
    log_p = draw(seed, 5, 6).log_softmax(-1)
    torch.testing.assert_close(guided_log_probs(log_p, torch.full_like(log_p, shift)), log_p)


@given(seed=seeds, gamma=gammas, n=st.integers(1, 5))
def test_likelihood_is_normalised_with_unscored_tokens(seed: int, gamma: float, n: int) -> None:
    log_p, log_r, fill = draw(seed, 4, 6).log_softmax(-1), draw(seed + 1, 4, n), draw(seed + 2, 4)
    _, ids = top_candidates(log_p, n)
    total = torch.zeros(4, dtype=torch.float64)
    for token in range(6):
        true = torch.full((4,), token)
        total += guided_log_prob_true(log_p, log_r, true, gamma, ids, fill).exp()
    torch.testing.assert_close(total, torch.ones_like(total))


@given(seed=seeds, shift=st.floats(-20, 20), n=st.integers(1, 12))
def test_importance_draws_know_the_ratio_up_to_a_constant_and_leave_out_what_the_target_excludes(
    seed: int, shift: float, n: int
) -> None:
    log_r = draw(seed, n + 1)
    log_r[n // 2] = -torch.inf
    drawn = importance_draws(log_r, 64, torch.Generator().manual_seed(seed))
    again = importance_draws(log_r + shift, 64, torch.Generator().manual_seed(seed))
    assert torch.equal(drawn, again)
    assert n // 2 not in drawn.tolist()


def test_importance_draws_from_the_source_are_draws_from_the_target() -> None:
    """Pearson's statistic of 20,000 draws against q, for examples of p and the exact ratio: it does not reject."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.05, 0.15, 0.3, 0.5])
    examples = torch.multinomial(p, 400_000, replacement=True, generator=generator)
    drawn = examples[importance_draws((q / p).log()[examples], 20_000, generator)]
    expected = 20_000 * q
    statistic = ((torch.bincount(drawn, minlength=4) - expected) ** 2 / expected).sum().item()
    assert statistic < 16.3  # the 99.9 % quantile of chi-squared with 3 degrees of freedom
    assert ((examples[:20_000].bincount(minlength=4) - expected) ** 2 / expected).sum().item() > 1000
