"""Log-ratios, losses and the tilt: values, gradients at the edges, bad input."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from gtl_lightning.core.guidance import (
    Guidance,
    SequenceRatio,
    TokenRatio,
    guided_log_prob_true,
    guided_log_probs,
    linear_gamma,
    tilt,
)
from gtl_lightning.errors import UserError
from gtl_lightning.papers.gtl import (
    bce_loss,
    cycle_loss,
    gkl_loss,
    log_mse_loss,
    log_ratio_from_logit,
    martingale_penalty,
    token_bce_loss,
    token_gkl_loss,
    unsmooth,
)

INF = math.inf


def test_overshooting_smoothed_logit_is_clamped() -> None:
    logit = unsmooth(torch.tensor([-50.0, 0.0, 50.0], dtype=torch.float64), 0.1)
    assert logit.isfinite().all()
    assert logit[1] == 0
    torch.testing.assert_close(logit[2], -logit[0])
    assert logit[2] > 9


def test_share_shifts_the_log_ratio() -> None:
    """With three target examples to one of source, the classifier's logit is log r + log 3."""
    torch.testing.assert_close(log_ratio_from_logit(torch.tensor(1.0), 0.75), torch.tensor(1.0 - math.log(3)))


def test_clip_bounds_the_weight() -> None:
    f, log_r = torch.tensor([0.5]), torch.tensor([5.0])
    torch.testing.assert_close(gkl_loss(f, log_r, clip=2.0), f.exp() - 2.0 * f)


def test_huge_outputs_keep_finite_loss_and_gradient() -> None:
    f = torch.tensor([200.0, -200.0], requires_grad=True)
    loss = gkl_loss(f, torch.tensor([1.0, 1.0]))
    loss.sum().backward()
    assert f.grad is not None
    assert loss.isfinite().all()
    assert f.grad.isfinite().all()
    assert f.grad[0] > 0 > f.grad[1]  # both are pulled back towards log r* = 1


def test_cycle_and_log_mse_do_not_train_their_target() -> None:
    f, log_r = torch.tensor([1.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    cycle_loss(f, log_r).sum().backward()
    assert f.grad is not None
    assert f.grad.item() == -4.0
    assert log_r.grad is None
    assert log_mse_loss(f, log_r).item() == 4.0


def test_token_losses_sum_sequence_losses_over_masked_positions() -> None:
    g = torch.tensor([[0.3, INF, -0.7], [math.nan, 1.0, 2.0]], requires_grad=True)
    masked = torch.tensor([[True, False, True], [False, True, True]])
    is_target, log_r = torch.tensor([True, False]), torch.tensor([0.2, -0.4])
    bce, gkl = token_bce_loss(g, masked, is_target, 0.1, 0.3), token_gkl_loss(g, masked, log_r)
    for row in range(2):
        values = g[row][masked[row]]
        label, weight = is_target[row].expand(2), log_r[row].expand(2)
        torch.testing.assert_close(bce[row], bce_loss(values, label, 0.1, 0.3).sum())
        torch.testing.assert_close(gkl[row], gkl_loss(values, weight).sum())
    (bce + gkl).sum().backward()
    assert g.grad is not None
    assert torch.equal(g.grad != 0, masked)
    assert g.grad.isfinite().all()


def test_martingale_penalty_is_zero_without_two_masks() -> None:
    log_p, g = torch.randn(2, 3, 4).log_softmax(-1), torch.randn(2, 3, 4)
    masked = torch.tensor([[False, True, False], [False, False, False]])
    assert torch.equal(martingale_penalty(log_p, g, masked), torch.zeros(2))
    assert (martingale_penalty(log_p, g, torch.ones(2, 3, dtype=torch.bool)) > 0).all()


def test_tilt_with_excluded_tokens_and_zero_ratios() -> None:
    log_p = torch.tensor([-1.0, -2.0, -INF])
    assert tilt(log_p, torch.tensor([1.0, -INF, INF])).tolist() == [0.0, -INF, -INF]
    assert tilt(log_p, torch.tensor([1.0, -INF, 0.0]), 0.0).tolist() == log_p.tolist()
    assert tilt(log_p, torch.full((3,), -INF)).tolist() == log_p.tolist()  # no candidate is possible: unguided


def test_gradients_are_finite_with_excluded_tokens() -> None:
    log_p = torch.tensor([[-1.0, -2.0, -INF], [0.0, -INF, -INF]])
    log_r = torch.tensor([[0.5, 0.1, -INF], [-INF, 0.0, 1.0]], requires_grad=True)
    value = guided_log_prob_true(log_p, log_r, torch.tensor([1, 0]), gamma=2.0)
    value.sum().backward()
    assert value.isfinite().all()
    assert log_r.grad is not None
    assert log_r.grad.isfinite().all()
    assert log_r.grad[0, 1] > 0 > log_r.grad[0, 0]


def test_pruned_tokens_get_probability_zero() -> None:
    log_p = torch.tensor([0.5, 0.3, 0.2]).log()
    guided = guided_log_probs(log_p, torch.tensor([0.0, 0.0, 9.0]), n_ratio=2)
    torch.testing.assert_close(guided.exp(), torch.tensor([0.625, 0.375, 0.0]))


def test_unscored_tokens_take_the_fill() -> None:
    log_p = torch.tensor([[0.5, 0.3, 0.2]]).log()
    candidates, log_r, fill = torch.tensor([[1, 0]]), torch.tensor([[2.0, 1.0]]), torch.tensor([0.5])
    dense = torch.tensor([[1.0, 2.0, 0.5]])
    for token in range(3):
        true = torch.tensor([token])
        sparse = guided_log_prob_true(log_p, log_r, true, 1.5, candidates, fill)
        torch.testing.assert_close(sparse, guided_log_probs(log_p, dense, 1.5)[:, token])


def test_strengths_follow_the_revealed_share() -> None:
    ratio = TokenRatio(lambda x, t: x)
    assert Guidance(ratio, gamma=lambda share: 2 * share).strengths(4) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert Guidance(ratio, gamma=3.0).strengths(2) == [3.0] * 3
    assert Guidance(ratio, gamma=linear_gamma(2.0, 0.25)).strengths(2) == [2.0, 1.25, 0.5]
    assert linear_gamma(2.0, 1.0) == 2.0


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_sequence_scores_are_of_the_completed_sequences(chunk: int) -> None:
    """Every forward pass holds at most `chunk` candidates, each its row with one position set, at the next time."""
    sizes: list[int] = []

    def f(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return (x * torch.tensor([100.0, 10.0, 1.0])).sum(-1) + t

    x, row, position = torch.tensor([[7, 1, 7], [2, 7, 3]]), torch.tensor([0, 1, 0]), torch.tensor([2, 1, 0])
    candidates, now, later = torch.tensor([[4, 5], [6, 0], [1, 2]]), torch.tensor([9.0, 9.0]), torch.tensor([0.25, 0.5])
    scores = SequenceRatio(f).log_ratio(x, now, later, row, position, candidates, chunk)
    expected = [[714.25, 715.25], [263.5, 203.5], [117.25, 217.25]]
    torch.testing.assert_close(scores, torch.tensor(expected))
    assert sum(sizes) == 6
    assert max(sizes) <= chunk


def test_a_ratio_may_hand_out_the_same_memory_every_time() -> None:
    """As a captured graph does: what an earlier pass gave must not become what the last one gave."""
    memory = torch.empty(8)

    def f(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return memory[: len(x)].copy_(x.sum(-1))

    x, row, position = torch.tensor([[7, 1]]), torch.tensor([0]), torch.tensor([0])
    candidates, t = torch.arange(5)[None], torch.zeros(1)
    scores = SequenceRatio(f).log_ratio(x, t, t, row, position, candidates, chunk=2)
    assert scores.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]]


one = torch.zeros(1)
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "gamma negative": (lambda: Guidance(TokenRatio(lambda x, t: x), gamma=-1.0), "gamma"),
    "gamma infinite": (lambda: Guidance(TokenRatio(lambda x, t: x), gamma=INF), "gamma"),
    "gamma function": (lambda: Guidance(TokenRatio(lambda x, t: x), gamma=lambda s: s - 1).strengths(2), "gamma"),
    "n_ratio zero": (lambda: Guidance(TokenRatio(lambda x, t: x), n_ratio=0), "n_ratio must be at least 1"),
    "n_ratio large": (lambda: guided_log_probs(torch.zeros(3), torch.zeros(3), n_ratio=4), "n_ratio = 4 exceeds"),
    "chunk": (lambda: Guidance(SequenceRatio(lambda x, t: t), chunk=0), "chunk"),
    "ratio not wrapped": (lambda: Guidance(lambda x, t: t), "SequenceRatio"),  # type: ignore[arg-type]
    "smoothing": (lambda: unsmooth(one, 0.5), "smoothing"),
    "smoothing in loss": (lambda: bce_loss(one, one > 0, smoothing=-0.1), "smoothing"),
    "share": (lambda: log_ratio_from_logit(one, 1.0), "share_target"),
    "clip": (lambda: gkl_loss(one, one, clip=0.0), "clip"),
    "fill missing": (lambda: guided_log_prob_true(one, one, one.long(), candidates=one.long()), "fill"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    build, message = BAD[name]
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("log_r", [15.0, 25.0, 40.0, 70.0])
def test_the_loss_has_its_minimum_at_any_constant_of_the_ratio(log_r: float) -> None:
    """A reward may be far from a mean of one: a constant more is the same law."""
    weights = torch.tensor([log_r, log_r - 2.0]).double()
    wanted = float(weights.logsumexp(0)) - math.log(2)
    f = (wanted + torch.linspace(-30, 30, 601)).double()
    loss = gkl_loss(f[:, None].expand(-1, 2), weights).mean(-1)
    assert float(f[loss.argmin()]) == pytest.approx(wanted, abs=0.06)


@pytest.mark.parametrize("gamma", [np.float64(0.0), np.float64(1.0), np.float32(0.5), np.int64(2)])
def test_a_strength_of_numpy_is_a_number(gamma: np.number) -> None:
    log_p, log_r = torch.log_softmax(torch.randn(3, 5), -1), torch.randn(3, 5)
    assert torch.equal(tilt(log_p, log_r, gamma), tilt(log_p, log_r, gamma.item()))  # type: ignore[arg-type]
