"""What a law does not depend on, for any numbers: the shift of a position, being normalised twice, mass on the mask."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gtl_lightning import Guidance, TokenRatio, sample
from gtl_lightning.core.guard import Guard, law
from gtl_lightning.evaluation.likelihood import nelbo
from gtl_lightning.evaluation.masked_likelihood import Masking
from tests.unit.test_sampling import LENGTH, MASK, Tiny, V

seeds = st.integers(0, 2**31)
shifts = st.floats(-50, 50)


def draw(seed: int, *shape: int) -> Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def guarded(output: Tensor, mask: int | None = None) -> Tensor:
    guard = Guard(mask, None)
    found = guard.law(output)
    guard.settle()
    return found


@given(seed=seeds, shift=shifts, mask=st.integers(0, V - 1))
def test_a_law_is_idempotent_and_free_of_shifts_and_of_the_masks_mass(seed: int, shift: float, mask: int) -> None:
    logits = draw(seed, 3, V)
    wanted = guarded(logits, mask)
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(guarded(wanted, mask), wanted, **close)
    torch.testing.assert_close(guarded(logits + shift, mask), wanted, **close)
    torch.testing.assert_close(guarded(law(logits), mask), wanted, **close)
    torch.testing.assert_close(guarded(logits.index_fill(-1, torch.tensor(mask), shift), mask), wanted, **close)
    torch.testing.assert_close(wanted.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    assert (wanted[:, mask] == -math.inf).all()


@given(seed=seeds, zeros=st.sets(st.integers(0, V - 2), max_size=V - 2))
def test_impossible_tokens_stay_impossible_and_the_others_keep_their_odds(seed: int, zeros: set[int]) -> None:
    logits = draw(seed, V).index_fill(-1, torch.tensor(sorted(zeros), dtype=torch.long), -math.inf)
    found = guarded(logits[None], None)[0]
    assert {i for i in range(V) if found[i] == -math.inf} == zeros
    kept = [i for i in range(V) if i not in zeros]
    torch.testing.assert_close(found[kept] - found[kept[0]], logits[kept] - logits[kept[0]])


class Shifted:
    """A denoiser's output plus a number of every position's own, and mass on the mask; not factored."""

    def __init__(self, network: Tiny, seed: int) -> None:
        self.network, self.shift = network, draw(seed, LENGTH, 1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.network(x, t).double() + self.shift
        return out.index_fill(-1, torch.tensor([MASK]), 3.0)


MODES: list[dict[str, Any]] = [
    {"planner": "confidence"},
    {"planner": "margin", "positions_per_step": 2},
    {"planner": "entropy"},
    {"temperature": 0.7, "top_p": 0.9},
    {"steps": 3},
]


@settings(max_examples=15)
@given(seed=seeds, mode=st.sampled_from(MODES), guided=st.booleans())
def test_samples_and_likelihoods_are_free_of_shifts(seed: int, mode: dict[str, Any], guided: bool) -> None:
    network = Tiny(seed).double()
    network.table, network.out = network.table.double(), network.out.double()
    guidance = Guidance(TokenRatio(Tiny(seed + 1, False)), 1.3, 4) if guided else None
    shifted = Shifted(network, seed + 2)
    drawn = [
        sample(
            denoiser,
            mask_index=MASK,
            batch=4,
            length=LENGTH,
            guidance=guidance,
            generator=torch.Generator().manual_seed(seed),
            **mode,
        )
        for denoiser in (lambda x, t: network(x, t), shifted)
    ]
    assert torch.equal(*drawn)
    tokens = torch.where(drawn[0] == MASK, 0, drawn[0])
    values = [nelbo(d, tokens, Masking(mask_index=MASK, pad_index=V), guidance) for d in (network, shifted)]
    torch.testing.assert_close(values[0].per_sequence, values[1].per_sequence)
