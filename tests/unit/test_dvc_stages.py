"""dvc.yaml: what a change of a parameter reruns, and what it leaves alone."""

from pathlib import Path

import pytest
import yaml

from gtl_lightning.config import Params

STAGES = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
TRAINING = ("source", "judge", "planner", "classifier", "baseline", "ratio")


def reads(stage: str, key: str) -> bool:
    """Whether a change of params.yaml's `key` makes the stage stale."""
    return any(key == name or key.startswith(f"{name}.") for name in map(str, STAGES[stage].get("params", [])))


@pytest.mark.parametrize("stage", TRAINING)
def test_gamma_and_n_ratio_train_nothing(stage: str) -> None:
    for key in (
        "sampling.gammas",
        "sampling.sample_gammas",
        "sampling.also_temperatures",
        "sampling.n_ratio",
        "ablation.gammas",
        "ablation.n_ratios",
    ):
        assert not reads(stage, key)


def test_gamma_resamples_guided_cells_alone() -> None:
    assert reads("evaluate-ratio", "sampling.gammas")
    assert not reads("evaluate-source", "sampling.gammas")
    assert not reads("evaluate-baseline", "sampling.gammas")
    assert not reads("evaluate-baseline", "sampling.sample_gammas")
    for stage in ("evaluate-source", "evaluate-baseline", "evaluate-ratio"):
        assert reads(stage, "sampling.top_p")
        assert reads(stage, "sampling.also_temperatures")


@pytest.mark.parametrize("stage", [name for name in STAGES if name not in ("report", "register")])
def test_the_grid_is_no_parameter_of_a_cell(stage: str) -> None:
    for key in ("sweep.fractions", "sweep.seeds", "sweep.baselines", "sweep.ratios"):
        assert not reads(stage, key)


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_that_a_stage_reads_exists(stage: str) -> None:
    values = Params().model_dump()
    for name in STAGES[stage].get("params", []):
        if "${" in name:
            continue
        found = values
        for part in name.split("."):
            assert part in found, name
            found = found[part]


@pytest.mark.parametrize("stage", [name for name in STAGES if "matrix" in STAGES[name]])
def test_every_matrix_reads_the_one_grid(stage: str) -> None:
    grid = "${markov." if stage.startswith("markov") else "${sweep."
    assert all(value.startswith(grid) for value in STAGES[stage]["matrix"].values())


def test_every_code_dependency_exists() -> None:
    root = Path(__file__).parents[2]
    named = {dep for stage in STAGES.values() for dep in stage.get("deps", []) if dep.startswith("gtl_lightning")}
    assert named
    for dep in named:
        assert (root / dep).exists(), dep
