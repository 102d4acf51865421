"""Fast paths leave the law alone: block order, kept keys and values, one look at the device per call."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gtl_lightning import Blocks, Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.core.protocols import Look
from gtl_lightning.errors import UserError
from gtl_lightning.networks import Backbone, PositionNetwork, RatioEnsemble, SequenceRatioNetwork
from tests.oracle.enumeration import random_laws, total_variation, total_variation_bound
from tests.oracle.looking import CONFIG, MASK, L, draw, networks, partly_masked

LAWS = random_laws(vocab=3, length=3, seed=0)
TOKEN, SEQUENCE = TokenRatio(LAWS.token_log_ratio), SequenceRatio(LAWS.sequence_log_ratio)
N = 30_000


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("planner", ["random", "entropy"])
@pytest.mark.parametrize("ratio", [TOKEN, SEQUENCE], ids=["token", "sequence"])
def test_block_order_keeps_the_target(size: int, planner: str, ratio: SequenceRatio | TokenRatio) -> None:
    """Any order is exact, also the one from left to right in blocks."""
    x = sample(
        LAWS.denoiser,
        mask_index=LAWS.mask_index,
        batch=N,
        length=3,
        guidance=Guidance(ratio, chunk=50_000),
        planner=planner,
        blocks=Blocks(size),
        generator=torch.Generator().manual_seed(size),
    )
    assert total_variation(x, LAWS.q, LAWS) < total_variation_bound(LAWS.q, N)


def test_reuse_with_refresh_at_every_step_or_a_full_window_is_the_plain_path() -> None:
    denoiser, ratios = networks()
    for ratio in (None, *ratios):
        for options in ({}, {"positions_per_step": 3}, {"planner": "margin"}):
            plain = draw(denoiser, ratio, blocks=Blocks(4, refresh=1), **options)
            assert torch.equal(plain, draw(denoiser, ratio, blocks=Blocks(4, margin=L), **options))
    assert torch.equal(draw(denoiser), draw(denoiser, blocks=Blocks(L)))
    assert torch.equal(draw(denoiser), draw(denoiser, blocks=Blocks(100, refresh=2)))


def test_blocks_are_filled_from_left_to_right_and_few_passes_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, ratios = networks()
    widths: list[int] = []
    run = Backbone.forward

    def counted(self: Any, x_t: Tensor, t: Tensor, look: Look, *more: Any) -> Any:
        start, stop = look.window or (0, x_t.shape[1])
        widths.append(stop - start)
        return run(self, x_t, t, look, *more)

    monkeypatch.setattr(Backbone, "forward", counted)
    for ratio in (ratios[0], *ratios[2:4]):
        draw(denoiser, ratio, blocks=Blocks(4))
        assert widths == [L, L, 4, 4, 4, 4, 4, 4] * 2  # denoiser and ratio, two blocks of four steps
        widths.clear()
    draw(denoiser, ratios[1], blocks=Blocks(4, margin=1, refresh=2))
    assert widths == [L, 5] * 4
    seen: list[list[int]] = []

    def watching(x: Tensor) -> Tensor:
        seen.append((x == MASK).sum(0).tolist())
        return torch.zeros(x.shape)

    draw(denoiser, planner=watching, blocks=Blocks(4))
    assert [sum(left[4:]) for left in seen[:4]] == [24] * 4
    assert [sum(left[:4]) for left in seen[4:]] == [0] * 4


class Looks(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a value, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(a is not None and a.dtype == torch.bool for a in args[1])
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "item"):
            self.count += 1
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Counts lists made of tensors, which wait as well and which no dispatch sees."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is Tensor.tolist
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planner": "entropy"},
        {"positions_per_step": 3},
        {"blocks": Blocks(4)},
        {"steps": True},
        {"planner": PositionNetwork(CONFIG).eval()},
        {"guidance": Guidance(SequenceRatio(RatioEnsemble([SequenceRatioNetwork(CONFIG).eval()])))},
    ],
)
def test_the_host_looks_at_the_device_once_a_call_not_once_a_step(options: dict[str, Any]) -> None:
    denoiser, ratios = networks()
    counts = []
    for length in (4, 8):
        with Looks() as looks, Lists() as lists:
            draw(denoiser, ratios[1], length=length, **({"steps": length} if "steps" in options else options))
        counts.append(looks.count + lists.count)
    # Per block at most, as rows are counted there; a longer text in one block looks no more often.
    assert counts[1] <= counts[0] + (2 if "blocks" in options else 0)


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ({"size": 0}, "size of blocks must be at least 1, got 0"),
        ({"size": 2, "margin": -1}, "margin of blocks must be at least 0, got -1"),
        ({"size": 2, "refresh": 0}, "refresh of blocks must be at least 1, got 0"),
    ],
)
def test_blocks_that_cannot_be(bad: dict[str, int], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Blocks(**bad)


def test_blocks_have_no_place_in_ancestral_mode() -> None:
    with pytest.raises(UserError, match="exclude one another"):
        draw(networks()[0], steps=3, blocks=Blocks(4))


class Unplaced:
    """A network that can only pass over everything."""

    def __init__(self, network: Any) -> None:
        self.network, self.decode = network, network.decode
        self.pad_index = getattr(network, "pad_index", None)

    def encode(self, x_t: Tensor, t: Tensor, look: Look, features: Tensor | None) -> Tensor:
        return look.of(self.network.encode(x_t, t, look.everywhere))

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("an encoder is asked in its two parts")


@pytest.mark.parametrize("options", [{}, {"positions_per_step": 3}, {"planner": "margin"}], ids=str)
def test_passes_at_the_revealed_places_draw_what_whole_passes_draw(options: dict[str, Any]) -> None:
    """With prompts of unequal length, so that rows want different numbers of positions."""
    denoiser, ratios = networks()
    prompt = partly_masked()[0]
    for ratio in (None, *ratios):
        whole = draw(Unplaced(denoiser), None if ratio is None else Unplaced(ratio), prompt=prompt, **options)
        assert torch.equal(draw(denoiser, ratio, prompt=prompt, **options), whole)
