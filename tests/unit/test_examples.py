"""What the examples claim: each is run as a reader runs it, by its main()."""

import importlib
import itertools
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@cache
def outcome(name: str) -> Any:
    return importlib.import_module(f"examples.{name}").main()


def test_a_ratio_learned_from_300_words_brings_ones_own_denoiser_to_the_target() -> None:
    """Nearer than the denoiser alone, and nearer than the words that it was learned from: that is transfer."""
    found = outcome("guide_your_own_denoiser")
    assert found.unguided > 0.3
    assert found.guided < 0.125 < found.examples
    assert found.chance < 0.03


def test_the_oracle_draws_from_the_chain_that_it_is_guided_to() -> None:
    """A row counts some 15,600 transitions: the standard deviation of an entry is .0032, and five are allowed."""
    found = outcome("markov_oracle")
    assert (found.source - found.target).abs().max() > 0.6
    assert (found.unguided - found.source).abs().max() < 0.016
    assert (found.guided - found.target).abs().max() < 0.016


def test_what_is_watched_is_how_the_sequences_came_about() -> None:
    """One token of each sequence a frame, none of them changed later, and the outcome is that of an unwatched run."""
    found = outcome("watch_the_sampler")
    mask = found.frames.max()
    rows, length = found.x.shape
    assert len(found.frames) == length
    assert torch.equal(found.frames[-1], found.x)
    for seen, (before, after) in enumerate(itertools.pairwise(found.frames), 1):
        assert ((before != mask).sum(1) == seen).all()
        assert (after == before)[before != mask].all()
    assert found.progress == [(rows * k, rows * length) for k in range(1, length + 1)]
    assert torch.equal(found.x, found.unwatched)
    # One position a step: by the chain rule the conditionals make up the chain's own law of the sequence.
    chain = importlib.import_module("examples.watch_the_sampler").CHAIN
    steps = itertools.pairwise(found.x[0].tolist())
    law = chain.initial[found.x[0, 0]].log() + sum(chain.transition[a, b].log() for a, b in steps)
    assert float(found.log_p.double().sum()) == pytest.approx(float(law), abs=1e-4)


def test_five_lines_bring_ones_own_denoiser_to_the_target() -> None:
    """Held-out target text becomes likelier by half a nat a token, and samples count the wanted way."""
    found = outcome("ratio_for_your_own_denoiser")
    assert 0.5 <= found.gamma <= 1.5
    assert found.guided < found.unguided - 0.5
    assert found.down_before < 0.3 < 0.5 < found.down_after


def test_five_lines_bring_a_hub_denoiser_to_the_target() -> None:
    """A BERT as transformers saves one: held-out target text becomes likelier, and nothing special is drawn."""
    found = outcome("guide_a_hub_denoiser")
    assert 0.5 <= found.gamma <= 1.5
    assert found.guided < found.unguided - 0.5
    assert found.x.shape == (32, 8) and not torch.isin(found.x, torch.tensor([0, 2, 4])).any()


@pytest.mark.parametrize("name", NAMES)
def test_an_example_leaves_and_needs_no_random_state_but_its_own(name: str) -> None:
    """A second run, after other draws from torch's global generator, gives the same to the last bit."""
    first = outcome(name)
    torch.manual_seed(7)
    again = importlib.import_module(f"examples.{name}").main()
    for one, other in zip(first, again, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_a_test_and_a_place_in_the_readme(name: str) -> None:
    assert f'outcome("{name}")' in Path(__file__).read_text()
    assert f"(examples/{name}.py)" in (ROOT / "README.md").read_text()


def test_an_example_runs_by_the_command_that_it_names() -> None:
    """From the project's folder; what it has to say goes through logging."""
    name = "examples/watch_the_sampler.py"
    assert f"python {name}" in (ROOT / name).read_text()
    done = subprocess.run([sys.executable, name], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith("36 of 36 tokens")
