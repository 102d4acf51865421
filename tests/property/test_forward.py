"""The reverse step of eq. 2 undoes the noising, for any schedule and times."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gtl_lightning.core.forward import posterior, stratified_times
from gtl_lightning.core.schedule import SCHEDULES, schedule

times = st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)).filter(lambda pair: abs(pair[0] - pair[1]) > 0.01)


@given(name=st.sampled_from(sorted(SCHEDULES)), pair=times, seed=st.integers(0, 2**31))
def test_posterior_is_bayes_rule(name: str, pair: tuple[float, float], seed: int) -> None:
    """Eq. 2 with the exact clean-token law equals p(x_s, x_t) / p(x_t), computed from the forward process alone."""
    noise, (s, t) = schedule(name), sorted(pair)
    vocab, mask = 4, 2  # the mask need not be the last id
    clean = torch.rand(vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    clean[mask] = 0
    clean /= clean.sum()
    time_s, time_t = torch.tensor([s], dtype=torch.float64), torch.tensor([t], dtype=torch.float64)
    alpha_s, alpha_t = noise.alpha(time_s), noise.alpha(time_t)
    x_s = alpha_s * clean
    x_s[mask] = 1 - alpha_s
    becomes_masked = torch.full((vocab,), 1.0, dtype=torch.float64) * (1 - alpha_t / alpha_s)
    becomes_masked[mask] = 1.0
    expected = x_s * becomes_masked / (x_s * becomes_masked).sum()
    step = posterior(clean.log()[None, None], torch.tensor([[mask]]), time_t, time_s, noise, mask)
    torch.testing.assert_close(step[0, 0].exp(), expected)


@given(batch=st.integers(1, 300), eps=st.floats(0.0, 0.1), seed=st.integers(0, 2**31))
def test_times_stay_in_range_and_are_evenly_spaced(batch: int, eps: float, seed: int) -> None:
    t = stratified_times(batch, torch.Generator().manual_seed(seed), eps).double().sort().values
    assert t.shape == (batch,)
    assert t[0] >= eps - 1e-7
    assert t[-1] <= 1
    torch.testing.assert_close(
        t.diff(), torch.full((batch - 1,), (1 - eps) / batch, dtype=torch.float64), rtol=0, atol=1e-6
    )
