"""A flow never changes params.yaml unasked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flows.parameters import Wanted, grid_of, run_name, settle, shows
from gtl_lightning.errors import UserError
from gtl_lightning.studies.markov.params import PARAMS as STUDY
from gtl_lightning.studies.markov.params import load_settings, write_settings
from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.workspace.params import configure, load_params, write_params


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    write_params(configure(), tmp_path / "params.yaml")
    return tmp_path


def test_asking_for_nothing_takes_the_file_as_it_is(root: Path) -> None:
    write_params(configure("default", ("train.source.steps=700",)), root / "params.yaml")
    assert settle(Wanted(), root).train.source.steps == 700


def test_overrides_that_change_nothing_are_accepted(root: Path) -> None:
    before = (root / "params.yaml").read_text()
    settle(Wanted(overrides=("ablation.fraction=0.05",)), root)
    assert (root / "params.yaml").read_text() == before


def test_a_change_is_refused_and_named(root: Path) -> None:
    before = (root / "params.yaml").read_text()
    with pytest.raises(UserError, match=r"ablation\.fraction: 0\.05 -> 0\.3.*write_params"):
        settle(Wanted(overrides=("ablation.fraction=0.3",)), root)
    assert (root / "params.yaml").read_text() == before


def test_a_hand_edit_that_would_be_lost_is_named(root: Path) -> None:
    write_params(configure("default", ("train.source.steps=700",)), root / "params.yaml")
    with pytest.raises(UserError, match=rf"train\.source\.steps: 700 -> {configure().train.source.steps}"):
        settle(Wanted(profile="default"), root)


def test_a_hand_edit_survives_an_override_and_a_wider_grid(root: Path) -> None:
    write_params(configure("default", ("train.source.steps=700",)), root / "params.yaml")
    params = settle(Wanted(overrides=("schedule=cosine",), fractions=(0.5,), write_params=True), root)
    assert params.train.source.steps == 700
    assert params.schedule == "cosine"
    assert params.sweep.fractions == (*configure().sweep.fractions, 0.5)
    assert load_params(root / "params.yaml") == params


def test_write_params_writes_what_was_asked(root: Path) -> None:
    methods = ("gtl-sequence-bce", "lora")
    wanted = Wanted(overrides=("schedule=cosine",), fractions=(0.5, 1.0), methods=methods, write_params=True)
    params = settle(wanted, root)
    assert params == load_params(root / "params.yaml")
    assert params.schedule == "cosine"
    before = configure().sweep
    assert params.sweep.fractions == (*before.fractions, 0.5)
    assert params.sweep.baselines == before.baselines
    assert params.sweep.ratios == (*before.ratios, "gtl-sequence-bce")
    assert wanted.narrows(params)


def test_a_method_is_added_to_the_list_that_its_kind_has(root: Path) -> None:
    before = configure().sweep
    wanted = Wanted(methods=("gtl-finetuned", "gtl-head", "finetune"), write_params=True)
    sweep = settle(wanted, root).sweep
    assert (sweep.baselines, sweep.ratios) == (before.baselines, (*before.ratios, "gtl-head"))
    assert sweep.tuned_ratios == ("gtl-finetuned",)
    assert sweep.methods == (*sweep.baselines, *sweep.ratios, *sweep.tuned_ratios)
    assert Wanted(methods=("finetune",)).narrows(load_params(root / "params.yaml"))
    assert not Wanted(methods=sweep.methods).narrows(load_params(root / "params.yaml"))


def test_a_part_of_the_grid_changes_nothing_and_narrows(root: Path) -> None:
    before = (root / "params.yaml").read_text()
    wanted = Wanted(fractions=(0.05,), seeds=(0,), methods=("gtl",))
    params = settle(wanted, root)
    assert (root / "params.yaml").read_text() == before
    assert wanted.narrows(params)
    assert not Wanted(fractions=params.sweep.fractions).narrows(params)


def test_the_part_of_a_grid_is_a_part_of_the_profile_asked_for(root: Path) -> None:
    (root / "profiles").mkdir()
    (root / "profiles" / "three.yaml").write_text("sweep: {seeds: [0, 1, 2]}\n")
    wanted = Wanted(profile="three", seeds=(1,), write_params=True)
    assert settle(wanted, root).sweep.seeds == (0, 1, 2)
    assert wanted.narrows(load_params(root / "params.yaml"))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted(fractions=(0.3,), seeds=(1,)), "leaves out seed 1 at the share 0.3"),
        (Wanted(fractions=(1.0, 0.3), seeds=(0, 1)), "leaves out seed 1 at the share 0.3"),
        (Wanted(seeds=(5,), write_params=True), "leaves out seed 5; raise its numbers"),
    ],
)
def test_what_repeats_leave_out_is_no_part_of_a_flow(root: Path, wanted: Wanted, said: str) -> None:
    """It would end Completed, with nothing run and no such cell."""
    grid = ("sweep.seeds=[0, 1, 2]", "sweep.fractions=[1.0, 0.3]", "sweep.repeats=[3, 1]", "ablation.fraction=0.3")
    write_params(configure(overrides=grid), root / "params.yaml")
    before = (root / "params.yaml").read_text()
    with pytest.raises(UserError, match=re.escape(said)):
        settle(wanted, root)
    assert (root / "params.yaml").read_text() == before
    assert settle(Wanted(seeds=(1,)), root).sweep.repeats == (3, 1)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(profile="nosuch"), "unknown profile 'nosuch'"),
        (Wanted(overrides=("nosuch=1",)), "unknown parameter nosuch"),
        (Wanted(overrides=("schedule",)), "key=value"),
    ],
)
def test_bad_configuration_is_one_clear_line(root: Path, wanted: Wanted, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle(wanted, root)


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no dvc\.yaml"):
        settle(Wanted(), tmp_path)


def test_the_studys_file_is_kept_as_params_yaml_is(root: Path) -> None:
    """Refused with the changes, then written; params.yaml stays."""
    write_settings(Markov(), root / STUDY)
    before = [(root / name).read_text() for name in ("params.yaml", STUDY)]
    settle(Wanted(study=("kl_draws=500",)), root)
    with pytest.raises(
        UserError, match=rf"this run would change {STUDY} \(seeds: \[0, 1, 2\] -> \[0\]\); set write_params"
    ):
        settle(Wanted(study=("seeds=[0]",)), root)
    assert [(root / name).read_text() for name in ("params.yaml", STUDY)] == before
    settle(Wanted(study=("seeds=[0]",), write_params=True), root)
    assert load_settings(root / STUDY).seeds == (0,)
    assert (root / "params.yaml").read_text() == before[0]
    with pytest.raises(UserError, match="unknown parameter nosuch"):
        settle(Wanted(study=("nosuch=1",), write_params=True), root)


def test_the_form_says_what_the_grid_has_now(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        """A flow.

        Args:
            fractions: shares; none takes the grid's. Others are added.
            seeds: repetitions; none takes the grid's.
            other: what is; none of it is the grid's.
        """

    said = asked.__doc__ or ""
    monkeypatch.chdir(root)
    write_params(configure("default", ("sweep.fractions=[1.0, 0.05]", "sweep.seeds=[0, 7]")), root / "params.yaml")
    shown = shows(grid_of)(asked).__doc__ or ""
    assert "fractions: shares; none takes the grid's, now 1.0, 0.05. Others are added." in shown
    assert "seeds: repetitions; none takes the grid's, now 0, 7." in shown
    assert "other: what is; none of it is the grid's." in shown
    asked.__doc__ = said
    (root / "params.yaml").write_text("sweep: [")
    assert shows(grid_of)(asked).__doc__ == said


def test_every_form_that_takes_the_grid_shows_it() -> None:
    from flows.flows import ablation, pipeline, scarcity_sweep

    for flow in (ablation, pipeline, scarcity_sweep):
        told = [parameter["description"] for parameter in flow.parameters.properties.values()]
        taken = [text for text in told if "none takes" in text or "none keeps" in text]
        assert taken and all(", now " in text for text in taken)


@pytest.mark.parametrize(
    ("flow", "parameters", "name"),
    [
        ("pipeline", {"where": "here", "overrides": None, "parallel": 2}, "pipeline: all of params.yaml"),
        (
            "scarcity-sweep",
            {"methods": ["gtl", "lora"], "fractions": [0.05, 1.0], "seeds": [1, 2], "where": "gpu"},
            "scarcity-sweep: gtl, lora at 5 %, 100 %; seeds 1, 2 on GPUs",
        ),
        ("scarcity-sweep", {"fractions": [0.05]}, "scarcity-sweep: at 5 %"),
        ("ablation", {"method": "gtl", "fraction": 0.3, "gammas": [0.5, 1.0]}, "ablation: gtl at 30 %; gammas 0.5, 1"),
        ("markov-study", {"overrides": ["seeds=[0]"]}, "markov-study: seeds=[0]"),
        ("stage", {"stage": "ratio@gtl-0.05-0", "share": True}, "stage: ratio@gtl-0.05-0"),
        (
            "pipeline",
            {"profile": "paper", "overrides": ["x=" + 200 * "1"]},
            ("pipeline: profile paper; x=" + 200 * "1")[:120],
        ),
    ],
)
def test_a_run_is_named_by_what_it_runs(flow: str, parameters: dict[str, Any], name: str) -> None:
    assert run_name(flow, parameters) == name
