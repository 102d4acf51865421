"""A decoder's weights as a denoiser: its own logits under its own attention, and a source like any other."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import sample
from gtl_lightning.core.protocols import Cache, Look, PaddingOnce, Source
from gtl_lightning.files import save_tensors
from gtl_lightning.laws.enumerated import exact_nelbo
from gtl_lightning.methods import METHODS
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.networks import (
    BackboneConfig,
    CausalLM,
    MaskedDenoiser,
    UniformDenoiser,
    load_network,
    save_network,
    seeded,
)
from gtl_lightning.networks.block import NO_PAD
from gtl_lightning.papers.ar2diff import annealed_mask, causal_mask, decode_best, full_mask, prefix_mask
from tests.oracle.enumeration import total_variation, total_variation_bound
from tests.oracle.looking import shaken
from tests.oracle.test_looks import MODES
from tests.oracle.test_source import LAWS, OWN, STARTED, context, draw

MASK, PAD, V, L = 10, 11, 12, 8
CONFIG = BackboneConfig(vocab_size=V, length=L, width=16, depth=2, heads=2, mask_index=MASK, pad_index=PAD)
NOW = torch.zeros(5)


def model(config: BackboneConfig = CONFIG) -> CausalLM:
    with seeded(1):
        causal: CausalLM = shaken(CausalLM(config))
    return causal


def texts(n: int = 5) -> Tensor:
    return torch.randint(10, (n, L), generator=torch.Generator().manual_seed(4))


CAUSAL = causal_mask(L + 1)


@pytest.mark.parametrize("tied", [False, True])
def test_causal_shifted_and_unmasked_it_gives_the_models_own_logits(tied: bool) -> None:
    causal, x = model(replace(CONFIG, tied=tied)), texts()
    denoiser = MaskedDenoiser.from_causal(causal).eval()
    assert (denoiser.config.shift, denoiser.config.causal, denoiser.config.cond_dim) == (True, False, 0)
    torch.testing.assert_close(denoiser.encode(x, NOW, attention=CAUSAL), causal.encode(x), atol=1e-5, rtol=1e-5)
    logits = denoiser.logits(denoiser.encode(x, NOW, attention=CAUSAL))
    torch.testing.assert_close(logits, causal.logits(causal.encode(x)), atol=1e-5, rtol=1e-5)
    kept = MaskedDenoiser.from_causal(causal, causal=True).eval()
    assert torch.equal(kept.encode(x, NOW), causal.encode(x))
    unshifted = MaskedDenoiser.from_causal(causal, shift=False).eval()
    assert (unshifted.encode(x, NOW, attention=causal_mask(L)) - causal.encode(x)).abs().max() > 0.1
    assert (denoiser.encode(x, NOW) - causal.encode(x)).abs().max() > 0.1


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_suffix_masks_give_the_models_conditionals_and_their_sum_its_likelihood(dtype: Any, bound: float) -> None:
    """The law at the first mask is the next token's, whatever is masked behind it."""
    causal, x = model().to(dtype), texts()
    denoiser = MaskedDenoiser.from_causal(causal).eval()
    log_p, total = causal(x), torch.zeros(len(x), dtype=dtype)
    for first in range(L):
        x_t = x.masked_fill(torch.arange(L) >= first, MASK)
        law = denoiser(x_t, NOW, CAUSAL)[:, first]
        assert law.dtype == dtype
        real = torch.arange(V) < 10
        assert (law - log_p[:, first])[:, real].abs().max() <= bound
        total += law.gather(-1, x[:, first : first + 1]).squeeze(-1)
        if first < L - 1:  # everything read, it is another law
            assert (denoiser(x_t, NOW)[:, first] - log_p[:, first])[:, real].abs().max() > 1e-3
    assert (total - causal.log_prob(x).sum(-1)).abs().max() <= bound


def test_the_order_of_a_causal_models_own_reveals_is_its_likelihood_and_others_are_not() -> None:
    """The NELBO averages over orders: more than the model's own nats, which are those of the order from the left."""
    config = BackboneConfig(4, 3, 16, 2, 2, mask_index=3, pad_index=NO_PAD)
    causal = model(config).double()
    denoiser = MaskedDenoiser.from_causal(causal, causal=True).eval()
    x = torch.cartesian_prod(*[torch.arange(3)] * 3)
    log_p = causal.log_prob(x).sum(-1)
    assert log_p.exp().sum().item() == pytest.approx(1.0)
    nelbo = exact_nelbo(lambda x_t, t: denoiser(x_t, t).detach(), x, 3)
    assert (log_p.exp() * (nelbo + log_p)).sum() > 0.01


def test_prefix_states_do_not_depend_on_the_targets() -> None:
    causal, x, m = model(), texts(), 3
    other = x.clone()
    other[:, m:] = (x[:, m:] + 3) % 10
    prefix = torch.full((5,), m)
    for shift in (True, False):
        denoiser = MaskedDenoiser.from_causal(causal, shift=shift).eval()
        n = denoiser.backbone.reads(L)
        assert n == L + shift
        # Shifted, the state that has read the prefix's last token is the first target's.
        states = m + shift
        for whole in (full_mask(n), causal_mask(n), annealed_mask(n, 0, 2, torch.Generator().manual_seed(0))):
            mask = prefix_mask(whole, prefix + shift)
            a, b = (denoiser.encode(x_0, NOW, attention=mask) for x_0 in (x, other))
            assert torch.equal(a[:, :states], b[:, :states])
            assert (a[:, states:] - b[:, states:]).abs().amax((0, 2)).min() > 1e-3
        changed = x.clone()
        changed[:, 0] = (x[:, 0] + 1) % 10
        mask = prefix_mask(causal_mask(n), prefix + shift)
        a, b = (denoiser.encode(x_0, NOW, attention=mask) for x_0 in (x, changed))
        assert (a - b).abs().amax((0, 2)).min() > 1e-4  # and inside the prefix all is read, backwards too
    assert (denoiser.encode(x, NOW) - denoiser.encode(other, NOW))[:, :m].abs().max() > 1e-3


def test_a_prefix_models_likelihood_is_that_of_its_targets() -> None:
    """Prefix-LM: targets read the whole prefix and what precedes them, and the last token is read by none."""
    causal, x = model(), texts()
    mask = prefix_mask(causal_mask(L), torch.full((5,), 4))  # the start and three tokens
    log_p = causal.log_prob(x, attention=mask)
    for position in range(3, L):
        later = x.clone()
        later[:, position:] = (x[:, position:] + 1) % 10
        assert torch.equal(causal(later, mask)[:, position], causal(x, mask)[:, position])
    assert (log_p - causal.log_prob(x))[:, 3:].abs().max() > 1e-3


def test_a_mask_over_everything_is_no_mask_and_another_size_is_refused() -> None:
    denoiser, x = MaskedDenoiser.from_causal(model()).eval(), texts()
    torch.testing.assert_close(
        denoiser.encode(x, NOW, attention=full_mask(L + 1)), denoiser.encode(x, NOW), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ValueError, match="9 positions are read"):
        denoiser.encode(x, NOW, attention=full_mask(L))


ROWS = [torch.tensor(row) for row in ([3, MASK, 5], [MASK, 1, MASK, 2, 9, MASK, 0], [MASK], [7, MASK, 8, 8, MASK])]


def padded(left: bool) -> Tensor:
    out = torch.full((len(ROWS), L), PAD)
    for index, row in enumerate(ROWS):
        start = L - len(row) if left else 0
        out[index, start : start + len(row)] = row
    return out


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padded_rows_are_read_as_if_they_stood_alone(left: bool) -> None:
    """Shifted or not, everything read or what an annealed mask lets in (the same of every row)."""
    x, t = padded(left), torch.zeros(len(ROWS))
    for shift in (True, False):
        denoiser = MaskedDenoiser.from_causal(model(), shift=shift).eval()
        n = denoiser.backbone.reads(L)
        for mask in (None, causal_mask(n), annealed_mask(n, 4, 10, torch.Generator().manual_seed(1))):
            whole = denoiser(x, t, mask)
            for index, row in enumerate(ROWS):
                start = L - len(row) if left else 0
                own = slice(start, start + len(row) + shift)
                alone = denoiser(row[None], t[:1], None if mask is None else mask[own, own])[0]
                found = whole[index, start : start + len(row)]
                torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)
        places, padding = torch.tensor([[6, 0], [2, 7], [0, 7], [3, 4]]), PaddingOnce(x)
        for look in (Look(places=places), Look(cache={}), Look(window=(1, 6), cache={})):
            if look.window:
                denoiser.encode(x, t, Look(cache=look.cache, padding=padding))
            found = denoiser.encode(x, t, replace(look, padding=padding))
            torch.testing.assert_close(found, look.of(denoiser.encode(x, t)), atol=2e-5, rtol=1e-4)


def test_a_window_hears_of_its_own_last_token() -> None:
    denoiser, x = MaskedDenoiser.from_causal(model()).eval(), texts()
    cache: Cache = {}
    before = denoiser.encode(x, NOW, Look(cache=cache))[:, 2:5]
    changed = x.clone()
    changed[:, 4] = (x[:, 4] + 1) % 10
    assert (denoiser.encode(changed, NOW, Look(window=(2, 5), cache=cache)) - before).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("cls", [MaskedDenoiser, UniformDenoiser])
@pytest.mark.parametrize("shift", [True, False])
def test_it_is_a_source_and_its_shift_is_kept(cls: type[MaskedDenoiser], shift: bool, tmp_path: Path) -> None:
    causal, x = model(), texts().masked_fill(torch.arange(L) % 2 == 0, MASK)
    before = {name: value.clone() for name, value in causal.state_dict().items()}
    denoiser = cls.from_causal(causal, shift=shift).eval()
    assert isinstance(denoiser, Source)
    save_network(tmp_path / "n", denoiser, {"step": 1})
    again = load_network(tmp_path / "n", cls)
    assert again.config == denoiser.config and again.config.shift == shift
    assert torch.equal(again(x, NOW), denoiser(x, NOW))
    with torch.no_grad():
        denoiser.trainable_copy().output.weight.add_(1)
        denoiser.output.weight.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in causal.state_dict().items())


def test_files_without_a_word_on_the_shift_load_as_they_were(tmp_path: Path) -> None:
    """A causal model is shifted whatever its file says; a denoiser of before is not."""
    with seeded(0):
        networks = (CausalLM(CONFIG), MaskedDenoiser(CONFIG))
    for network in networks:
        config = {key: value for key, value in asdict(network.config).items() if key != "shift"}
        state = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_tensors(
            tmp_path / "n", state, {"network": {"class": type(network).__name__, "config": config}, "meta": {}}
        )
        again: Any = load_network(tmp_path / "n", type(network))
        x = texts()
        assert torch.equal(*(n(x, NOW) if isinstance(n, MaskedDenoiser) else n(x) for n in (network.eval(), again)))


def test_decoding_draws_tokens_alone_and_keeps_what_is_given() -> None:
    """Mask and padding are no tokens; what is given is read, so that it changes what is made of the rest."""
    network = UniformDenoiser.from_causal(model()).eval()
    x, target = texts(), torch.arange(L).expand(5, -1) >= 3

    def read(x: Tensor) -> Tensor:
        return network(x, NOW[:1].expand(len(x)))

    def noise(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(10, shape, generator=torch.Generator().manual_seed(1))

    made = [
        decode_best(read, given, target, noise, steps=3, samples=4, generator=torch.Generator().manual_seed(0))
        for given in (x, (x + 1) % 10)
    ]
    assert torch.equal(made[0][:, :3], x[:, :3]) and made[0].max() < 10
    assert (made[0] != made[1])[:, 3:].any()


SMALL = replace(OWN, cond_dim=0)


@pytest.mark.parametrize("name", STARTED)
def test_methods_take_it_like_any_source(name: str) -> None:
    """Fine-tuning, LoRA and guidance start at its law, learn, and sample under every look."""
    source = MaskedDenoiser.from_causal(model(SMALL)).eval()
    method = METHODS[name]
    recipe = method.recipe(context(source), method.settings)
    module = next(iter(recipe.builds.values()))(OptimiserConfig(), 0)
    network: Any = module.network.eval()
    plain = {name: draw(source, None, 300, **options) for name, (options, _) in MODES.items()}
    for look, (options, _) in MODES.items():
        x = draw(source, network, 300, **options) if method.guides else draw(network, None, 300, **options)
        assert torch.equal(x, plain[look])
    rows = {"x_0": LAWS.states[:20], "is_target": torch.arange(20) % 2 == 0}
    module.train().loss(rows, torch.Generator().manual_seed(0)).backward()
    slopes = [weight.grad for weight in module.network.parameters() if weight.requires_grad]
    assert slopes and all(slope is not None and slope.isfinite().all() for slope in slopes)
    assert any(slope.abs().max() > 0 for slope in slopes if slope is not None)


@pytest.mark.parametrize("options", [options for options, _ in MODES.values()], ids=list(MODES))
@pytest.mark.parametrize("kept", [False, True])
def test_samplers_draw_the_same_of_it_whatever_is_looked_at(options: dict[str, Any], kept: bool) -> None:
    """Single places and windows over everything give what whole passes of a plain function give; causal too."""
    denoiser = MaskedDenoiser.from_causal(model(), causal=kept).eval()
    prompt = texts().masked_fill(torch.arange(L) % 3 != 0, MASK)
    prompt[1, 5:] = PAD
    options = {**options, "mask_index": MASK, "prompt": prompt}
    if "blocks" in options:
        options["blocks"] = replace(options["blocks"], margin=L)

    def plain(x_t: Tensor, t: Tensor) -> Tensor:
        return denoiser(x_t, t)

    plain.pad_index = PAD  # type: ignore[attr-defined]
    blocks = {"blocks": replace(options["blocks"], refresh=1)} if "blocks" in options else {}
    found = sample(denoiser, generator=torch.Generator().manual_seed(3), **options)
    assert torch.equal(found, sample(plain, generator=torch.Generator().manual_seed(3), **(options | blocks)))


def test_texts_are_drawn_of_its_law_in_its_own_order() -> None:
    """Kept causal and revealed from the left, its samples are the autoregressive model's, by their exact law."""
    causal = model(SMALL)
    denoiser = MaskedDenoiser.from_causal(causal, causal=True).eval()
    law = causal.log_prob(LAWS.states).sum(-1).exp().double()

    def left_to_right(x_t: Tensor) -> Tensor:
        return -torch.arange(3.0).expand(x_t.shape)

    x = draw(denoiser, None, 20_000, planner=left_to_right, planner_temperature=0.0)
    assert total_variation(x, law, LAWS) < total_variation_bound(law, len(x))
