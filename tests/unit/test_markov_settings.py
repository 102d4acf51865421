"""Bad settings of the Markov study: one line each, naming the parameter and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtl_lightning.errors import UserError
from gtl_lightning.studies.markov.domains import chains
from gtl_lightning.studies.markov.models import Problem
from gtl_lightning.studies.markov.study import load_source
from gtl_lightning.workspace.params import Params, configure, dump_params, load_params

MISTAKES = {
    "not square": (
        ("markov.states=2", "markov.target_transition=[[0.5, 0.5], [1.0]]"),
        r"markov: target_transition has 2 rows of 1 or 2 entries; states = 2 asks for a square",
    ),
    "too few rows": (
        ("markov.source_transition=[[0.5, 0.5], [0.5, 0.5]]",),
        r"markov: source_transition has 2 rows of 2 entries; states = 5",
    ),
    "not stochastic": (
        ("markov.states=2", "markov.target_transition=[[0.5, 0.5], [0.5, 0.6]]"),
        r"markov: target_transition\[1\] sums to 1.1; .*must sum to 1",
    ),
    "a negative probability": (
        ("markov.states=2", "markov.source_transition=[[1.5, -0.5], [0.5, 0.5]]"),
        r"markov.source_transition.0.1 = -0.5",
    ),
    "a target transition of probability zero": (
        ("markov.states=2", "markov.target_transition=[[0.0, 1.0], [0.5, 0.5]]"),
        r"transition\[0, 0\] is 0 in the target and 0.1 in the source: the density ratio is zero or infinite",
    ),
    "a target that never moves": (
        ("markov.target_diagonal=1.0",),
        r"markov.target_diagonal = 1.0: input should be less than 1",
    ),
    "no sequences": (("markov.sizes=[20, 0]",), r"markov.sizes.1 = 0: input should be greater than or equal to 2"),
    "fewer sequences than folds": (
        ("markov.sizes=[3]",),
        r"markov: sizes: n = 3 target sequences cannot be cut into parts = 5; raise n",
    ),
    "a seed twice": (("markov.seeds=[1, 1]",), r"markov: seeds lists a value twice: \[1, 1\]"),
    "too long": (("markov.length=500",), r"markov.length = 500: .*less than or equal to 128"),
    "one state": (("markov.states=1",), r"markov.states = 1: .*greater than or equal to 2"),
    "several learning rates": (
        ("markov.token.also_lr=[0.1]",),
        r"markov: token.also_lr: trainings of this study take one learning rate; leave it empty",
    ),
    "an unknown key": (("markov.size=3",), r"unknown parameter markov.size; remove it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_settings_are_named(name: str) -> None:
    overrides, message = MISTAKES[name]
    with pytest.raises(UserError, match=message) as caught:
        chains(configure(overrides=overrides).markov)
    assert "\n" not in str(caught.value)


def test_a_matrix_survives_the_file(tmp_path: Path) -> None:
    params = configure(overrides=("markov.states=2", "markov.target_transition=[[0.9, 0.1], [0.2, 0.8]]"))
    (tmp_path / "params.yaml").write_text(dump_params(params))
    assert load_params(tmp_path / "params.yaml") == params
    assert chains(params.markov)[1].transition.tolist() == [[0.9, 0.1], [0.2, 0.8]]


def test_cells_before_the_source_say_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="markov/source/network.safetensors does not exist; train it first"):
        load_source()


def test_an_unknown_method_is_named() -> None:
    source, target = chains(Params().markov)
    problem = Problem(Params(), source, target, None, 20, 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="method wizard is unknown; choose one of vanilla, finetune"):
        problem.fit("wizard")
