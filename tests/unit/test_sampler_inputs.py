"""A sampler that is given what it did not expect: one line, or the value that the user meant; never a silent sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gtl_lightning import Blocks, Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.core.continuous import sample_continuous
from gtl_lightning.core.guidance import tilt
from gtl_lightning.core.noise import Absorbing, Uniform
from gtl_lightning.core.protocols import EVERYWHERE, Look
from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.likelihood import nelbo
from gtl_lightning.evaluation.masked_likelihood import Masking
from gtl_lightning.networks import MaskedDenoiser, RatioEnsemble, SequenceRatioNetwork, TokenRatioNetwork
from gtl_lightning.papers.gtl import importance_draws
from tests.unit.test_sampling import LENGTH, MASK, Tiny, V, draw, sequence_f

NAN, INF = math.nan, math.inf
LEFT_FIRST: dict[str, Any] = {
    "planner": lambda x: -torch.arange(x.shape[1]).float().expand_as(x),
    "planner_temperature": 0.0,
}


def constant(*values: float, dtype: torch.dtype = torch.float32) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser or token ratio that gives the same values everywhere."""
    row = torch.tensor(values, dtype=dtype)
    return lambda x, t: row.expand(*x.shape, -1)


EVEN = constant(0.0, 0.0, 0.0, -INF, 0.0, 0.0, 0.0)


def after(revealed: int, value: float, size: int | None = V) -> Callable[[Tensor, Tensor], Tensor]:
    """Zeros, but `value` in one entry once that many positions are revealed; Float[b] without a size."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        out = torch.zeros(len(x)) if size is None else torch.zeros(*x.shape, size)
        if size is not None:
            out[..., 1] = torch.where((x != MASK).sum(-1) >= revealed, value, 0.0)[:, None]
        else:
            out = torch.where((x != MASK).sum(-1) >= revealed, value, 0.0)
        return out

    return network


class WithNaN(Tiny):
    """A denoiser whose checkpoint holds a NaN."""

    def __init__(self) -> None:
        super().__init__(0)
        self.out[0, 0] = NAN


def token(f: Any, **options: Any) -> dict[str, Any]:
    return {"guidance": Guidance(TokenRatio(f), **options)}


def sequence(f: Any, **options: Any) -> dict[str, Any]:
    return {"guidance": Guidance(SequenceRatio(f), **options)}


# name -> denoiser, options, and the line
NOT_NUMBERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "denoiser NaN": (constant(*[NAN] * V), {}, r"the denoiser \(<lambda>\) gave NaN or infinity.* at step 1"),
    "denoiser NaN later": (after(3, NAN), {}, "denoiser .* at step 4"),
    "denoiser +inf": (after(0, INF), {}, "the denoiser"),
    "denoiser all -inf": (constant(*[-INF] * V), {}, "no probability to any token but the mask"),
    "all mass on the mask": (constant(-INF, -INF, -INF, 0.0, -INF, -INF, -INF), {}, "no probability to any token but"),
    "checkpoint": (WithNaN(), {}, r"the denoiser \(WithNaN\) gave NaN"),
    "NaN and a nucleus": (after(0, NAN), {"top_p": 0.5}, "the denoiser"),
    "NaN at temperature 0": (after(0, NAN), {"temperature": 0.0}, "the denoiser"),
    "NaN, ancestral": (after(0, NAN), {"steps": 3}, "the denoiser .* at step . of 3"),
    "NaN, by confidence": (after(0, NAN), {"planner": "confidence"}, "the denoiser"),
    "NaN, by margin": (after(2, NAN), {"planner": "margin"}, "the denoiser .* at step 3"),
    "token ratio NaN": (EVEN, token(after(2, NAN)), r"the ratio \(network\) gave NaN or infinity at step 3"),
    "token ratio +inf": (EVEN, token(after(0, INF)), "the ratio"),
    "token ratio NaN, pruned": (EVEN, token(after(0, NAN), n_ratio=5), "the ratio"),
    "token ratio NaN, ancestral": (EVEN, {**token(after(0, NAN)), "steps": 2}, "the ratio"),
    "sequence ratio NaN": (EVEN, sequence(after(2, NAN, None)), "the ratio .* at step 2"),
    "sequence ratio +inf": (EVEN, sequence(after(0, INF, None), n_ratio=2), "the ratio"),
    "own ratio NaN, raw": (
        EVEN,
        {**sequence(lambda x, t: torch.where((x == MASK).all(-1), NAN, 0.0), stabilise=False), "steps": 2},
        "the ratio",
    ),
    "planner NaN": (EVEN, {"planner": lambda x: torch.full(x.shape, NAN)}, r"the planner \(<lambda>\) gave NaN"),
    "planner one NaN": (EVEN, {"planner": lambda x: x.float().index_fill(1, torch.tensor(2), NAN)}, "the planner"),
    "planner +inf": (EVEN, {"planner": lambda x: torch.full(x.shape, INF)}, "the planner"),
}


@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_what_is_no_number_is_refused_by_the_name_of_who_gave_it(name: str) -> None:
    denoiser, options, line = NOT_NUMBERS[name]
    with pytest.raises(UserError, match=line) as caught:
        draw(denoiser, **options)
    assert "\n" not in str(caught.value)


def test_the_issue_of_zeros_for_nan_and_of_masks_for_mass_on_the_mask() -> None:
    with pytest.raises(UserError, match="the denoiser"):
        sample(lambda x, t: torch.full((*x.shape, 6), math.nan), mask_index=5, batch=4, length=8)
    with pytest.raises(UserError, match="no probability to any token but the mask"):
        sample(constant(0.0, -INF, -INF), mask_index=0, batch=4, length=8)


@pytest.mark.parametrize("entry", [0, 1, 4])
def test_a_network_with_one_bad_weight_is_refused(entry: int) -> None:
    """The project's own denoiser, which is not normalised a second time, is looked at all the same."""
    denoiser = small().requires_grad_(False)
    denoiser.output.bias[entry] = NAN
    with pytest.raises(UserError, match=r"the denoiser \(MaskedDenoiser\) gave NaN"):
        sample(denoiser, mask_index=denoiser.config.mask_index, batch=2, length=4)


def test_scores_of_unmasked_positions_and_impossible_tokens_are_not_read() -> None:
    """A planner's NaN where nothing is masked, a ratio's where p excludes the token, r = 0, and gamma = 0."""

    def planner(x: Tensor) -> Tensor:
        return torch.where(x == MASK, -torch.arange(LENGTH).float(), NAN)

    left = draw(EVEN, planner=planner, planner_temperature=0.0)
    assert torch.equal(left, draw(EVEN, **LEFT_FIRST))
    at_the_mask = constant(0.0, 0.0, 0.0, NAN, 0.0, 0.0, 0.0)
    assert torch.equal(draw(EVEN, **token(at_the_mask)), draw(EVEN))
    assert torch.equal(draw(EVEN, **token(constant(*[NAN] * V), gamma=0.0)), draw(EVEN))
    only_two = constant(-INF, -INF, 0.0, -INF, -INF, -INF, -INF)
    assert (draw(EVEN, **token(only_two)) == 2).all()


def test_low_temperature_in_half_precision_takes_the_likeliest_token() -> None:
    law = [-9.0, -8.0, -0.5, -INF, -7.0, -1.0, -3.0]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for temperature in (1e-5, 1e-38, 1e-300):
            x = draw(constant(*law, dtype=dtype), temperature=temperature)
            assert (x == 2).all(), (dtype, temperature)


def test_low_planner_temperature_takes_the_highest_score() -> None:
    order: list[list[int]] = []

    def watching(x: Tensor, t: Tensor) -> Tensor:
        order.append((x == MASK).sum(0).tolist())
        return EVEN(x, t)

    for dtype in (torch.float16, torch.float32):
        order.clear()
        planner = lambda x, dtype=dtype: (-100.0 * torch.arange(LENGTH)).to(dtype).expand_as(x)  # noqa: E731
        draw(watching, planner=planner, planner_temperature=1e-40)
        assert order == [[0] * step + [5] * (LENGTH - step) for step in range(LENGTH)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gamma_is_the_number_given_whatever_the_denoiser_computes_in(dtype: torch.dtype) -> None:
    """Values that half precision holds exactly: only a rounded gamma (1.1016 in bf16) could tell the samples apart."""
    law, ratio = [-1.0, -2.0, -3.0, -INF, -1.5, -2.5, -0.5], constant(*[16.0, 17.0, 18.5, 0.0, 15.0, 20.0, 3.0])
    half, single = (
        draw(constant(*law, dtype=d), batch=3000, **token(ratio, gamma=1.1)) for d in (dtype, torch.float32)
    )
    assert torch.equal(half, single)


def test_gamma_is_exact_in_double_precision() -> None:
    """gamma = fl32(1.1) is 2.4e-8 too large, which times 1e8 would turn the choice."""
    denoiser = constant(0.0, -1.1e8 - 1, -INF, dtype=torch.float64)
    ratio = constant(0.0, 1e8, 0.0, dtype=torch.float64)
    x = sample(denoiser, mask_index=2, batch=3, length=2, temperature=0.0, **token(ratio, gamma=1.1))
    assert (x == 0).all()


def test_large_gamma_in_half_precision_follows_the_ratio() -> None:
    ratio = constant(*[1.0, 2.0, 0.5, 0.0, 1.5, 0.0, 1.0], dtype=torch.float16)
    x = draw(constant(*[-2.0] * V, dtype=torch.float16), **token(ratio, gamma=1e5))
    assert (x == 1).all()
    half = [torch.zeros(2, dtype=torch.float16), torch.tensor([1.0, 0.0], dtype=torch.float16)]
    assert tilt(*half, 1e5).tolist() == [1e5, 0.0]


@pytest.mark.parametrize("gamma", [1e39, 1e7, INF, -1.0, NAN, "1", None, torch.ones(3), lambda s: NAN, lambda s: [s]])
def test_what_is_no_strength_is_refused(gamma: Any) -> None:
    with pytest.raises(UserError, match="gamma must be") as caught:
        draw(EVEN, **token(EVEN, gamma=gamma))
    assert "\n" not in str(caught.value)


def logits(x: Tensor, t: Tensor) -> Tensor:
    """Not normalised: a number of its own at every position, and mass on the mask."""
    own = torch.arange(x.shape[1]).double()[:, None] * torch.tensor([0.3, -0.7, 1.1, 4.0, 0.2, 0.9, -1.0]).double()
    seen = torch.where(x == MASK, 0, x).sum(-1).double()[:, None, None]
    return own.cos() * (1 + 0.1 * seen) + (own.sum(-1, keepdim=True) * 2).sin() * 5


def normalised(x: Tensor, t: Tensor) -> Tensor:
    return logits(x, t).index_fill(-1, torch.tensor(MASK), -INF).log_softmax(-1)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    "mode", [{"planner": name} for name in ("random", "confidence", "margin", "entropy")] + [{"steps": 4}], ids=str
)
def test_logits_sample_what_their_law_samples(mode: dict[str, Any], guided: bool) -> None:
    """What Hugging Face models give, in every order: the surest position is that of the law, not of the logits."""
    options = mode | (token(Tiny(1, False), n_ratio=3) if guided else {})
    assert torch.equal(draw(logits, batch=40, **options), draw(normalised, batch=40, **options))


def test_mass_on_the_mask_goes_to_the_other_tokens_by_their_share() -> None:
    """The surest of two positions has .6 of what is left, not .45 beside .5 of the mask."""
    law = torch.tensor([[0.30, 0.20, 0.50], [0.45, 0.55, 0.0]]).log()
    first: list[Tensor] = []

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        first.append(x[0] == 2)
        return law.expand(len(x), -1, -1)

    sample(denoiser, mask_index=2, batch=1, length=2, planner="confidence")
    assert first[1].tolist() == [False, True]


def small(**options: Any) -> Any:
    from gtl_lightning.networks import BackboneConfig, MaskedDenoiser, seeded

    config = BackboneConfig(9, 6, 8, 2, 2, mask_index=7, pad_index=8, cond_dim=4, **options)
    with seeded(3):
        network = MaskedDenoiser(config)
        for weight in network.parameters():
            weight.data.add_(0.5 * torch.randn(weight.shape))
    return network


@pytest.mark.parametrize("who", ["denoiser", "method", "ratio", "planner"])
def test_dropout_is_off_while_sampling_and_the_mode_is_as_before(who: str) -> None:
    model = small(dropout=0.5)
    tokens = small().eval()
    asked: Any = {
        "denoiser": (model, {}),
        "method": (model.forward, {}),
        "ratio": (tokens, {"guidance": Guidance(TokenRatio(model), n_ratio=7)}),
        "planner": (tokens, {"planner": Summed(model)}),
    }
    denoiser, options = asked[who]
    seen = [module for module in (model, *model.modules())]
    drawn = []
    for training in (False, True):
        model.train(training)
        model.backbone.blocks[0].train(not training)  # modes may be mixed
        if who == "planner":
            options["planner"].train(training)
        before = [module.training for module in seen]
        options = options | {"generator": torch.Generator().manual_seed(0)}
        if not training:
            model.eval()
        drawn.append(sample(denoiser, mask_index=7, batch=20, length=6, **options))
        if training:
            assert [module.training for module in seen] == before
    assert torch.equal(*drawn)


class Summed(nn.Module):
    """A planner with a network in it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.encode(x, torch.zeros(len(x))).sum(-1)


def test_the_mode_is_as_before_after_an_error() -> None:
    model = small(dropout=0.5).train()
    with pytest.raises(UserError, match="planner"):
        sample(model, mask_index=7, batch=2, length=6, planner=lambda x: torch.zeros(3))
    assert all(module.training for module in model.modules())


def test_a_model_output_gives_its_logits() -> None:
    def model(x: Tensor, t: Tensor) -> Any:
        return SimpleNamespace(logits=logits(x, t), hidden_states=None)

    assert torch.equal(draw(model), draw(logits))


two_dims = torch.zeros(5, LENGTH)
SHAPES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "tuple": (
        lambda x, t: (logits(x, t),),
        {},
        r"denoiser \(<lambda>\) gave a tuple; let it return one tensor of shape \[5, 6, v\]",
    ),
    "none": (lambda x, t: None, {}, "gave a NoneType"),
    "array": (lambda x, t: logits(x, t).numpy(), {}, "gave a ndarray"),
    "no vocabulary": (lambda x, t: x.float(), {}, r"shape \[5, 6\]; let it return one tensor of shape \[5, 6, v\]"),
    "vocabulary before positions": (
        lambda x, t: logits(x, t).mT,
        {},
        r"shape \[5, 7, 6\]; let it return one tensor of shape \[5, 6, v\]",
    ),
    "one position": (
        lambda x, t: logits(x, t)[:, :1],
        {},
        r"shape \[5, 1, 7\]; let it return one tensor of shape \[5, 6, v\]",
    ),
    "one row": (lambda x, t: logits(x, t)[:1], {}, r"shape \[1, 6, 7\]"),
    "complex": (lambda x, t: logits(x, t) * 1j, {}, "real numbers"),
    "only the mask": (constant(0.0), {"mask_index": 0}, "knows no token but the mask"),
    "token ratio, other vocabulary": (
        logits,
        token(lambda x, t: torch.zeros(*x.shape, V + 1)),
        r"the ratio \(<lambda>\) knows 8 tokens, the denoiser 7",
    ),
    "token ratio, sequence-level": (
        logits,
        token(sequence_f),
        r"shape \[5\]; let it return one tensor of shape \[5, 6, v\]",
    ),
    "token ratio, tuple": (logits, token(lambda x, t: (x,)), "the ratio .* gave a tuple"),
    "sequence ratio, a column": (
        logits,
        sequence(lambda x, t: torch.zeros(len(x), 1), n_ratio=2),
        r"the ratio .* gave a tensor of shape \[10, 1\]; let it return one tensor of shape \[10\]",
    ),
    "sequence ratio, one number": (logits, sequence(lambda x, t: torch.tensor(0.0)), r"shape \[\]; let it return"),
    "sequence ratio, token-level": (
        logits,
        sequence(Tiny(1, False)),
        r"shape \[35, 6, 7\]; let it return one tensor of shape \[35\]",
    ),
    "planner, one row": (
        logits,
        {"planner": lambda x: torch.zeros(LENGTH)},
        r"planner .* shape \[6\]; let it return one tensor of shape \[5, 6\]",
    ),
    "planner, a column": (logits, {"planner": lambda x: torch.zeros(*x.shape, 1)}, r"planner .* shape \[5, 6, 1\]"),
    "planner, list": (logits, {"planner": lambda x: x.tolist()}, "planner .* gave a list"),
    "generator": (logits, {"generator": 3}, "generator is a int, not a Generator; give for example torch.Generator"),
    "guidance": (logits, {"guidance": TokenRatio(logits)}, "guidance is a TokenRatio, not a Guidance"),
    "blocks": (logits, {"blocks": 3}, r"blocks is a int, not a Blocks; give for example Blocks\(size\)"),
    "schedule": (logits, {"schedule": "cosine"}, "schedule is a str, not a NoiseSchedule"),
    "denoiser": (torch.zeros(3), {}, "the denoiser is a Tensor; give a function"),
    "planner": (logits, {"planner": 3}, "planner is a int; give a name or a function"),
    "temperature": (logits, {"temperature": "hot"}, "temperature must be finite and not negative .*, got 'hot'"),
    "top_p": (logits, {"top_p": None}, r"top_p must lie in \(0, 1\], got None"),
    "length": (logits, {"length": 2.5}, "length must be a whole number, got 2.5"),
    "positions": (logits, {"positions_per_step": 1.5}, "positions_per_step must be a whole number"),
    "steps": (logits, {"steps": 2.0}, "steps must be a whole number"),
    "one argument": (lambda x: logits(x, x), {}, r"callable \(<lambda>\) is called with 2 arguments; it takes \(x\)"),
    "three arguments": (lambda x, t, c: logits(x, t), {}, r"it takes \(x, t, c\) \(missing a required argument: 'c'\)"),
    "a module of one argument": (nn.Embedding(V, V), {}, r"\(Embedding\) is called with 2 arguments"),
    "token ratio of one argument": (logits, token(lambda x: x), "is called with 2 arguments"),
    "sequence ratio of one argument": (logits, sequence(lambda x: x), "is called with 2 arguments"),
    "planner of two arguments": (logits, {"planner": logits}, r"is called with one argument; it takes \(x"),
    "observer without arguments": (logits, {"observe": lambda: 0}, r"is called with one argument; it takes \(\)"),
    "gamma without arguments": (
        logits,
        {"guidance": Guidance(TokenRatio(logits), gamma=lambda: 1.0)},  # type: ignore[arg-type, misc]
        "is called with one argument",
    ),
    "no mask": (logits, {"mask_index": None}, "mask_index must be a whole number, got None"),
    "a mask that is a truth value": (logits, {"mask_index": True}, "mask_index must be a whole number, got True"),
    "a batch that is a truth value": (logits, {"batch": True}, "batch must be a whole number, got True"),
    "a prompt of no token": (logits, {"prompt": torch.zeros(5, 0, dtype=torch.long)}, "prompt has rows of no token"),
    "a prompt that is a list": (logits, {"prompt": [[MASK] * LENGTH] * 5}, "prompt is a list; give a tensor"),
    "no device": (logits, {"device": "gpu:0"}, "device = 'gpu:0' cannot be used"),
    "a device that is not there": (logits, {"device": "cuda:77"}, "device = 'cuda:77' cannot be used"),
}


def test_an_error_inside_of_a_callable_stays_what_it_is() -> None:
    with pytest.raises(TypeError, match="has no len"):
        sample(lambda x, t: len(3), mask_index=MASK, batch=2, length=3)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", SHAPES)
def test_another_shape_is_one_line_with_both_shapes(name: str) -> None:
    denoiser, options, line = SHAPES[name]
    options = {"mask_index": MASK, "batch": 5, "length": LENGTH, **options}
    with pytest.raises(UserError, match=line) as caught:
        sample(denoiser, **options)
    assert "\n" not in str(caught.value)


def test_factored_parts_of_another_shape_are_named() -> None:
    class Odd(Tiny):
        def __init__(self, part: str) -> None:
            super().__init__(0)
            self.part = part

        def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
            h = super().encode(x_t, t, look)
            return h[..., 0] if self.part == "encode" else h

        def decode(self, h: Tensor) -> Tensor:
            return super().decode(h)[:1] if self.part == "decode" else super().decode(h)

    with pytest.raises(
        UserError, match=r"encoder .Odd. gave a tensor of shape \[5, 6\]; let it return one tensor of shape \[5, 6, d\]"
    ):
        draw(Odd("encode"), planner="entropy")
    with pytest.raises(
        UserError, match=r"gave a tensor of shape \[5, 1\]; let it return one tensor of shape \[5, 1, d\]"
    ):
        draw(Odd("encode"))
    with pytest.raises(
        UserError, match=r"denoiser \(Odd\) gave a tensor of shape \[1, 7\]; let it return one tensor of shape \[5, v\]"
    ):
        draw(Odd("decode"))


def test_a_denoiser_that_names_another_mask_is_refused() -> None:
    with pytest.raises(UserError, match=r"mask_index = 3, but the mask of the denoiser \(MaskedDenoiser\) is 7"):
        sample(small(), mask_index=3, batch=2, length=4)


@pytest.mark.parametrize("members", [1, 2])
def test_a_ratio_that_names_another_mask_is_refused(members: int) -> None:
    """Not only the denoiser reads masks: a ratio that takes another id for them weighs what is no noise."""
    config = small().config
    own = [TokenRatioNetwork(config) for _ in range(members)]
    guidance = Guidance(TokenRatio(own[0] if members == 1 else RatioEnsemble(own)))
    other = replace(config, mask_index=3)
    with pytest.raises(UserError, match="mask_index = 3, but the mask of the ratio .* is 7; give that one"):
        sample(MaskedDenoiser(other), mask_index=3, batch=2, length=4, guidance=guidance)
    with pytest.raises(UserError, match="but the mask of the ratio"):
        nelbo(MaskedDenoiser(other), torch.zeros(2, 4, dtype=torch.long), Masking(mask_index=3, pad_index=8), guidance)
    pooled = Guidance(SequenceRatio(SequenceRatioNetwork(config)))
    with pytest.raises(UserError, match="but the mask of the ratio"):
        sample(MaskedDenoiser(other), mask_index=3, batch=2, length=4, guidance=pooled)


def test_padding_between_what_is_given_and_what_is_wanted_is_refused() -> None:
    """As of prompts padded on the right with masks put behind them: their masks would be read beside the padding."""
    inside = torch.tensor([[1, 2, 7, 7], [1, 8, 7, 7]])
    with pytest.raises(UserError, match="prompt: row 1 holds the padding, id 8, within it; put it before or behind"):
        sample(small(), mask_index=7, prompt=inside)
    around = torch.tensor([[8, 1, 7, 7], [1, 7, 8, 8], [8, 8, 8, 8], [1, 7, 7, 2]])
    assert not (sample(small(), mask_index=7, prompt=around) == 7).any()


def test_rows_that_a_network_knows_by_their_place_are_not_reordered() -> None:
    labels = torch.tensor([0, 1, 2])

    def labelled(x: Tensor, t: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(labels[: len(x), None].expand_as(x), V).float() * 50

    labelled.fixed_rows = True  # type: ignore[attr-defined]
    even = torch.full((3, 4), MASK)
    assert (draw(labelled, prompt=even) == labels[:, None]).all()
    uneven = even.clone()
    uneven[0, :2] = 4
    for options in ({}, {"blocks": Blocks(2)}):
        with pytest.raises(
            UserError, match="knows rows by their place, and those of the prompt hold different numbers"
        ):
            draw(labelled, prompt=uneven, **options)


def test_a_model_that_takes_the_time_for_an_attention_mask_is_refused() -> None:
    class Masked(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return torch.zeros(*input_ids.shape, V)

    with pytest.raises(UserError, match=r"\(Masked\) takes an attention mask where a denoiser takes the time; open it"):
        draw(Masked())
    model = Masked()
    assert draw(lambda x, t: model(x)).shape == (5, 6)


def test_scores_that_count_are_scores() -> None:
    """Integers and truth values, exactly as the numbers that they are."""
    floats = draw(planner=lambda x: torch.arange(LENGTH).double().expand_as(x) % 3)
    assert torch.equal(floats, draw(planner=lambda x: torch.arange(LENGTH).expand_as(x) % 3))
    cold = draw(planner_temperature=0.0, planner=lambda x: (torch.arange(LENGTH) > 2).expand_as(x))
    assert torch.equal(
        cold, draw(planner_temperature=0.0, planner=lambda x: (torch.arange(LENGTH) > 2).float().expand_as(x))
    )


class Broken(LogLinear):
    """A schedule without times, or without an order."""

    def __init__(self, alpha: float, inverse: float) -> None:
        self.values = alpha, inverse

    def alpha(self, t: Tensor) -> Tensor:
        return super().alpha(t) * self.values[0]

    def inverse(self, alpha: Tensor) -> Tensor:
        return super().inverse(alpha) * self.values[1]


@pytest.mark.parametrize(
    ("schedule", "options", "line"),
    [
        (Broken(1.0, NAN), {}, "a time that is not finite"),
        (Broken(NAN, 1.0), {"steps": 3}, "must rise"),
        (Broken(-1.0, 1.0), {"steps": 3}, "must rise"),
    ],
)
def test_a_schedule_that_is_none_is_refused(schedule: LogLinear, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        draw(EVEN, schedule=schedule, **options)


CONTINUOUS: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "denoiser NaN": (constant(*[NAN] * V), Absorbing(MASK), {}, "the denoiser .* at t = 1"),
    "uniform NaN": (constant(*[NAN] * V), Uniform(V), {}, "the denoiser"),
    "only the mask": (constant(-INF, -INF, -INF, 0.0, -INF, -INF, -INF), Absorbing(MASK), {}, "no probability"),
    "token ratio NaN": (EVEN, Absorbing(MASK), token(constant(*[NAN] * V)), "the ratio"),
    "sequence ratio NaN": (EVEN, Uniform(3), sequence(lambda x, t: torch.full((len(x),), NAN)), "the ratio"),
    "token ratio, vocabulary": (EVEN, Absorbing(MASK), token(lambda x, t: torch.zeros(*x.shape, 3)), r"\[5, 6, 7\]"),
    "sequence ratio, column": (
        EVEN,
        Uniform(3),
        sequence(lambda x, t: torch.zeros(len(x), 1)),
        r"let it return one tensor of shape \[",
    ),
    "tuple": (lambda x, t: (x,), Absorbing(MASK), {}, "the denoiser .* gave a tuple"),
    "gamma": (EVEN, Absorbing(MASK), token(EVEN, gamma=lambda share: NAN), "gamma must be"),
    "leap NaN": (EVEN, Absorbing(MASK), {"leap": lambda rate, d: rate * NAN}, "the leap"),
    "leap shape": (EVEN, Absorbing(MASK), {"leap": lambda rate, d: rate[..., 0]}, r"the leap .* shape \[5, 6\]"),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_in_continuous_time_too(name: str) -> None:
    denoiser, noise, options, line = CONTINUOUS[name]
    with pytest.raises(UserError, match=line) as caught:
        sample_continuous(denoiser, noise, batch=5, length=LENGTH, steps=3, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("noise", [Absorbing(MASK), Uniform(3)], ids=lambda noise: type(noise).__name__)
def test_logits_in_continuous_time(noise: Any) -> None:
    """Shifted, with mass on tokens that this noise does not have, and a model in training mode."""

    def clean(x: Tensor, t: Tensor) -> Tensor:
        out = torch.tensor([MASK]) if isinstance(noise, Absorbing) else torch.arange(3, V)
        return logits(x, t).index_fill(-1, out, -INF).log_softmax(-1)

    drawn = [
        sample_continuous(
            f,
            noise,
            batch=50,
            length=LENGTH,
            steps=5,
            generator=torch.Generator().manual_seed(1),
            **token(Tiny(1, False)),
        )
        for f in (logits, clean)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("values", [[0.0, NAN], [0.0, INF], [-INF, -INF]])
def test_nothing_is_drawn_by_a_ratio_that_is_none(values: list[float]) -> None:
    with pytest.raises(UserError, match="log-ratio to draw by"):
        importance_draws(torch.tensor(values), 3, torch.Generator())
    assert (importance_draws(torch.tensor([-INF, 0.0]), 5, torch.Generator()) == 1).all()


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: Guidance(TokenRatio(torch.zeros(3))), "the ratio is a Tensor; give a function"),  # type: ignore[arg-type]
        (lambda: Guidance(SequenceRatio(sequence_f), n_ratio=2.5), "n_ratio must be a whole number, got 2.5"),  # type: ignore[arg-type]
        (lambda: Guidance(SequenceRatio(sequence_f), chunk=1.5), "chunk must be a whole number, got 1.5"),  # type: ignore[arg-type]
        (lambda: Blocks(2.5), "size of blocks must be a whole number, got 2.5"),  # type: ignore[arg-type]
        (lambda: Blocks(2, refresh=1.5), "refresh of blocks must be a whole number, got 1.5"),  # type: ignore[arg-type]
    ],
)
def test_settings_of_another_kind(build: Callable[[], object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        build()


def padded() -> Any:
    """A uniform law over tokens 0..4, whose id 4 is also what fills up rows; 5 is the mask."""

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 6)

    denoiser.pad_index = 4  # type: ignore[attr-defined]
    return denoiser


@pytest.mark.parametrize("order", [{}, {"steps": 6}, {"positions_per_step": 2}])
def test_what_fills_up_a_row_is_not_drawn_into_it(order: dict[str, int]) -> None:
    """A row's own length is that of its prompt: padding that is drawn would change its times and strengths."""
    prompt = torch.full((500, 6), 5)
    prompt[:, :2] = 4
    log_r = torch.tensor([0.0, 0.0, 0.0, 1.5, 1.5, 0.0])
    guidance = Guidance(TokenRatio(lambda x, t: log_r.expand(*x.shape, 6)), gamma=1.0)
    x = sample(padded(), mask_index=5, prompt=prompt, guidance=guidance, generator=seeded_generator(), **order)
    assert (x[:, :2] == 4).all()
    share = torch.bincount(x[:, 2:].flatten(), minlength=6) / x[:, 2:].numel()
    exact = torch.softmax(torch.tensor([0.0, 0.0, 0.0, 1.5, -math.inf, -math.inf]), 0)
    torch.testing.assert_close(share, exact, atol=0.04, rtol=0)


def seeded_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_row_that_is_full_may_end_in_what_others_call_padding() -> None:
    x = sample(padded(), mask_index=5, batch=200, length=4, generator=seeded_generator())
    assert (x == 4).any()


@pytest.mark.parametrize("temperature", [1e39, 1e7, math.inf])
def test_a_temperature_beyond_single_precision_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature"):
        sample(padded(), mask_index=5, batch=2, length=4, temperature=temperature)


def test_a_callable_that_writes_into_its_input_is_refused() -> None:
    def writes(x: Tensor, t: Tensor) -> Tensor:
        x.fill_(0)
        return torch.zeros(*x.shape, 6)

    def moves(x: Tensor) -> Tensor:
        x.add_(1)
        return torch.zeros(x.shape)

    for arguments in ({"denoiser": writes}, {"denoiser": padded(), "planner": moves}):
        with pytest.raises(UserError, match="writes into"):
            sample(**arguments, mask_index=5, batch=2, length=4)


class Held:
    """A network behind an object of somebody's own."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)


class Slotted:
    """The same, without a dictionary of its own."""

    __slots__ = ("networks",)

    def __init__(self, network: torch.nn.Module) -> None:
        self.networks = [network]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.networks[0](x, t)


def of_a_script(x: Tensor, t: Tensor) -> Tensor:
    """What a notebook writes: the model is a global name."""
    return GLOBAL["model"](x, t)


GLOBAL: dict[str, torch.nn.Module] = {}


@pytest.mark.parametrize(
    "how",
    ["partial", "closure", "object", "partial of an object", "global", "container", "default", "keyword", "slots"],
)
def test_dropout_is_off_behind_what_holds_the_module(how: str) -> None:
    class Noisy(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, scale: float = 1.0) -> Tensor:
            assert not self.training
            return torch.zeros(*x.shape, 6)

    network = Noisy().train()
    GLOBAL["model"], kept = network, {"models": [network]}
    holders: dict[str, Any] = {
        "global": of_a_script,
        "container": lambda x, t: kept["models"][0](x, t),
        "default": lambda x, t, model=network: model(x, t),
        "keyword": lambda x, t, *, model=network: model(x, t),
        "slots": Slotted(network),
        "partial": partial(network, scale=2.0),
        "closure": lambda x, t: network(x, t),
        "object": Held(network),
        "partial of an object": partial(Held(network)),
    }
    sample(holders[how], mask_index=5, batch=2, length=3)
    assert network.training
