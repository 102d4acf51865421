"""Fast paths leave the law alone: block order, kept keys and values, one look at the device per call."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gtl_lightning import Blocks, Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.errors import UserError
from gtl_lightning.networks import (
    Backbone,
    BackboneConfig,
    DifferenceTokenRatio,
    FeatureTokenRatio,
    MaskedDenoiser,
    RatioEnsemble,
    TokenRatioNetwork,
    seeded,
)
from gtl_lightning.protocols import Cache
from tests.oracle.enumeration import random_laws, total_variation, total_variation_bound

LAWS = random_laws(vocab=3, length=3, seed=0)
TOKEN, SEQUENCE = TokenRatio(LAWS.token_log_ratio), SequenceRatio(LAWS.sequence_log_ratio)
N = 30_000
MASK, PAD, V, L = 10, 11, 12, 8
CONFIG = BackboneConfig(vocab_size=V, length=L, width=16, depth=2, heads=2, mask_index=MASK, pad_index=PAD, cond_dim=8)


class Tables:
    """An exact table as a network with windows: hidden states are the log-probabilities themselves, nothing is kept."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.windows: list[tuple[int, int]] = []

    def encode(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.table(x_t, t)

    def decode(self, h: Tensor) -> Tensor:
        return h

    def remember(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Cache]:
        return self.table(x_t, t), [t]

    def recompute(self, x_t: Tensor, t: Tensor, start: int, stop: int, cache: Cache) -> Tensor:
        assert len(cache[0]) == len(x_t)
        self.windows.append((start, stop))
        return self.table(x_t, t)[:, start:stop]

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.table(x_t, t)


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


@pytest.mark.parametrize("margin", [0, 1])
def test_exact_networks_with_windows_keep_the_target(margin: int) -> None:
    """Prompts of different kinds leave the batch at different steps of different blocks."""
    m = LAWS.mask_index
    denoiser, ratio = Tables(LAWS.denoiser), Tables(LAWS.token_log_ratio)
    kinds = torch.tensor([[m, m, m], [2, m, m], [m, 1, m]])
    x = sample(
        denoiser,
        mask_index=m,
        prompt=kinds.repeat(N // 3, 1),
        guidance=Guidance(TokenRatio(ratio)),
        blocks=Blocks(2, margin=margin),
        generator=torch.Generator().manual_seed(1),
    )
    for index, kind in enumerate(kinds):
        law = LAWS.compatible(kind[None])[0] * LAWS.q
        law = law / law.sum()
        assert total_variation(x[index::3], law, LAWS) < total_variation_bound(law, N // 3)
    assert set(denoiser.windows) == set(ratio.windows) == {(0, 2 + margin)}  # the last block has one step, a whole pass


def shaken(network: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def networks() -> tuple[MaskedDenoiser, list[Any]]:
    with seeded(1):
        denoiser = shaken(MaskedDenoiser(CONFIG))
        own = shaken(TokenRatioNetwork(CONFIG))
        ratios = [
            own,
            shaken(FeatureTokenRatio(denoiser, rank=4)),
            shaken(FeatureTokenRatio(denoiser, rank=4, own=CONFIG)),
            shaken(DifferenceTokenRatio(denoiser)),
        ]
    return denoiser, [*ratios, RatioEnsemble([own, *ratios[1:]])]


def draw(denoiser: Any, ratio: Any = None, **options: Any) -> Tensor:
    guidance = Guidance(TokenRatio(ratio)) if ratio is not None else None
    options = {"batch": 6, "length": L, **options} if "prompt" not in options else options
    return sample(denoiser, mask_index=MASK, guidance=guidance, generator=torch.Generator().manual_seed(3), **options)


def partly_masked() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 10, (4, L), generator=generator)
    x[torch.rand(4, L, generator=generator) < 0.5] = MASK
    x[0, 6:] = PAD
    return x, torch.rand(4, generator=generator)


def test_a_window_of_unchanged_text_is_the_whole_pass() -> None:
    """All networks: nothing changed, so a window agrees with the whole, with and without the denoiser's features."""
    denoiser, ratios = networks()
    x, t = partly_masked()
    features, frozen = denoiser.remember(x, t)
    assert torch.equal(features, denoiser.encode(x, t))
    assert torch.allclose(denoiser.recompute(x, t, 2, 5, frozen), features[:, 2:5], atol=1e-5)
    for ratio in ratios:
        whole, cache = ratio.remember(x, t)
        assert torch.equal(whole, ratio.encode(x, t))
        assert torch.allclose(ratio.recompute(x, t, 2, 5, cache), whole[:, 2:5], atol=1e-5)
        assert torch.allclose(ratio.recompute(x, t, 0, L, cache), whole, atol=1e-5)
        if not isinstance(ratio, TokenRatioNetwork):
            whole, cache = ratio.remember(x, t, features)
            assert torch.equal(whole, ratio.encode(x, t, features))
            assert torch.allclose(ratio.recompute(x, t, 2, 5, cache, features[:, 2:5]), whole[:, 2:5], atol=1e-5)


def test_a_window_over_everything_forgets_what_was_kept() -> None:
    """A window that holds all that changed is a whole pass; a narrower one is not, which is what reuse may cost."""
    denoiser, _ = networks()
    x, t = partly_masked()
    _, cache = denoiser.remember(x, t)
    changed = x.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 10
    whole = denoiser.encode(changed, t)
    narrow = denoiser.recompute(changed, t, 2, 5, [kept.clone() for kept in cache])
    assert (narrow - whole[:, 2:5]).abs().max() > 1e-3
    assert torch.allclose(denoiser.recompute(changed, t, 0, L, cache), whole, atol=1e-5)


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
    run = Backbone._run

    def counted(self: Any, x_t: Tensor, t: Tensor, view: Any, cache: Any) -> Any:
        widths.append(view.rotary.shape[1])
        return run(self, x_t, t, view, cache)

    monkeypatch.setattr(Backbone, "_run", counted)
    draw(denoiser, ratios[0], blocks=Blocks(4))
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


@pytest.mark.parametrize(
    "options", [{}, {"planner": "entropy"}, {"positions_per_step": 3}, {"blocks": Blocks(4)}, {"steps": True}]
)
def test_the_host_looks_at_the_device_once_a_call_not_once_a_step(options: dict[str, Any]) -> None:
    denoiser, ratios = networks()
    counts = []
    for length in (4, 8):
        with Looks() as looks:
            draw(denoiser, ratios[1], length=length, **({"steps": length} if "steps" in options else options))
        counts.append(looks.count)
    # Per block at most, as rows are counted there; a longer text in one block looks no more often.
    assert counts[1] <= counts[0] + (2 if "blocks" in options else 0)


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": 2, "margin": -1}, {"size": 2, "refresh": 0}])
def test_blocks_that_cannot_be(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        Blocks(**bad)


def test_blocks_have_no_place_in_ancestral_mode() -> None:
    with pytest.raises(UserError, match="exclude one another"):
        draw(networks()[0], steps=3, blocks=Blocks(4))


class Unplaced:
    """A network that can only pass whole."""

    def __init__(self, network: Any) -> None:
        self.encode, self.decode = network.encode, network.decode
        self.pad_index = getattr(network, "pad_index", None)
        if hasattr(network, "denoiser"):
            self.denoiser = network.denoiser

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("a factored network is asked in its two parts")


def test_single_places_are_entries_of_the_whole_pass() -> None:
    denoiser, ratios = networks()
    x, t = partly_masked()
    places = torch.tensor([[1, 7], [0, 3], [5, 2], [6, 6]])
    rows = torch.arange(4)[:, None]
    features = denoiser.encode_at(x, t, places)
    assert torch.allclose(features, denoiser.encode(x, t)[rows, places], atol=1e-5)
    for ratio in ratios:
        whole = ratio.encode(x, t)[rows, places]
        assert torch.allclose(ratio.encode_at(x, t, places), whole, atol=1e-5)
        if not isinstance(ratio, TokenRatioNetwork):
            assert torch.allclose(ratio.encode_at(x, t, places, features), whole, atol=1e-5)
    with pytest.raises(ValueError, match="causal"):
        Backbone(replace(CONFIG, causal=True)).at(x, t, places)


@pytest.mark.parametrize("options", [{}, {"positions_per_step": 3}, {"planner": "margin"}], ids=str)
def test_passes_at_the_revealed_places_draw_what_whole_passes_draw(options: dict[str, Any]) -> None:
    """With prompts of unequal length, so that rows want different numbers of positions."""
    denoiser, ratios = networks()
    prompt = partly_masked()[0]
    for ratio in (None, *ratios):
        whole = draw(Unplaced(denoiser), None if ratio is None else Unplaced(ratio), prompt=prompt, **options)
        assert torch.equal(draw(denoiser, ratio, prompt=prompt, **options), whole)
