"""The sampler's behaviour: cost, order, prompts, devices of control, and one test for each bad input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gtl_lightning import Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.core.protocols import EVERYWHERE, Look
from gtl_lightning.core.schedule import Cosine, LogLinear
from gtl_lightning.core.trace import Progress
from gtl_lightning.errors import UserError

V, MASK, LENGTH = 7, 3, 6  # the mask is not the last id on purpose


class Tiny(nn.Module):
    """A random network, as a denoiser (normalised) or a token ratio; counts its calls and what meets the vocabulary."""

    def __init__(self, seed: int, normalise: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(LENGTH, V, 8, generator=generator)
        self.out = 0.5 * torch.randn(8, V, generator=generator)
        self.normalise = normalise
        self.rows: list[int] = []
        self.projected = 0
        self.times: list[Tensor] = []

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        self.rows.append(len(x_t))
        self.times.append(t)
        own = self.table[torch.arange(x_t.shape[1]), x_t]
        return look.of(torch.tanh(own + own.mean(1, keepdim=True)) + t[:, None, None])

    def decode(self, h: Tensor) -> Tensor:
        self.projected += h[..., 0].numel()
        logits = h @ self.out
        if not self.normalise:
            return logits
        return logits.index_fill(-1, torch.tensor([MASK]), -math.inf).log_softmax(-1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.decode(self.encode(x_t, t))


def draw(denoiser: Any = None, seed: int = 0, **options: Any) -> Tensor:
    options = {"mask_index": MASK, **options}
    if "prompt" not in options:
        options = {"batch": 5, "length": LENGTH, **options}
    generator = torch.Generator().manual_seed(seed)
    return sample(denoiser if denoiser is not None else Tiny(0), generator=generator, **options)


def sequence_f(x: Tensor, t: Tensor) -> Tensor:
    return (torch.arange(1, 1 + x.shape[1]) * x).sum(-1) / 20 + t


MODES = [{}, {"planner": "margin"}, {"planner": lambda x: x.float()}, {"positions_per_step": 4}, {"steps": 3}]


@pytest.mark.parametrize("mode", MODES)
def test_samples_hold_no_mask_and_depend_on_the_generator_alone(mode: dict[str, Any]) -> None:
    for guidance in (None, Guidance(TokenRatio(Tiny(1, False))), Guidance(SequenceRatio(sequence_f), n_ratio=2)):
        first, again, other = (draw(seed=seed, guidance=guidance, **mode) for seed in (0, 0, 1))
        assert first.shape == (5, LENGTH)
        assert (first != MASK).all()
        assert first.min() >= 0
        assert first.max() < V
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_a_mask_is_never_drawn_even_if_the_denoiser_likes_it() -> None:
    def fond_of_masks(x: Tensor, t: Tensor) -> Tensor:
        return torch.full((*x.shape, V), -20.0).index_fill(-1, torch.tensor([MASK]), 0.0)

    assert (draw(fond_of_masks) != MASK).all()


def test_one_call_and_one_projection_a_step() -> None:
    """k positions of each row meet the vocabulary, in ceil(l / k) calls; a token ratio costs the same again."""
    denoiser, ratio = Tiny(0), Tiny(1, False)
    draw(denoiser, guidance=Guidance(TokenRatio(ratio), n_ratio=3), positions_per_step=4)
    assert denoiser.rows == ratio.rows == [5, 5]
    assert denoiser.projected == ratio.projected == 5 * LENGTH


def test_finished_rows_leave_the_batch() -> None:
    prompt = torch.full((3, LENGTH), MASK)
    prompt[0, :5], prompt[1, :], prompt[2, :2] = 1, 2, 0
    denoiser = Tiny(0)
    revealed: list[tuple[int, int]] = []
    x = draw(denoiser, prompt=prompt, positions_per_step=2, observe=Progress(lambda *n: revealed.append(n)))
    assert denoiser.rows[1:] == [2, 1]  # the first call reads the size of the vocabulary
    assert revealed == [(3, 5), (5, 5)]
    assert torch.equal(x[prompt != MASK], prompt[prompt != MASK])
    assert (x != MASK).all()


def test_prompt_is_not_written_to_and_a_full_prompt_is_returned() -> None:
    prompt = torch.full((2, LENGTH), MASK)
    draw(prompt=prompt)
    draw(prompt=prompt, steps=2)
    assert (prompt == MASK).all()
    full = torch.ones(2, LENGTH, dtype=torch.long)
    assert torch.equal(draw(prompt=full), full)
    assert torch.equal(draw(prompt=full, steps=4, guidance=Guidance(TokenRatio(Tiny(1)), stabilise=False)), full)


def test_empty_batch() -> None:
    assert draw(batch=0).shape == (0, LENGTH)
    assert draw(batch=0, steps=2).shape == (0, LENGTH)


@pytest.mark.parametrize("noise", [LogLinear(), Cosine()])
def test_networks_see_the_time_of_the_revealed_share(noise: Any) -> None:
    """The denoiser sees the share before the reveal, a sequence ratio the share after it."""
    after: list[Tensor] = []

    def f(x: Tensor, t: Tensor) -> Tensor:
        after.append(t)
        assert ((x != MASK).sum(-1) == round(noise.alpha(t[0]).item() * LENGTH)).all()
        return torch.zeros(len(x))

    denoiser = Tiny(0)
    draw(denoiser, schedule=noise, guidance=Guidance(SequenceRatio(f), n_ratio=2))
    shares = [noise.alpha(t)[0].item() * LENGTH for t in denoiser.times]
    assert shares == pytest.approx(range(LENGTH), abs=1e-4)
    assert [noise.alpha(t)[0].item() * LENGTH for t in after] == pytest.approx(range(1, LENGTH + 1), abs=1e-4)


def test_ancestral_evaluates_only_rows_that_change() -> None:
    """With 1000 steps and 6 positions nearly every step reveals nothing; never more calls than reveals."""
    denoiser, ratio = Tiny(0), Tiny(1, False)
    draw(denoiser, steps=1000, guidance=Guidance(TokenRatio(ratio)))
    assert sum(denoiser.rows) == sum(ratio.rows) <= 5 * LENGTH
    raw = Tiny(0)
    draw(raw, steps=1000, guidance=Guidance(TokenRatio(Tiny(1, False)), stabilise=False))
    assert sum(raw.rows) <= 5 * LENGTH  # one evaluation after each change


def test_planner_decides_the_order_and_certain_positions_come_first() -> None:
    """With temperature 0 the highest score goes first; "confidence" starts at the surest position."""
    seen: list[Tensor] = []

    def left_first(x: Tensor) -> Tensor:
        seen.append((x == MASK).sum(0))
        return -torch.arange(LENGTH).float().expand_as(x)

    draw(planner=left_first, planner_temperature=0.0)
    expected = [[0] * step + [5] * (LENGTH - step) for step in range(LENGTH)]
    assert [counts.tolist() for counts in seen] == expected
    for planner in ("confidence", "margin", "entropy"):
        order: list[Tensor] = []

        def graded(x: Tensor, t: Tensor, order: list[Tensor] = order) -> Tensor:
            order.append((x == MASK).sum(0))
            sharp = torch.tensor([1.0, 4.0, 2.0, 6.0, 3.0, 5.0])
            logits = sharp[:, None] * torch.tensor([0.0, 1.0, 0.2, -math.inf, 0.1, 0.0, 0.0])
            return logits.log_softmax(-1).expand(len(x), -1, -1)

        draw(graded, planner=planner)
        left = torch.stack([*order, torch.zeros(LENGTH, dtype=torch.long)])
        assert (left[:-1] - left[1:]).argmax(-1).tolist() == [3, 5, 1, 4, 2, 0]


def test_temperature_zero_and_small_nucleus_take_the_most_likely_token() -> None:
    ratio = Guidance(TokenRatio(Tiny(1, False)), n_ratio=4)
    order: dict[str, Any] = {
        "planner": lambda x: -torch.arange(LENGTH).float().expand_as(x),
        "planner_temperature": 0.0,
    }
    cold = draw(guidance=ratio, temperature=0.0, **order)
    assert torch.equal(cold, draw(seed=9, guidance=ratio, top_p=1e-6, **order))
    assert (cold == cold[0]).all()
    assert not torch.equal(cold, draw(guidance=ratio, **order))


def test_nucleus_is_the_least_sufficient_set() -> None:
    law = torch.tensor([0.1, 0.4, 0.2, 0.0, 0.3, 0.0, 0.0]).log()
    for top_p, kept in ((0.4, {1}), (0.41, {1, 4}), (0.75, {1, 4, 2}), (1.0, {0, 1, 2, 4})):
        x = draw(lambda x, t: law.expand(*x.shape, -1), batch=400, top_p=top_p)
        assert set(x.unique().tolist()) == kept


def test_gamma_may_follow_the_revealed_share() -> None:
    """Guidance towards token 1 that starts after half of the sequence leaves the first half alone."""
    pull = torch.zeros(V)
    pull[1] = 1.0
    even = torch.full((V,), -math.log(V - 1))
    guidance = Guidance(TokenRatio(lambda x, t: pull.expand(*x.shape, -1)), gamma=lambda share: 60.0 * (share >= 0.5))
    order: dict[str, Any] = {
        "planner": lambda x: -torch.arange(LENGTH).float().expand_as(x),
        "planner_temperature": 0.0,
    }
    x = draw(lambda x, t: even.expand(*x.shape, -1), batch=600, guidance=guidance, **order)
    assert (x[:, 3:] == 1).all()
    assert (x[:, :3] == 1).double().mean() < 0.4


long_prompt = torch.full((2, LENGTH), MASK)
token_ratio = TokenRatio(Tiny(1, False))
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"steps": 4, "planner": "random"}, "exclude one another"),
    "k in ancestral": ({"steps": 4, "positions_per_step": 2}, "exclude one another"),
    "steps": ({"steps": 0}, "steps must be at least 1"),
    "planner": ({"planner": "best"}, "planner 'best' is unknown; choose random, confidence"),
    "positions": ({"positions_per_step": 0}, "positions_per_step must be at least 1, got 0"),
    "temperature": ({"temperature": -0.1}, "temperature must be finite and not negative"),
    "planner temperature": ({"planner_temperature": math.nan}, "planner_temperature"),
    "top_p zero": ({"top_p": 0.0}, "top_p must lie in"),
    "top_p large": ({"top_p": 1.1}, "top_p must lie in"),
    "n_ratio": ({"guidance": Guidance(token_ratio, n_ratio=V + 1)}, "n_ratio = 8 exceeds the vocabulary of 7"),
    "no length": ({"length": None}, "batch >= 0 and length >= 1"),
    "mask index": ({"mask_index": -1}, "mask_index = -1 is no id"),
    "prompt shape": ({"prompt": long_prompt[0]}, "prompt must be Long"),
    "prompt kind": ({"prompt": long_prompt.float()}, "prompt must be Long"),
    "prompt length": ({"prompt": long_prompt, "length": 9}, r"prompt has shape \(2, 6\)"),
    "prompt batch": ({"prompt": long_prompt, "batch": 3}, r"prompt has shape \(2, 6\)"),
    "prompt token": ({"prompt": long_prompt.clone().fill_(V)}, "prompt holds token 7; ids must lie in 0..6"),
    "prompt negative": ({"prompt": long_prompt - 9}, "prompt holds token -6"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(UserError, match=message):
        draw(**options)


def test_ancestral_mode_copies_its_rows_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every step: which rows a step evaluates is drawn beforehand."""
    made: list[int] = []
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *given, **options: made.append(1) or tensor(*given, **options))
    calls = []
    for steps in (1, 40):
        made.clear()
        draw(Tiny(0, False), steps=steps)
        calls.append(len(made))
    assert calls[0] == calls[1] > 0
