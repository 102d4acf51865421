"""Equalities between two ways of asking for the same samples, for any network, seed and mode."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gtl_lightning import Guidance, SequenceRatio, TokenRatio, sample
from tests.oracle.enumeration import Enumeration, random_laws
from tests.unit.test_sampling import LENGTH, MASK, Tiny, V, sequence_f

seeds = st.integers(0, 2**31)
modes = st.sampled_from(
    [
        {},
        {"planner": "confidence"},
        {"planner": "entropy", "positions_per_step": 2},
        {"planner": lambda x: x.float(), "planner_temperature": 2.0},
        {"positions_per_step": 4, "temperature": 0.7, "top_p": 0.9},
        {"steps": 3},
    ]
)
prompts = st.lists(st.lists(st.integers(0, V - 1), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=4)


def draw(denoiser: Any, seed: int, **options: Any) -> Tensor:
    if "prompt" not in options:
        options |= {"batch": 4, "length": LENGTH}
    return sample(denoiser, **{"mask_index": MASK, "generator": torch.Generator().manual_seed(seed), **options})


def plain(network: Tiny) -> Any:
    """The same network without encode and decode."""
    return lambda x, t: network(x, t)


@settings(max_examples=15)
@given(seed=seeds, mode=modes)
def test_gamma_zero_is_unguided(seed: int, mode: dict[str, Any]) -> None:
    unguided = draw(Tiny(seed), seed, **mode)
    for ratio in (TokenRatio(Tiny(seed + 1, False)), SequenceRatio(sequence_f)):
        assert torch.equal(draw(Tiny(seed), seed, guidance=Guidance(ratio, gamma=0.0), **mode), unguided)


@settings(max_examples=15)
@given(seed=seeds, mode=modes, gamma=st.floats(0, 5))
def test_full_vocabulary_is_no_pruning(seed: int, mode: dict[str, Any], gamma: float) -> None:
    for ratio in (TokenRatio(Tiny(seed + 1, False)), SequenceRatio(sequence_f)):
        all_tokens, pruned = (
            draw(Tiny(seed), seed, guidance=Guidance(ratio, gamma, n_ratio), **mode) for n_ratio in (None, V)
        )
        assert torch.equal(all_tokens, pruned)


@settings(max_examples=15)
@given(seed=seeds, mode=modes, n_ratio=st.integers(1, V), stabilise=st.booleans())
def test_factored_is_plain(seed: int, mode: dict[str, Any], n_ratio: int, stabilise: bool) -> None:
    denoiser, ratio = Tiny(seed), Tiny(seed + 1, False)
    factored, dense = (
        draw(d, seed, guidance=Guidance(TokenRatio(r), 1.5, n_ratio, stabilise), **mode)
        for d, r in ((denoiser, ratio), (plain(denoiser), plain(ratio)))
    )
    assert torch.equal(factored, dense)


@settings(max_examples=15)
@given(seed=seeds, mode=modes, n_ratio=st.integers(1, V), chunk=st.integers(1, 50))
def test_chunks_change_nothing(seed: int, mode: dict[str, Any], n_ratio: int, chunk: int) -> None:
    small, large = (
        draw(Tiny(seed), seed, guidance=Guidance(SequenceRatio(sequence_f), 1.0, n_ratio, chunk=size), **mode)
        for size in (chunk, 10_000)
    )
    assert torch.equal(small, large)


LAWS: Enumeration = random_laws(vocab=3, length=4, seed=1)


@settings(max_examples=15)
@given(
    seed=seeds,
    gamma=st.floats(0, 5),
    n_ratio=st.integers(1, 4),
    stabilise=st.booleans(),
    mode=st.sampled_from([{}, {"planner": "margin"}, {"positions_per_step": 3}, {"steps": 4}]),
)
def test_token_and_sequence_paths_agree(
    seed: int, gamma: float, n_ratio: int, stabilise: bool, mode: dict[str, Any]
) -> None:
    """With exact ratios both kinds give the same log-weights, so the same generator gives the same samples.

    The raw ancestral step takes r(x_U) from eq. 6 for a token ratio, which pruning cuts short: no pruning there.
    """
    pruned = 4 if "steps" in mode and not stabilise else n_ratio
    options = {"batch": 8, "length": 4, "mask_index": LAWS.mask_index, **mode}
    by_token, by_sequence = (
        sample(
            LAWS.denoiser,
            guidance=Guidance(ratio, gamma, pruned, stabilise),
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        for ratio in (TokenRatio(LAWS.token_log_ratio), SequenceRatio(LAWS.sequence_log_ratio))
    )
    assert torch.equal(by_token, by_sequence)


@settings(max_examples=15)
@given(seed=seeds, mode=modes, tokens=prompts)
def test_prompts_are_kept(seed: int, mode: dict[str, Any], tokens: list[list[int]]) -> None:
    prompt = torch.tensor(tokens)
    x = draw(Tiny(seed), seed, prompt=prompt, guidance=Guidance(SequenceRatio(sequence_f), n_ratio=2), **mode)
    assert x.shape == prompt.shape
    assert torch.equal(x[prompt != MASK], prompt[prompt != MASK])
    assert (x != MASK).all()
