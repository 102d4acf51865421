"""Noising: what is kept, what is drawn, and the pieces of the NELBO."""

import math

import pytest
import torch

from gtl_lightning.core.forward import (
    absorbing_sample,
    level_sample,
    nelbo_terms,
    posterior,
    stratified_times,
    uniform_sample,
)
from gtl_lightning.core.schedule import Cosine, LogLinear

MASK = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_is_in_single_precision_whatever_the_default_is(dtype: torch.dtype) -> None:
    """In half of it uniforms are multiples of 1/256: small times and shares would all be one."""
    x_0 = torch.randint(MASK, (512, 40), generator=generator())
    drawn = [stratified_times(512, generator()), *level_sample(x_0, MASK, generator())]
    torch.set_default_dtype(dtype)
    try:
        again = [stratified_times(512, generator()), *level_sample(x_0, MASK, generator())]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(drawn[1:], again[1:], strict=True))
    torch.testing.assert_close(again[0], drawn[0])


def test_absorbing_masks_the_stated_share() -> None:
    """A Bernoulli share of n positions lies within 5.5 standard deviations (false alarm below 1e-7)."""
    n, noise = 200_000, Cosine()
    x_0 = torch.randint(MASK, (2, n), generator=generator())
    t = torch.tensor([0.3, 0.8])
    x_t = absorbing_sample(x_0, t, noise, MASK, generator(1))
    share = (x_t == MASK).double().mean(1)
    expected = 1 - noise.alpha(t.double())
    assert ((share - expected).abs() < 5.5 * (expected * (1 - expected) / n).sqrt()).all()
    assert ((x_t == x_0) | (x_t == MASK)).all()


def test_uniform_noise_replaces_the_stated_share_evenly() -> None:
    n, vocab, t = 200_000, 4, 0.6
    x_t = uniform_sample(torch.zeros(1, n, dtype=torch.long), torch.tensor([t]), LogLinear(), vocab, generator())
    share = torch.bincount(x_t[0], minlength=vocab).double() / n
    expected = torch.full((vocab,), t / vocab, dtype=torch.float64)
    expected[0] += 1 - t
    assert ((share - expected).abs() < 5.5 * (expected * (1 - expected) / n).sqrt()).all()


def test_frozen_positions_are_never_noised() -> None:
    x_0 = torch.randint(MASK, (8, 50), generator=generator())
    frozen = torch.rand(8, 50, generator=generator(1)) < 0.5
    t = torch.ones(8)
    assert torch.equal(absorbing_sample(x_0, t, LogLinear(), MASK, generator(2), frozen) == MASK, ~frozen)
    assert torch.equal(uniform_sample(x_0, t, LogLinear(), MASK, generator(2), frozen)[frozen], x_0[frozen])


def test_nothing_is_noised_at_time_zero() -> None:
    x_0 = torch.randint(MASK, (4, 50), generator=generator())
    assert torch.equal(absorbing_sample(x_0, torch.zeros(4), LogLinear(), MASK, generator()), x_0)


def test_same_generator_same_noise() -> None:
    x_0 = torch.zeros(4, 50, dtype=torch.long)
    t = torch.full((4,), 0.5)
    first, second, other = (absorbing_sample(x_0, t, LogLinear(), MASK, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_times_are_one_per_stratum() -> None:
    eps, batch = 0.01, 64
    t = stratified_times(batch, generator(), eps)
    stratum = ((t - eps) / (1 - eps) * batch).floor().long().clamp(0, batch - 1)
    assert t.min() >= eps
    assert t.max() < 1
    assert (torch.bincount(stratum, minlength=batch) <= 2).all()  # rounding may move one over an edge
    assert abs(t.mean().item() - (1 + eps) / 2) < 1 / batch


def test_nelbo_reads_masked_positions_only() -> None:
    """An excluded token of -inf or NaN at an unmasked position must reach neither value nor gradient."""
    log_prob = torch.tensor([[-1.0, -math.inf, -2.0], [math.nan, -3.0, -math.inf]], requires_grad=True)
    masked = torch.tensor([[True, False, True], [False, True, False]])
    loss = nelbo_terms(log_prob, masked, torch.tensor([0.5, 0.25]), LogLinear())
    torch.testing.assert_close(loss, torch.tensor([6.0, 12.0]))
    loss.sum().backward()
    assert log_prob.grad is not None
    torch.testing.assert_close(log_prob.grad, -masked.float() / torch.tensor([[0.5], [0.25]]))


def test_posterior_keeps_unmasked_tokens() -> None:
    x_t = torch.tensor([[2, MASK]])
    log_p = torch.full((1, 2, MASK + 1), -math.log(MASK))
    log_p[..., MASK] = -math.inf
    step = posterior(log_p, x_t, torch.tensor([0.8]), torch.tensor([0.2]), LogLinear(), MASK).exp()
    torch.testing.assert_close(step[0, 0], torch.nn.functional.one_hot(torch.tensor(2), MASK + 1).float())
    torch.testing.assert_close(step[0, 1], torch.tensor([0.75 / MASK] * MASK + [0.25]))


def test_levels_of_batches_on_a_leading_axis_are_stratified_apart():
    x_0 = torch.randint(4, (3, 10, 5), generator=torch.Generator().manual_seed(0))
    x_t, masked, count = level_sample(x_0, 4, torch.Generator().manual_seed(1))
    assert torch.equal(masked, x_t == 4)
    assert torch.equal(masked.sum(-1), count)
    assert torch.equal(count.sort(-1).values, torch.arange(1, 6).repeat_interleave(2).expand(3, -1))
    assert not torch.equal(count[0], count[1])
