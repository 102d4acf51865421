"""Whatever the look, a network gives entries of its whole pass, and exact networks draw from the target."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import Blocks, Guidance, TokenRatio, sample
from gtl_lightning.core.protocols import Cache, Look, PaddingOnce
from gtl_lightning.modules.ratio import TokenRatioModule
from gtl_lightning.networks import MaskedDenoiser, OnDenoiser, TokenLevel, seeded
from tests.oracle.enumeration import random_laws, total_variation, total_variation_bound
from tests.oracle.looking import CONFIG, MASK, Bag, L, Tilt, V, networks, partly_masked, shaken

LAWS = random_laws(vocab=3, length=3, seed=0)
N = 30_000


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


MODES: dict[str, tuple[dict[str, Any], set[Any]]] = {
    "all masked places": ({"planner": "entropy"}, {"places"}),
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
    assert ratio.asked == asked


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


@pytest.mark.parametrize("reading", [{}, {"shift": True}, {"causal": True}, {"causal": True, "shift": True}], ids=str)
@pytest.mark.parametrize("told", [False, True], ids=["looks for padding", "is told of padding"])
@pytest.mark.parametrize("wanted", WANTED)
def test_every_look_gives_entries_of_the_whole_pass(wanted: str, told: bool, reading: dict[str, bool]) -> None:
    """All networks, with and without the denoiser's features; a pass that fills a cache is the plain one to the bit."""
    denoiser, ratios = networks(replace(CONFIG, **reading))  # type: ignore[arg-type]
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
