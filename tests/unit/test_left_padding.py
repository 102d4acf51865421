"""Padding on either side changes nothing: a padded row is read, and sampled, as if it stood alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import Blocks, Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.core.protocols import EVERYWHERE, Cache, Look, PaddingOnce
from gtl_lightning.networks import (
    BackboneConfig,
    CausalLM,
    DifferenceTokenRatio,
    FeatureTokenRatio,
    MaskedDenoiser,
    PositionNetwork,
    SequenceRatioNetwork,
    TokenRatioNetwork,
    seeded,
)

MASK, PAD, V, L = 10, 11, 12, 9
CONFIG = BackboneConfig(vocab_size=V, length=L, width=16, depth=2, heads=2, mask_index=MASK, pad_index=PAD, cond_dim=8)


def shaken(network: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


with seeded(2):
    DENOISER = shaken(MaskedDenoiser(CONFIG))
    TOKEN_LEVEL = [
        shaken(TokenRatioNetwork(CONFIG)),
        shaken(FeatureTokenRatio(DENOISER, rank=4, own=CONFIG)),
        shaken(DifferenceTokenRatio(DENOISER)),
    ]
    SEQUENCE, PLANNER, CAUSAL = (shaken(c(CONFIG)) for c in (SequenceRatioNetwork, PositionNetwork, CausalLM))

ROWS = [torch.tensor(row) for row in ([3, MASK, 5], [MASK, 1, MASK, 2, 9, MASK, 0], [MASK], [7, MASK, 8, 8, MASK])]
TIMES = torch.tensor([0.2, 0.5, 0.9, 0.4])


def padded(rows: list[Tensor], left: bool) -> Tensor:
    out = torch.full((len(rows), L), PAD)
    for index, row in enumerate(rows):
        start = L - len(row) if left else 0
        out[index, start : start + len(row)] = row
    return out


def own(values: Tensor, index: int, left: bool) -> Tensor:
    """The part of a padded result that belongs to a row."""
    n = len(ROWS[index])
    return values[index, L - n :] if left else values[index, :n]


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_networks_read_a_padded_row_as_if_it_stood_alone(left: bool) -> None:
    x = padded(ROWS, left)
    for network in (DENOISER, *TOKEN_LEVEL, PLANNER, CAUSAL, SEQUENCE):
        timed = network not in (CAUSAL,)
        whole = network(x, TIMES) if timed else network(x)
        for index, row in enumerate(ROWS):
            alone = network(row[None], TIMES[index : index + 1]) if timed else network(row[None])
            found = whole[index] if network is SEQUENCE else own(whole, index, left)
            torch.testing.assert_close(found, alone[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("told", [True, False])
def test_windows_and_single_places_of_left_padded_rows_are_entries_of_the_whole_pass(told: bool) -> None:
    x = padded(ROWS, left=True)
    padding = PaddingOnce(x) if told else None
    whole = DENOISER.encode(x, TIMES)
    places = torch.tensor([[6, 8], [2, 5], [8, 0], [4, 7]])
    some = DENOISER.encode(x, TIMES, Look(places=places, padding=padding))
    torch.testing.assert_close(some, whole[torch.arange(4)[:, None], places])
    for window in ((0, L), (1, 7), (4, 9)):
        cache: Cache = {}
        DENOISER.encode(x, TIMES, Look(cache=cache, padding=padding))
        again = DENOISER.encode(x, TIMES, Look(window=window, cache=cache, padding=padding))
        torch.testing.assert_close(again, whole[:, slice(*window)], atol=2e-5, rtol=1e-4)


MODES: list[dict[str, Any]] = [
    {"planner": "confidence"},
    {"planner": PLANNER, "planner_temperature": 0.0},
    {"planner": "entropy", "guidance": Guidance(TokenRatio(TOKEN_LEVEL[1]), gamma=lambda share: 1 + 3 * share)},
    {"planner": "margin", "guidance": Guidance(SequenceRatio(SEQUENCE), gamma=1.5)},
]


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("mode", range(len(MODES)))
def test_a_padded_prompt_is_filled_as_if_it_stood_alone(mode: int, left: bool) -> None:
    """Without randomness, so that rows can be compared: law, time, order and strength are each row's own."""
    options = {"mask_index": MASK, "temperature": 0.0, **MODES[mode]}
    x = sample(DENOISER, prompt=padded(ROWS, left), **options)
    for index, row in enumerate(ROWS):
        alone = sample(DENOISER, prompt=row[None], **options)[0]
        assert own(x, index, left).tolist() == alone.tolist()
    assert ((x == PAD) == (padded(ROWS, left) == PAD)).all()


def test_a_function_that_pads_for_itself_is_not_told_of_the_samplers_padding() -> None:
    """Only networks that are called with the sampler's own rows are told; what a function makes of them is its own."""
    row = torch.full((3, L - 2), MASK)
    options = {"mask_index": MASK, "temperature": 0.0, "planner": "margin", "prompt": row}
    for pads in ((2, 0), (0, 2)):

        def longer(x_t: Tensor, t: Tensor, pads: tuple[int, int] = pads) -> Tensor:
            return SEQUENCE(torch.nn.functional.pad(x_t, pads, value=PAD), t)

        guided = [
            sample(DENOISER, guidance=Guidance(SequenceRatio(f), gamma=3.0), **options) for f in (longer, SEQUENCE)
        ]
        assert torch.equal(*guided)


def test_blocks_of_a_left_padded_prompt() -> None:
    """A window that holds everything is the plain path, wherever a row begins."""
    options = {"mask_index": MASK, "temperature": 0.0, "planner": "confidence", "prompt": padded(ROWS, True)}
    whole = sample(DENOISER, blocks=Blocks(3, refresh=1), **options)
    assert torch.equal(sample(DENOISER, blocks=Blocks(3, margin=L), **options), whole)


def test_training_rows_padded_on_the_right_are_as_before() -> None:
    """To the bit, with gradients: the mark goes to position 0 by the same arithmetic with padding and without."""
    backbone = DENOISER.backbone
    x = padded(ROWS, left=False)
    marked = backbone.embedding(x)
    marked = torch.cat([marked[:, :1] + backbone.start, marked[:, 1:]], 1)
    assert backbone._view(x, EVERYWHERE).first is None
    seen: list[Tensor] = []
    hook = backbone.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    backbone(x, TIMES)
    hook.remove()
    assert torch.equal(seen[0], marked)
