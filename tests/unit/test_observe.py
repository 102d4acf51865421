"""Watching the sampler: what an observer may do, what it costs nobody, and the groups of arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import Blocks, Draw, Guidance, Order, SequenceRatio, Step, TokenRatio
from gtl_lightning.core import trace
from gtl_lightning.core.continuous import sample_continuous
from gtl_lightning.core.noise import Absorbing, Uniform
from gtl_lightning.core.trace import Progress
from gtl_lightning.errors import UserError
from gtl_lightning.networks import BackboneConfig, MaskedDenoiser, seeded
from gtl_lightning.workspace.params import configure
from gtl_lightning.workspace.sampler import Sampler
from tests.unit.test_sampling import LENGTH, MASK, Tiny, V, draw, sequence_f

RATIO = TokenRatio(Tiny(1, False))


def continuous(noise: Any, seed: int = 0, **options: Any) -> Tensor:
    options = {"batch": 5, "length": LENGTH, "steps": 4, "denoiser": Tiny(0), **options}
    return sample_continuous(noise=noise, generator=torch.Generator().manual_seed(seed), **options)


RUNS: dict[str, Callable[..., Tensor]] = {
    "random": draw,
    "callable": lambda **o: draw(planner=lambda x: x.float(), positions_per_step=2, **o),
    "blocks": lambda **o: draw(blocks=Blocks(4, margin=1), **o),
    "guided": lambda **o: draw(guidance=Guidance(SequenceRatio(sequence_f), n_ratio=3), **o),
    "ancestral": lambda **o: draw(steps=5, guidance=Guidance(RATIO), **o),
    "raw": lambda **o: draw(steps=5, guidance=Guidance(RATIO, stabilise=False), **o),
    "absorbing": lambda **o: continuous(Absorbing(MASK), guidance=Guidance(RATIO), **o),
    "uniform": lambda **o: continuous(Uniform(3), guidance=Guidance(RATIO), **o),
}
runs = pytest.mark.parametrize("run", RUNS)


def tensors(step: Step) -> dict[str, Tensor]:
    values = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@runs
def test_unwatched_nothing_of_a_trace_is_made(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a step, nor what it would hold, nor the place to keep it."""
    expected = RUNS[run]()
    for name in ("Step", "Candidates"):
        monkeypatch.setattr(trace, name, None)
    monkeypatch.setattr(trace.Trace, "__init__", None)
    for nobody in (None, []):
        assert torch.equal(RUNS[run](observe=nobody), expected)
    with pytest.raises(TypeError):
        RUNS[run](observe=print)


@runs
def test_steps_may_be_kept_and_the_samples_written_into(run: str) -> None:
    """Nothing that was told changes afterwards, though a denoiser give its own memory and the caller use the result."""

    class Thrifty(Tiny):
        memory: Tensor | None = None
        normalised = True

        def decode(self, h: Tensor) -> Tensor:
            out = super().decode(h)
            if self.memory is None or self.memory.shape != out.shape:
                self.memory = torch.empty_like(out)
            return self.memory.copy_(out)

    kept: list[Step] = []
    then: list[dict[str, Tensor]] = []

    def observe(step: Step) -> None:
        kept.append(step)
        then.append({name: value.clone() for name, value in tensors(step).items()})

    x = RUNS[run](denoiser=Thrifty(0), observe=observe)
    assert torch.equal(kept[-1].x, x)
    x.fill_(-1)
    for step, as_told in zip(kept, then, strict=True):
        now = tensors(step)
        assert now.keys() == as_told.keys()
        assert all(torch.equal(now[name], value) for name, value in as_told.items())


def test_a_step_is_frozen() -> None:
    steps: list[Step] = []
    draw(observe=steps.append)
    with pytest.raises(dataclasses.FrozenInstanceError):
        steps[0].done = 0  # type: ignore[misc]


@runs
def test_an_observers_error_reaches_the_caller_and_leaves_nothing_behind(run: str) -> None:
    """Modules get their mode back, and the next run is as if there had been none."""
    denoiser = Tiny(0).train()
    expected = RUNS[run](denoiser=Tiny(0))
    seen: list[int] = []

    def stumbles(step: Step) -> None:
        seen.append(step.index)
        if len(seen) == 2:
            raise KeyError("observer")

    with pytest.raises(KeyError, match="observer"):
        RUNS[run](denoiser=denoiser, observe=stumbles)
    assert denoiser.training
    assert len(seen) == 2
    assert torch.equal(RUNS[run](denoiser=denoiser), expected)


@runs
def test_observers_are_told_in_their_order(run: str) -> None:
    told: list[tuple[str, Step]] = []
    RUNS[run](observe=[lambda step: told.append(("a", step)), lambda step: told.append(("b", step))])
    assert [name for name, _ in told] == ["a", "b"] * (len(told) // 2)
    assert all(told[i][1] is told[i + 1][1] for i in range(0, len(told), 2))


@pytest.mark.parametrize("observe", [3, "bar", [print, 3], {print: 1}], ids=repr)
@pytest.mark.parametrize("run", ["random", "ancestral", "uniform"])
def test_what_cannot_be_called_does_not_observe(run: str, observe: Any) -> None:
    with pytest.raises(UserError, match="observe is a .*; give a function of a Step, or a list of them"):
        RUNS[run](observe=observe)


@pytest.mark.parametrize("run", [run for run in RUNS if run != "uniform"])
def test_progress_rises_to_the_end(run: str) -> None:
    seen: list[tuple[int, int]] = []
    RUNS[run](observe=Progress(lambda *n: seen.append(n)))
    done = [n for n, _ in seen]
    assert done == sorted(done)
    assert {total for _, total in seen} == {done[-1]}


def test_progress_goes_on_from_one_sampler_to_the_next() -> None:
    seen: list[tuple[int, int]] = []
    for before in (0, 5 * LENGTH):
        draw(positions_per_step=3, observe=Progress(lambda *n: seen.append(n), before, 10 * LENGTH))
    assert seen == [(n, 60) for n in (15, 30, 45, 60)]


def test_the_samples_of_a_cell_tell_of_every_step() -> None:
    """Lengths in several batches, behind a prompt: tokens revealed of those wanted, up to all of them."""
    with seeded(0):
        config = BackboneConfig(vocab_size=7, length=6, width=8, depth=1, heads=1, mask_index=MASK, pad_index=6)
        denoiser = MaskedDenoiser(config).eval()
    corpus: Any = SimpleNamespace(mask_index=MASK, pad_index=6, length=6)
    sampler = Sampler(denoiser, None, corpus, torch.device("cpu"), {}, {}, Path())
    params = configure(overrides=("evaluation.batch=2", "sampling.positions_per_step=1"))
    seen: list[tuple[int, int]] = []

    def drawn(progress: Any) -> list[Tensor]:
        prompt = torch.tensor([1, MASK])
        return sampler.draw(params, [4, 6, 4, 4], guidance=None, seed=0, prompt=prompt, progress=progress)

    watched = drawn(lambda *n: seen.append(n))
    assert all(torch.equal(a, b) for a, b in zip(watched, drawn(None), strict=True))
    assert seen == [(n, 14) for n in (2, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14)]


GROUPS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"order": Order(), "draw": Draw()}),
    ({"planner": "margin", "positions_per_step": 2}, {"order": Order("margin", 2)}),
    ({"blocks": Blocks(2)}, {"order": Order(blocks=Blocks(2))}),
    (
        {"planner": lambda x: x.float(), "planner_temperature": 0.0},
        {"order": Order(lambda x: x.float(), temperature=0.0)},
    ),
    ({"temperature": 0.5, "top_p": 0.9}, {"draw": Draw(0.5, 0.9)}),
    ({"steps": 3, "temperature": 0.0, "positions_per_step": 1}, {"steps": 3, "draw": Draw(0.0)}),
]


@pytest.mark.parametrize("case", range(len(GROUPS)))
def test_a_group_is_its_arguments(case: int) -> None:
    flat, grouped = GROUPS[case]
    assert torch.equal(draw(**flat), draw(**grouped))


TWICE: dict[str, tuple[dict[str, Any], str]] = {
    "planner": ({"order": Order(), "planner": "random"}, r"planner and order = Order\(...\) say one thing twice"),
    "default": ({"order": Order("margin", 4), "positions_per_step": 1}, "positions_per_step and order"),
    "temperature": ({"order": Order(), "planner_temperature": 1.0}, "planner_temperature and order"),
    "both": ({"draw": Draw(), "temperature": 0.5, "top_p": 0.9}, r"temperature, top_p and draw = Draw\(...\)"),
    "ancestral": ({"order": Order(), "steps": 3}, "exclude one another"),
    "kind": ({"order": "random"}, r"order is a str, not a Order; give for example Order\(\)"),
    "other": ({"draw": Order()}, r"draw is a Order, not a Draw; give for example Draw\(\)"),
}


@pytest.mark.parametrize("name", TWICE)
def test_an_argument_and_its_group_are_one_too_many(name: str) -> None:
    options, line = TWICE[name]
    with pytest.raises(UserError, match=line) as caught:
        draw(**options)
    assert "\n" not in str(caught.value)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "planner": (lambda: Order("best"), "planner 'best' is unknown; choose random"),
    "no planner": (lambda: Order(3), "planner is a int"),  # type: ignore[arg-type]
    "positions": (lambda: Order(positions_per_step=0), "positions_per_step must be at least 1, got 0"),
    "half": (lambda: Order(positions_per_step=1.5), "positions_per_step must be a whole"),  # type: ignore[arg-type]
    "order's temperature": (lambda: Order(temperature=-1.0), "temperature of the order must be finite"),
    "blocks": (lambda: Order(blocks=3), "blocks is a int, not a Blocks"),  # type: ignore[arg-type]
    "temperature": (lambda: Draw(float("nan")), "temperature must be finite"),
    "top_p": (lambda: Draw(top_p=0.0), r"top_p must lie in \(0, 1\]"),
    "flat": (lambda: draw(planner_temperature=-1.0), "planner_temperature must be finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_group_out_of_range_is_refused_when_it_is_made(name: str) -> None:
    make, line = WRONG[name]
    with pytest.raises(UserError, match=line) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_unguided_every_token_is_a_candidate() -> None:
    steps: list[Step] = []
    draw(observe=steps.append)
    assert all(step.log_p.shape == (5, V) and step.ids is None for step in steps)
