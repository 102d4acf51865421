"""Fast paths leave the law alone: every look, block order, kept keys and values, one look at the device per call."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gtl_lightning import Blocks, Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.errors import UserError
from gtl_lightning.modules.ratio import TokenRatioModule
from gtl_lightning.networks import (
    Backbone,
    BackboneConfig,
    DifferenceTokenRatio,
    FeatureTokenRatio,
    MaskedDenoiser,
    OnDenoiser,
    PositionNetwork,
    RatioEnsemble,
    SequenceRatioNetwork,
    TokenLevel,
    TokenRatioNetwork,
    seeded,
)
from gtl_lightning.protocols import EVERYWHERE, Cache, Look, PaddingOnce
from tests.oracle.enumeration import random_laws, total_variation, total_variation_bound

LAWS = random_laws(vocab=3, length=3, seed=0)
TOKEN, SEQUENCE = TokenRatio(LAWS.token_log_ratio), SequenceRatio(LAWS.sequence_log_ratio)
N = 30_000
MASK, PAD, V, L = 10, 11, 12, 8
CONFIG = BackboneConfig(vocab_size=V, length=L, width=16, depth=2, heads=2, mask_index=MASK, pad_index=PAD, cond_dim=8)


class Tables:
    """An exact table as a network that is asked for positions: hidden states are the log-probabilities themselves."""

    vocab_size = LAWS.mask_index + 1

    def __init__(self, table: Any, denoiser: Any = None) -> None:
        self.table, self.denoiser = table, denoiser
        self.asked: set[str | tuple[int, int]] = set()

    def encode(self, x_t: Tensor, t: Tensor, look: Look, features: Tensor | None) -> Tensor:
        if look.window is not None and look.cache is not None:
            assert len(look.cache[self][0]) >= len(x_t)
        elif look.cache is not None:
            look.cache[self] = [t]
        name = "places" if look.places is not None else "keeps" if look.cache is not None else "everywhere"
        self.asked.add(look.window or name)
        hidden = look.of(self.table(x_t, t))
        assert (features is not None) == (self.denoiser is not None)
        assert features is None or features.shape == hidden.shape
        return hidden

    def decode(self, h: Tensor) -> Tensor:
        return h


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


MODES: dict[str, tuple[dict[str, Any], set[Any]]] = {
    "everywhere": ({"planner": "entropy"}, {"everywhere"}),
    "single places": ({}, {"places"}),
    "single places in blocks": ({"blocks": Blocks(2, refresh=1)}, {"places"}),
    # The last block has one step, a whole pass.
    "window": ({"blocks": Blocks(2)}, {"keeps", (0, 2)}),
    "window with a margin": ({"blocks": Blocks(2, margin=1), "planner": "margin"}, {"keeps", (0, 3)}),
}


@pytest.mark.parametrize("reads", [False, True], ids=["apart", "reads the denoiser"])
@pytest.mark.parametrize("name", MODES)
def test_exact_networks_keep_the_target_whatever_the_look(name: str, reads: bool) -> None:
    """Prompts of different kinds leave the batch at different steps of different blocks."""
    m = LAWS.mask_index
    denoiser = Tables(LAWS.denoiser)
    ratio = Tables(LAWS.token_log_ratio, denoiser if reads else None)
    options, asked = MODES[name]
    kinds = torch.tensor([[m, m, m], [2, m, m], [m, 1, m]])
    x = sample(
        denoiser,
        mask_index=m,
        prompt=kinds.repeat(N // 3, 1),
        guidance=Guidance(TokenRatio(ratio)),
        generator=torch.Generator().manual_seed(1),
        **options,
    )
    for index, kind in enumerate(kinds):
        law = LAWS.compatible(kind[None])[0] * LAWS.q
        law = law / law.sum()
        assert total_variation(x[index::3], law, LAWS) < total_variation_bound(law, N // 3)
    assert denoiser.asked == asked
    # A ratio that reads the denoiser follows it; another is asked where tokens are drawn, once the planner has chosen.
    assert ratio.asked == (asked if reads or name != "everywhere" else {"places"})


class Bag(TokenLevel):
    """A ratio as a newcomer writes it: three methods, and no word of looks but one."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.out = nn.Linear(config.width, config.vocab_size)

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        h = self.embedding(x_t)
        return look.of(torch.tanh(h + h.mean(1, keepdim=True) + t[:, None, None]))

    def decode(self, h: Tensor) -> Tensor:
        return self.out(h)

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        return (h * self.out.weight[tokens]).sum(-1) + self.out.bias[tokens]


class Tilt(OnDenoiser):
    """Another, on the frozen denoiser's features: three as well."""

    def __init__(self, denoiser: MaskedDenoiser) -> None:
        super().__init__(denoiser)
        self.out = nn.Linear(self.config.width, self.config.vocab_size)

    @property
    def second(self) -> None:
        return None

    def decode(self, h: Tensor) -> Tensor:
        return self.out(h)

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        return (h * self.out.weight[tokens]).sum(-1) + self.out.bias[tokens]


def test_a_new_ratio_owes_three_methods() -> None:
    assert TokenLevel.__abstractmethods__ == {"encode", "decode", "decode_at"}
    assert OnDenoiser.__abstractmethods__ == {"second", "decode", "decode_at"}
    x, t = partly_masked()
    with seeded(1):
        denoiser = shaken(MaskedDenoiser(CONFIG))
        for ratio in (shaken(Bag(CONFIG)), shaken(Tilt(denoiser))):
            module = TokenRatioModule(ratio, denoiser, martingale_weight=0.1)
            batch = {"x_0": x.masked_fill(x == MASK, 1), "is_target": torch.tensor([True, False, True, False])}
            module.loss(batch, torch.Generator().manual_seed(0)).backward()
            assert all(weight.grad is not None for weight in ratio.parameters())
            assert ratio(x, t).shape == (4, L, V)


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
            shaken(Bag(CONFIG)),
            shaken(Tilt(denoiser)),
        ]
    return denoiser, [*ratios, RatioEnsemble(ratios)]


def draw(denoiser: Any, ratio: Any = None, **options: Any) -> Tensor:
    options = {"guidance": Guidance(TokenRatio(ratio)) if ratio is not None else None, **options}
    options = {"batch": 6, "length": L, **options} if "prompt" not in options else options
    return sample(denoiser, mask_index=MASK, generator=torch.Generator().manual_seed(3), **options)


def partly_masked() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 10, (4, L), generator=generator)
    x[torch.rand(4, L, generator=generator) < 0.5] = MASK
    x[0, 6:] = PAD
    return x, torch.rand(4, generator=generator)


WANTED: dict[str, dict[str, Any]] = {
    "everywhere": {},
    "places": {"places": torch.tensor([[1, 7], [0, 3], [5, 2], [6, 6]])},
    "window": {"window": (2, 5)},
    "window at the start": {"window": (0, 3)},
    "window over everything": {"window": (0, L)},
}


def prepared(network: Any, x: Tensor, t: Tensor, wanted: str, told: bool, features: Tensor | None = None) -> Look:
    """A look; where it is a window, after the pass over everything whose cache it reads."""
    padding = PaddingOnce(x) if told else None
    if "window" not in wanted:
        return Look(**WANTED[wanted], padding=padding)
    cache: Cache = {}
    whole = network.encode(x, t, Look(cache=cache, padding=padding), features)
    assert torch.equal(whole, network.encode(x, t, features=features))
    return Look(**WANTED[wanted], cache=cache, padding=padding)


@pytest.mark.parametrize("told", [False, True], ids=["looks for padding", "is told of padding"])
@pytest.mark.parametrize("wanted", WANTED)
def test_every_look_gives_entries_of_the_whole_pass(wanted: str, told: bool) -> None:
    """All networks, with and without the denoiser's features; a pass that fills a cache is the plain one to the bit."""
    denoiser, ratios = networks()
    x, t = partly_masked()
    everywhere = denoiser.encode(x, t)
    features = denoiser.encode(x, t, prepared(denoiser, x, t, wanted, told))
    for network in (denoiser, *ratios):
        look = prepared(network, x, t, wanted, told)
        whole = look.of(network.encode(x, t))
        assert torch.allclose(network.encode(x, t, look), whole, atol=1e-5)
        if network is not denoiser:
            given = prepared(network, x, t, wanted, told, everywhere)
            assert denoiser.backbone not in (given.cache or {})  # the denoiser did not run
            assert torch.allclose(network.encode(x, t, given, features), whole, atol=1e-5)


@pytest.mark.parametrize("wanted", WANTED)
def test_what_is_wanted_is_found_where_it_lies(wanted: str) -> None:
    """Of every position that a look wants, the entry of a whole tensor is found again in what the look takes of it."""
    whole = torch.arange(4 * L * 3).view(4, L, 3)
    look = Look(**WANTED[wanted], cache={} if "window" in wanted else None)
    some = look.of(whole)
    assert all(want in ("l", "d", got) for want, got in zip(look.shape(whole[..., 0]), some.shape, strict=True))
    row, slot = torch.arange(4).repeat_interleave(some.shape[1]), torch.arange(some.shape[1]).repeat(4)
    position = some[row, slot, 0] // 3 % L
    assert torch.equal(some[row, look.slots(row, position)], whole[row, position])


def test_looks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="cache"):
        Look(window=(0, 2))
    with pytest.raises(ValueError, match="cache"):
        Look(places=torch.zeros(1, 1, dtype=torch.long), cache={})
    x, t = partly_masked()
    causal = Backbone(replace(CONFIG, causal=True, cond_dim=0))
    for wanted in ("places", "window"):
        with pytest.raises(ValueError, match="causal"):
            causal(x, None, prepared(networks()[0], x, t, wanted, told=False))


def test_a_window_over_everything_forgets_what_was_kept() -> None:
    """A window that holds all that changed is a whole pass; a narrower one is not, which is what reuse may cost."""
    denoiser, _ = networks()
    x, t = partly_masked()
    look = prepared(denoiser, x, t, "window", told=False)
    assert look.cache is not None
    changed = x.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 10
    whole = denoiser.encode(changed, t)
    kept = {key: [part.clone() for part in parts] for key, parts in look.cache.items()}
    narrow = denoiser.encode(changed, t, replace(look, cache=kept))
    assert (narrow - whole[:, 2:5]).abs().max() > 1e-3
    assert torch.allclose(denoiser.encode(changed, t, replace(look, window=(0, L))), whole, atol=1e-5)


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

    def counted(self: Any, x_t: Tensor, t: Tensor, look: Look) -> Any:
        start, stop = look.window or (0, x_t.shape[1])
        widths.append(stop - start)
        return run(self, x_t, t, look)

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


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": 2, "margin": -1}, {"size": 2, "refresh": 0}])
def test_blocks_that_cannot_be(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
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
