"""What observers are told is what happened: steps make up the outcome, and hold what the networks say of the state."""

import itertools
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gtl_lightning import Blocks, Guidance, SequenceRatio, Step, TokenRatio, sample
from gtl_lightning.core.continuous import euler, sample_continuous, tau_leaping
from gtl_lightning.core.guard import law
from gtl_lightning.core.noise import Absorbing, Uniform
from tests.unit.test_sampling import LENGTH, MASK, Tiny, V, sequence_f

PAD = 6
RATIO = Tiny(1, False)
SCORED = SequenceRatio(sequence_f)

seeds = st.integers(0, 2**31)
orders = st.one_of(
    st.fixed_dictionaries(
        {
            "planner": st.sampled_from(["random", "confidence", "margin", lambda x: x.float()]),
            "positions_per_step": st.integers(1, LENGTH + 1),
            "blocks": st.none() | st.builds(Blocks, st.integers(1, LENGTH), st.integers(0, 2), st.none() | st.just(1)),
        }
    ),
    st.fixed_dictionaries({"steps": st.integers(1, 9)}),
)
draws = st.sampled_from([{}, {"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.8}])
guidances = st.none() | st.builds(
    Guidance,
    st.sampled_from([TokenRatio(RATIO), SCORED]),
    st.sampled_from([0.0, 1.5, lambda share: 1 + share]),
    st.none() | st.integers(1, V),
    st.booleans(),
    chunk=st.integers(1, 50),
)


@st.composite
def prompts(draw: Any) -> Tensor:
    """Long[b,l] of any length: tokens, masks, and padding of either side."""
    length, left = draw(st.integers(1, LENGTH)), draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        own = draw(st.lists(st.sampled_from([0, 1, 2, MASK, MASK, MASK, 4, 5]), min_size=1, max_size=length))
        pads = [PAD] * (length - len(own))
        rows.append(pads + own if left else own + pads)
    return torch.tensor(rows)


class Padded(Tiny):
    """A denoiser that tells its padding."""

    pad_index = PAD


def watched(seed: int, prompt: Tensor, **options: Any) -> tuple[Tensor, list[Step]]:
    """The samples, which are those that nobody watches, and the steps."""
    steps: list[Step] = []
    x, unwatched = (
        sample(
            Padded(0),
            mask_index=MASK,
            prompt=prompt,
            generator=torch.Generator().manual_seed(seed),
            observe=observe,
            **options,
        )
        for observe in (steps.append, None)
    )
    assert torch.equal(x, unwatched)
    return x, steps


def lengths(prompt: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Long[b] tokens of each row, and of these the revealed; a prompt without padding may draw its id."""
    own = (prompt != PAD).sum(-1)
    return own, own - (step.before == MASK).sum(-1)


def everywhere(step: Step, values: Tensor) -> Tensor:
    """Float[b]: values Float[m] of the rows of a step, anything elsewhere."""
    return torch.zeros(len(step.x)).index_put((step.rows,), values.float())


@settings(max_examples=60)
@given(seed=seeds, prompt=prompts(), order=orders, how=draws, guidance=guidances)
def test_the_steps_make_up_the_outcome(
    seed: int, prompt: Tensor, order: dict[str, Any], how: dict[str, Any], guidance: Guidance | None
) -> None:
    """Rows and positions are the caller's: put into the prompt, the tokens of the steps give the samples."""
    x, steps = watched(seed, prompt, guidance=guidance, **order, **how)
    built, wanted = prompt.clone(), int((prompt == MASK).sum())
    assert [step.index for step in steps] == sorted({step.index for step in steps})
    for step in steps:
        assert torch.equal(step.before, built)
        assert (built[step.rows, step.positions] == MASK).all()
        assert torch.equal(step.replaced, torch.full_like(step.tokens, MASK))
        built[step.rows, step.positions] = step.tokens
        assert torch.equal(step.x, built)
        assert step.done == wanted - int((built == MASK).sum())
        assert step.wanted == wanted
        assert 1 <= step.index <= step.steps
    assert torch.equal(built, x)
    if "steps" not in order:
        assert [step.index for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.steps == order.get("steps", len(steps)) for step in steps)


@settings(max_examples=60)
@given(seed=seeds, prompt=prompts(), order=orders, guidance=guidances)
def test_a_step_holds_the_denoisers_law_of_the_state_before(
    seed: int, prompt: Tensor, order: dict[str, Any], guidance: Guidance | None
) -> None:
    """At the time of the row's own revealed share; pruned, of the likeliest tokens; in padded runs without padding."""
    excluded = (torch.arange(V) == MASK) | ((torch.arange(V) == PAD) & (prompt == PAD).any())
    for step in watched(seed, prompt, guidance=guidance, **order)[1]:
        own, revealed = lengths(prompt, step)
        torch.testing.assert_close(step.t, (1 - revealed / own)[step.rows])
        output = Tiny(0)(step.before, everywhere(step, step.t))[step.rows, step.positions]
        expected = law(output, excluded)
        kept = guidance.n_ratio if guidance is not None and guidance.n_ratio not in (None, V) else None
        assert (step.ids is None) == (kept is None)
        if step.ids is not None:
            likeliest = expected.topk(step.ids.shape[-1], -1).values
            expected = expected.gather(-1, step.ids)
            torch.testing.assert_close(expected, likeliest)
            assert step.ids.shape[-1] == kept
            assert (step.ids == step.tokens[:, None]).any(-1).all()
        torch.testing.assert_close(step.log_p, expected)


@settings(max_examples=60)
@given(seed=seeds, prompt=prompts(), order=orders, guidance=guidances)
def test_a_step_holds_the_ratios_and_the_strength(
    seed: int, prompt: Tensor, order: dict[str, Any], guidance: Guidance | None
) -> None:
    """Token ratios at the state before, sequence ratios at every candidate's own state, gamma at the revealed share."""
    for step in watched(seed, prompt, guidance=guidance, **order)[1]:
        if guidance is None:
            assert step.log_r is None
            assert step.gamma is None
            continue
        assert step.log_r is not None
        assert step.gamma is not None
        ids = step.ids if step.ids is not None else torch.arange(V).expand(len(step.rows), -1)
        own, revealed = lengths(prompt, step)
        if guidance.ratio is SCORED:
            later = 1 - (revealed + 1) / own
            expected = torch.stack(
                [
                    sequence_f(
                        step.before[step.rows].scatter(1, step.positions[:, None], one[:, None]), later[step.rows]
                    )
                    for one in ids.unbind(-1)
                ],
                -1,
            )
        else:
            expected = RATIO(step.before, everywhere(step, step.t))[step.rows, step.positions].gather(-1, ids)
        torch.testing.assert_close(step.log_r, expected, atol=1e-4, rtol=1e-4)
        strengths = (revealed / own).apply_(guidance.gamma) if callable(guidance.gamma) else own * 0 + guidance.gamma
        torch.testing.assert_close(step.gamma, strengths[step.rows], check_dtype=False)


@settings(max_examples=40)
@given(
    seed=seeds,
    noise=st.sampled_from([Absorbing(MASK), Uniform(3)]),
    leap=st.sampled_from([euler, tau_leaping]),
    steps=st.integers(1, 6),
    ratio=st.sampled_from([None, TokenRatio(RATIO), SCORED]),
    n_ratio=st.none() | st.integers(1, V),
)
def test_in_continuous_time_the_steps_are_the_jumps(
    seed: int, noise: Any, leap: Any, steps: int, ratio: Any, n_ratio: int | None
) -> None:
    """From the first to the last state without a gap, a token that jumped at every place, laws of the state before."""
    pruned = n_ratio if isinstance(noise, Absorbing) else None
    guidance = None if ratio is None else Guidance(ratio, lambda share: 1 + share, pruned)
    seen: list[Step] = []
    options: dict[str, Any] = {"batch": 3, "length": LENGTH, "steps": steps, "guidance": guidance, "leap": leap}
    x, unwatched = (
        sample_continuous(Tiny(0), noise, generator=torch.Generator().manual_seed(seed), observe=observe, **options)
        for observe in (seen.append, None)
    )
    assert torch.equal(x, unwatched)
    assert torch.equal(seen[-1].x, x) if seen else isinstance(noise, Uniform)
    for earlier, later in itertools.pairwise(seen):
        assert torch.equal(earlier.x, later.before)
        assert earlier.index <= later.index <= later.steps == steps
    for step in seen:
        changed = (step.x != step.before).nonzero()
        assert torch.equal(changed, torch.stack([step.rows, step.positions], 1))
        assert torch.equal(step.replaced, step.before[step.rows, step.positions])
        assert torch.equal(step.tokens, step.x[step.rows, step.positions])
        assert (step.done, step.wanted) == (step.index, steps)
        t = torch.full((3,), float(step.t[0]))
        expected = noise.law(Tiny(0)(step.before, t), step.before)[step.rows, step.positions]
        ids = step.ids if step.ids is not None else torch.arange(V).expand(len(step.rows), -1)
        torch.testing.assert_close(step.log_p, expected.gather(-1, ids))
        if guidance is None:
            assert step.log_r is step.gamma is None
            continue
        assert step.log_r is not None
        assert step.gamma is not None
        torch.testing.assert_close(step.gamma, 2 - step.t, check_dtype=False)  # LogLinear: alpha = 1 - t
        if ratio is SCORED:
            at = step.before[step.rows]
            tried = [at.scatter(1, step.positions[:, None], one[:, None]) for one in ids.unbind(-1)]
            log_r = torch.stack([sequence_f(one, step.t) for one in tried], -1)
        else:
            log_r = RATIO(step.before, t)[step.rows, step.positions].gather(-1, ids)
        if isinstance(noise, Uniform):
            assert (step.log_r[:, 3:] == -torch.inf).all()
        n = 3 if isinstance(noise, Uniform) else None
        torch.testing.assert_close(step.log_r[:, :n], log_r[:, :n], atol=1e-4, rtol=1e-4)
