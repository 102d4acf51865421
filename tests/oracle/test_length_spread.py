"""Texts of different lengths in one batch (`sampling.length_spread`): fewer batches, and each text's law is its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import Guidance, TokenRatio
from gtl_lightning.core.guidance import tilt
from gtl_lightning.laws.enumerated import model_law
from gtl_lightning.networks import BackboneConfig, FeatureTokenRatio, MaskedDenoiser, seeded
from gtl_lightning.networks.block import NO_PAD
from gtl_lightning.workspace.params import configure
from gtl_lightning.workspace.sampler import Sampler, together
from tests.oracle.enumeration import total_variation_bound
from tests.oracle.test_half_precision_law import shaken

STATES, LENGTHS, DRAWS = 3, (2, 3), 3000
MASK, PAD = STATES, STATES + 1


def drawn(pad_index: int, spread: int, lengths: list[int], guided: bool = True) -> tuple[list[Tensor], list[int], Any]:
    """The texts, how many rows each first pass had, and both networks."""
    with seeded(0):
        config = BackboneConfig(STATES + 2, 3, 16, 1, 2, mask_index=MASK, pad_index=pad_index, cond_dim=0)
        denoiser = shaken(MaskedDenoiser(config), 0)
        ratio = shaken(FeatureTokenRatio(denoiser, 2), 1)
    corpus: Any = SimpleNamespace(mask_index=MASK, pad_index=PAD, length=max(LENGTHS))
    sampler = Sampler(denoiser, None, corpus, torch.device("cpu"), {}, {}, Path())
    params = configure(overrides=(f"evaluation.batch={len(lengths)}", f"sampling.length_spread={spread}"))
    passes: list[int] = []
    denoiser.backbone.blocks[0].register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    guidance = Guidance(TokenRatio(ratio)) if guided else None
    return sampler.draw(params, lengths, guidance=guidance, seed=0), passes, (denoiser, ratio)


def test_a_text_in_a_padded_batch_has_the_law_of_its_length() -> None:
    """Against the exact laws of both lengths, by recursion over all orders; the test would see another law."""
    lengths = [*LENGTHS] * DRAWS
    texts, passes, (denoiser, ratio) = drawn(PAD, 1, lengths)
    assert passes == [2 * DRAWS, 2 * DRAWS, DRAWS], "one batch, which the short rows leave when they are done"
    assert [len(text) for text in texts] == lengths

    def conditionals(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return tilt(denoiser(x_t, t), ratio(x_t, t))[..., : STATES + 1]

    for length in LENGTHS:
        exact = model_law(conditionals, STATES, length).table
        found = torch.stack([text for text in texts if len(text) == length])
        place = STATES ** torch.arange(length - 1, -1, -1)
        counts = torch.bincount((found * place).sum(-1), minlength=len(exact)).double() / DRAWS
        bound = total_variation_bound(exact, DRAWS)
        assert 0.5 * (counts - exact).abs().sum() < bound
        assert 0.5 * (exact - 1 / len(exact)).abs().sum() > 2 * bound


@pytest.mark.parametrize(("pad_index", "spread"), [(PAD, 0), (NO_PAD, 1)])
def test_without_spread_or_a_known_padding_equal_lengths_share_a_batch(pad_index: int, spread: int) -> None:
    texts, passes, _ = drawn(pad_index, spread, [3, 2, 3], guided=False)
    assert passes == [1, 1, 2, 2, 2] and [len(text) for text in texts] == [3, 2, 3]


def test_batches_are_full_or_end_where_lengths_are_too_far_apart() -> None:
    lengths = [5, 9, 5, 6, 20, 7, 5]
    assert together(lengths, 3, 0) == [[0, 2, 6], [3], [5], [1], [4]]
    assert together(lengths, 3, 2) == [[0, 2, 6], [3, 5], [1], [4]]
    assert together(lengths, 9, 99) == [[0, 2, 6, 3, 5, 1, 4]]
    assert together([], 3, 2) == []
