"""Guidance meets the vocabulary no oftener than it must: one projection with a head, rows of it for few candidates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import Guidance, Step, TokenRatio, sample
from gtl_lightning.core.forward import gumbel_noise
from gtl_lightning.core.planners import CERTAINTY
from gtl_lightning.core.protocols import Hidden
from gtl_lightning.errors import UserError
from gtl_lightning.networks import (
    BackboneConfig,
    DifferenceTokenRatio,
    FeatureTokenRatio,
    MaskedDenoiser,
    TokenRatioNetwork,
    seeded,
)
from gtl_lightning.networks.ratios import TokenLevel

V, MASK, L = 260, 3, 6
CONFIG = BackboneConfig(vocab_size=V, length=L, width=16, depth=1, heads=2, mask_index=MASK, pad_index=0, cond_dim=0)
KINDS = ("head", "head and own", "own", "difference")


def shaken(network: Any) -> Any:
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return network.eval()


def made(kind: str) -> tuple[MaskedDenoiser, TokenLevel]:
    with seeded(1):
        denoiser = shaken(MaskedDenoiser(CONFIG))
        ratio = {
            "head": lambda: FeatureTokenRatio(denoiser, 3),
            "head and own": lambda: FeatureTokenRatio(denoiser, 3, replace(CONFIG, width=8)),
            "own": lambda: TokenRatioNetwork(CONFIG),
            "difference": lambda: DifferenceTokenRatio(denoiser),
        }[kind]()
        return denoiser, shaken(ratio)


def draw(denoiser: MaskedDenoiser, f: Any, observe: Any = None, **options: Any) -> Tensor:
    guidance = Guidance(TokenRatio(f), **options)
    generator = torch.Generator().manual_seed(0)
    return sample(denoiser, batch=6, length=L, mask_index=MASK, guidance=guidance, generator=generator, observe=observe)


def never(*_: object) -> Tensor:
    raise AssertionError("the ratio meets the whole vocabulary")


@pytest.mark.parametrize("kind", ["head", "head and own"])
@pytest.mark.parametrize("gamma", [0.0, 0.7, 3.0])
def test_the_tilted_states_are_those_of_the_guided_law(kind: str, gamma: float) -> None:
    """W (h + gamma d) + b + gamma bias = log p + gamma g up to a number a row, on all that has mass; 0 is p itself."""
    denoiser, ratio = made(kind)
    x, t = torch.full((4, L), MASK), torch.rand(4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h = ratio.encode(x, t)[:, 0]
        states, bias = ratio.tilted(h, torch.full((4, 1), gamma))  # type: ignore[operator]
        features = h[:, : denoiser.width]
        found = (denoiser.decode(states) + gamma * bias).log_softmax(-1)
        expected = (denoiser.decode(features) + gamma * ratio.decode(h)).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found[:, [MASK, 0]] == -math.inf).all()
    assert torch.equal(states, features) == (gamma == 0)


@pytest.mark.parametrize("kind", ["head", "head and own"])
def test_a_head_of_the_denoiser_takes_no_projection_of_its_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else changes: a callable that gives the same log-ratios, and a watched run, draw the same tokens."""
    denoiser, ratio = made(kind)

    def gamma(share: float) -> float:
        return 1.5 - share

    apart = draw(denoiser, lambda x_t, t: ratio(x_t, t), gamma=gamma)
    steps: list[Step] = []
    assert torch.equal(draw(denoiser, ratio, steps.append, gamma=gamma), apart)
    assert all(step.log_r is not None and step.log_r.shape[-1] == V for step in steps)
    monkeypatch.setattr(type(ratio), "decode", never)
    assert torch.equal(draw(denoiser, ratio, gamma=gamma, n_ratio=V), apart)
    assert torch.equal(draw(denoiser, ratio, gamma=gamma), apart)
    assert not torch.equal(draw(denoiser, ratio, gamma=0.0), apart)


def test_a_head_of_another_denoiser_is_asked_for_its_own_log_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    (denoiser, _), (_, ratio) = made("head"), made("head")
    expected = draw(denoiser, lambda x_t, t: ratio(x_t, t))
    assert torch.equal(draw(denoiser, ratio), expected)
    monkeypatch.setattr(FeatureTokenRatio, "decode", never)
    with pytest.raises(AssertionError):
        draw(denoiser, ratio)


@pytest.mark.parametrize("kind", KINDS)
def test_few_candidates_of_many_are_scored_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, ratio = made(kind)
    apart = draw(denoiser, lambda x_t, t: ratio(x_t, t), n_ratio=2)
    x, t = torch.full((3, L), MASK), torch.ones(3)
    row, position, tokens = torch.arange(3), torch.arange(3), torch.tensor([[5, 9], [V - 1, 1], [7, 7]])
    with torch.no_grad():
        expected = ratio(x, t)[row, position].gather(-1, tokens)
        hidden = Hidden(x, t)
        hidden.at(denoiser, row, position)
        monkeypatch.setattr(type(ratio), "decode", never)
        found = TokenRatio(ratio).log_ratio(x, t, t, row, position, tokens, hidden=hidden)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(draw(denoiser, ratio, n_ratio=2), apart)


@pytest.mark.parametrize("who", ["denoiser", "ratio"])
def test_who_gives_what_is_no_number_is_named(who: str) -> None:
    denoiser, ratio = made("head")
    with torch.no_grad():
        bad = denoiser.backbone.norm.weight if who == "denoiser" else ratio.up.bias  # type: ignore[union-attr]
        bad[2] = math.nan  # type: ignore[operator, index]
    with pytest.raises(UserError, match=rf"the {who} .*gave NaN or infinity.* at step 1"):
        draw(denoiser, ratio)


@pytest.mark.parametrize("shape", [(1,), (3, 7), (5, 257)])
def test_noise_is_gumbel_noise_of_torchs_own_exponential_stream(shape: tuple[int, ...]) -> None:
    """The same numbers, but for the last digit, from the same draws of the generator: samples stay what they were."""
    one, two = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    found = gumbel_noise(shape, one, "cpu")
    expected = -torch.empty(shape, dtype=torch.float64).exponential_(generator=two).log()
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(one.get_state(), two.get_state())


@pytest.mark.parametrize("planner", sorted(CERTAINTY))
def test_a_certainty_planner_reads_what_is_masked_and_nothing_twice(planner: str) -> None:
    """Last block and projection meet the masks of each step; tokens are drawn from the law that was scored."""
    denoiser, _ = made("head")
    last: list[int] = []
    met: list[int] = []
    denoiser.backbone.blocks[-1].down.register_forward_hook(lambda *found: last.append(found[2][..., 0].numel()))
    denoiser.output.register_forward_hook(lambda *found: met.append(found[2][..., 0].numel()))
    prompt = torch.full((3, L), MASK)
    prompt[0, [1, 4]] = 9  # rows with fewer masks leave the batch first
    x = sample(denoiser, mask_index=MASK, prompt=prompt, planner=planner, generator=torch.Generator().manual_seed(0))
    assert met == [6 + 6 + 4, 5 + 5 + 3, 4 + 4 + 2, 3 + 3 + 1, 2 + 2, 1 + 1]
    assert last == [3 * 6, 3 * 5, 3 * 4, 3 * 3, 2 * 2, 2 * 1]
    plain = sample(
        lambda x_t, t: denoiser(x_t, t),
        mask_index=MASK,
        prompt=prompt,
        planner=planner,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(x, plain)


def test_certainty_of_a_law_that_is_known() -> None:
    law = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    found = {name: score(law.log()).tolist() for name, score in CERTAINTY.items()}
    assert found["confidence"] == pytest.approx([math.log(0.5), math.log(0.7), 0.0])
    assert found["margin"] == pytest.approx([0.0, 0.6, 1.0])
    assert found["entropy"] == pytest.approx([-math.log(2), 0.7 * math.log(0.7) + 0.3 * math.log(0.1), 0.0])
