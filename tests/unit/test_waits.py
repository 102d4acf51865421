"""The host hurries ahead of a GPU: no step of a sampler waits for it, a step of training asks before it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import Guidance, SequenceRatio, TokenRatio, sample
from gtl_lightning.bench.sampling import MASK, PAD, Bench
from gtl_lightning.bench.training import kept_laws, modules, training_step
from gtl_lightning.core.blocks import Blocks
from gtl_lightning.core.continuous import sample_continuous
from gtl_lightning.core.guidance import LinearGamma
from gtl_lightning.core.noise import Absorbing, Noise, Uniform
from tests.unit import fit_kit
from tests.unit.test_speed import tiny
from tests.waits import Waits, waits

CPU = torch.device("cpu")
LENGTH = 12
SUBJECT = Bench(tiny(), CPU)


def token(name: str = "token", **options: Any) -> Guidance:
    return Guidance(TokenRatio(SUBJECT.ratios[name]), **options)


def counted(call: Callable[[], object]) -> Waits:
    with waits() as found:
        call()
    return found


WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "a mask as index": lambda x: x[x > 1],
    "a mask to write at": lambda x: x.index_put_((x > 1,), x[0, :1].expand(2)),
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeats": lambda x: x[0].repeat_interleave(torch.tensor(1).expand(2)),
    "numbers of the host": lambda x: torch.tensor([1, 2], device=x.device),
    "a list as index": lambda x: x[[0, 1]],
}
FREE: dict[str, Callable[[Tensor], object]] = {
    "places as index": lambda x: x[x[0] - 1, x[0] - 1],
    "places to write at": lambda x: x.__setitem__((x[0] - 1, x[0] - 1), x[0].clone()),
    "a number to write": lambda x: x.__setitem__((..., 0), 3),
    "a number under a mask": lambda x: x.masked_fill(x > 1, 0),
    "where": lambda x: torch.where(x > 1, x, 0),
    "masked_scatter": lambda x: x.masked_scatter(x > 1, x),
    "order": lambda x: x.flatten().argsort()[:2],
    "repeats of one size": lambda x: x.repeat_interleave(2),
}


@pytest.mark.parametrize("name", [*WAITING, *FREE])
def test_the_observer_sees_what_waits_and_nothing_else(name: str) -> None:
    x = torch.tensor([[1, 2], [1, 2]])
    assert bool(counted(lambda: {**WAITING, **FREE}[name](x)).count) == (name in WAITING)


def test_a_wait_behind_a_product_leaves_the_device_without_work() -> None:
    x = torch.ones(2, 2)
    assert counted(lambda: (x.any().item(), x @ x)).late.total() == 0
    assert counted(lambda: (x @ x).any().item()).late.total() == 1


MODES: dict[str, dict[str, Any]] = {
    "unguided": {},
    "token ratio": {"guidance": token()},
    "some candidates": {"guidance": token(n_ratio=5)},
    "head": {"guidance": token("head")},
    "copy": {"guidance": token("warm", gamma=LinearGamma(1.0, 0.5))},
    "sequence ratio": {"guidance": Guidance(SequenceRatio(SUBJECT.sequence), n_ratio=3)},
    "several a step": {"positions_per_step": 3},
    "confidence": {"planner": "confidence", "guidance": token()},
    "margin": {"planner": "margin"},
    "entropy": {"planner": "entropy", "positions_per_step": 2},
    "learned": {"planner": SUBJECT.planner},
    "learned, likeliest": {"planner": SUBJECT.planner, "planner_temperature": 0.0},
    "blocks": {"blocks": Blocks(4, margin=1), "guidance": token()},
    "temperature and nucleus": {"temperature": 0.5, "top_p": 0.8},
}


@pytest.mark.parametrize("rows", ["alike", "uneven", "padded"])
@pytest.mark.parametrize("mode", MODES)
def test_no_step_that_reveals_positions_waits(mode: str, rows: str) -> None:
    """A run looks at the device when it begins and when it ends, however many steps there are between."""
    found = []
    for masks in (4, 11):
        prompt = torch.full((3, LENGTH), 5)
        prompt[:, :masks] = MASK
        if rows != "alike":
            prompt[0, :1], prompt[1, :3] = 6, 6
        if rows == "padded":
            prompt[0, -1] = PAD
        generator = torch.Generator().manual_seed(0)
        options = {"mask_index": MASK, "prompt": prompt, "generator": generator, **MODES[mode]}
        found.append(counted(lambda options=options: sample(SUBJECT.denoiser, **options)))
    assert found[0].seen == found[1].seen
    # The guard's at the end, and the denoiser's look for padding, once a run.
    assert sum(found[1].late.values()) <= 2, found[1].late


@pytest.mark.parametrize(
    ("options", "each"),
    [
        ({}, 0),
        ({"guidance": token()}, 0),
        ({"guidance": token("head", n_ratio=4)}, 0),
        ({"guidance": token(stabilise=False)}, 1),
        ({"guidance": Guidance(SequenceRatio(SUBJECT.sequence), stabilise=False)}, 1),
    ],
)
def test_ancestral_steps_wait_only_where_networks_decide_which_rows_are_read(
    options: dict[str, Any], each: int
) -> None:
    def run(steps: int) -> Waits:
        generator = torch.Generator().manual_seed(0)
        return counted(
            lambda: sample(
                SUBJECT.denoiser, mask_index=MASK, batch=3, length=LENGTH, steps=steps, generator=generator, **options
            )
        )

    few, many = run(3), run(8)
    assert many.count - few.count == 5 * each


@pytest.mark.parametrize("noise", [Absorbing(MASK), Uniform(SUBJECT.vocab_size)])
@pytest.mark.parametrize(("gamma", "each"), [(1.5, 0), (LinearGamma(1.0, 0.5), 1)])
def test_a_step_in_time_waits_only_for_a_strength_that_is_a_function(
    noise: Noise, gamma: float | LinearGamma, each: int
) -> None:
    def run(steps: int) -> Waits:
        return counted(
            lambda: sample_continuous(
                SUBJECT.denoiser,
                noise,
                batch=2,
                length=LENGTH,
                steps=steps,
                guidance=token(gamma=gamma),
                generator=torch.Generator().manual_seed(0),
            )
        )

    # A network that is a plain function looks for padding by itself: the denoiser and the ratio, at every step.
    assert run(7).count - run(3).count == 4 * (2 + each)


# Waits of a step, and those among them behind the first product: what of its shapes depends on its noise or its texts.
# Whether a network's input is padded, once for each input; how many positions are masked; which texts are the target's.
WAITS_OF_A_STEP = {
    "source": (2, 0),
    "tcsm-score": (2, 0),
    "tcsm-distribution": (2, 0),
    "tcsm-distilled": (5, 2),
    "tcsm-kept-32": (2, 0),
    "ratio": (5, 1),
    "head": (4, 0),
    "warm": (4, 0),
    "sequence": (1, 0),
    "classifier": (1, 0),
    "planner": (2, 0),
    "reference": (2, 0),
}


def test_a_step_of_training_asks_what_its_shapes_are_and_waits_for_nothing_else() -> None:
    """Neither its gradient nor its optimiser waits, and no index is looked for twice."""
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(2, SUBJECT.vocab_size, (6, LENGTH), generator=generator)
    x_0[:2, 9:] = PAD
    batch = {"x_0": x_0, "is_target": torch.arange(6) % 2 == 0, **kept_laws(SUBJECT, x_0, generator)}
    found = {}
    for name, module in modules(SUBJECT):
        step = training_step(module.train(), batch, "32-true")
        step()
        seen = counted(step)
        assert not [where for where in seen.seen if where.startswith("bench")], f"{name}: {seen.seen}"
        found[name] = seen
    assert {name: (waits.count, waits.late.total()) for name, waits in found.items()} == WAITS_OF_A_STEP


def test_a_fit_adds_no_wait_to_those_of_its_steps(tmp_path: Path) -> None:
    """Loop, clipping, optimiser, moving average and the look at the loss; the average's count lies with the host."""
    found = []
    for steps in (3, 7):
        with waits() as seen:
            fit_kit.run(fit_kit.module(), tmp_path / str(steps), steps=steps, check_every=steps, progress=False)
        found.append(sum(n for where, n in seen.seen.items() if not where.startswith("modules/callbacks.py")))
    assert found[1] - found[0] == 4 * WAITS_OF_A_STEP["source"][0]
