"""What a sweep pins: the values of the files that say what exists, whose edit is told once and for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.grid import Grid, Stage
from flows.pinned import Pinned, outdated
from flows.runner import Outcome
from gtl_lightning.errors import UserError

STUDY = "gtl_lightning/studies/markov"
MAIN, CHAINS = Stage("source"), Stage(f"{STUDY}/dvc.yaml:markov-source")
PARAMS = "evaluation:\n  seed: 0 # of the sampler\n  samples: 8\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / STUDY).mkdir(parents=True)
    for folder in (tmp_path, tmp_path / STUDY):
        (folder / "dvc.yaml").write_text("stages: {}\n")
        (folder / "params.yaml").write_text(PARAMS)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PARAMS.replace("0", "1"), r"params.yaml was edited while the sweep ran \(evaluation.seed: 0 -> 1\); .*again"),
        (PARAMS.replace("0", "1").replace("8", "9"), r".*\(evaluation.seed: 0 -> 1 and 1 more\); .*again"),
        ("evaluation: {}", r".*\(evaluation.seed: 0 -> unset and 1 more\); .*again"),
        (PARAMS + "new: [1]\n", r".*\(new: unset -> \[1\]\); .*again"),
        ("a: [", r"params.yaml cannot be read any more; put it back: .*again"),
    ],
)
def test_an_edit_is_one_line_and_stays_told_when_it_is_put_back(text: str, said: str, root: Path) -> None:
    import re

    pinned = Pinned(root)
    assert pinned.changed([MAIN]) == ""
    (root / "params.yaml").write_text(text)
    found = pinned.changed([MAIN])
    assert re.fullmatch(said, found), found
    (root / "params.yaml").write_text(PARAMS)
    assert pinned.changed([MAIN]) == found
    assert Pinned(root).changed([MAIN]) == ""


def test_comments_and_blanks_are_free(root: Path) -> None:
    pinned = Pinned(root)
    (root / "params.yaml").write_text("# mine\nevaluation: {samples: 8, seed: 0}\n")
    assert pinned.changed([MAIN]) == ""


def test_a_study_is_pinned_for_its_own_stages_and_the_project_for_all(root: Path) -> None:
    pinned = Pinned(root)
    (root / STUDY / "params.yaml").write_text("evaluation: {}\n")
    assert pinned.changed([MAIN]) == ""
    assert pinned.changed([CHAINS]).startswith(f"{STUDY}/params.yaml was edited")
    (root / STUDY / "params.yaml").write_text(PARAMS)
    again = Pinned(root)
    (root / "dvc.yaml").write_text("stages: {a: {cmd: b}}\n")
    assert again.changed([CHAINS]).startswith("dvc.yaml was edited")


def test_a_file_that_cannot_be_read_begins_no_sweep(root: Path) -> None:
    (root / "params.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        Pinned(root)


def test_what_ended_well_and_is_stale_was_made_of_other_inputs() -> None:
    stages = [Stage("data.dvc"), Stage("source"), Stage("cell", needs=("source",)), Stage("report", gathers=("cell",))]
    good = {stage.address: Outcome("ran") for stage in stages}
    assert outdated(good, Grid(stages)) == ""
    assert outdated(good, Grid(stages, ["data.dvc", "report"])) == ""
    assert outdated(good, Grid(stages, ["source"])).startswith("source: what it was made of was edited")
    assert outdated(good, Grid(stages, ["source", "cell"])).startswith("source and 1 more: ")
    assert outdated({**good, "source": Outcome("failed")}, Grid(stages, ["source"])) == ""
