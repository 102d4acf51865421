"""What a command reads, as dvc.yaml declares it, and the refusal of a result whose inputs changed meanwhile."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gtl_lightning.errors import UserError
from gtl_lightning.files import sha256_file
from gtl_lightning.studies.markov.params import PARAMS as STUDY
from gtl_lightning.workspace import watched as subject
from gtl_lightning.workspace.closure import ROOT
from gtl_lightning.workspace.declared import declared
from gtl_lightning.workspace.params import Params, write_params
from gtl_lightning.workspace.paths import state_dir
from gtl_lightning.workspace.watched import begin_with, check_inputs, watched
from tests.pipeline.reading import points

POINTS = {" ".join(point.command): point for point in points(Params())}
SOURCE = ("train", "source")
LOSS = Path("gtl_lightning/core/schedule.py")
TOKENS = Path("tokens/source_train.tokens.npy")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What of a checkout the source's training reads, with room to edit it."""
    shutil.copytree(ROOT / "gtl_lightning", tmp_path / "gtl_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subject, "ROOT", tmp_path)
    write_params(Params())
    TOKENS.parent.mkdir()
    TOKENS.write_bytes(b"12345678")
    return tmp_path


@pytest.mark.parametrize("command", POINTS)
def test_a_command_reads_what_dvc_expands_its_stage_to(command: str, checkout: Path) -> None:
    found, point = declared(command.split()), POINTS[command]
    assert found is not None
    assert set(found.params["params.yaml"]) == set(point.params)
    assert set(found.data) == set(point.deps)
    assert found.code


@pytest.mark.parametrize("spelled", ["--seed 0 --fraction 0.05", "--fraction=0.050 --seed=0"])
def test_options_are_read_as_the_command_line_reads_them(spelled: str, checkout: Path) -> None:
    assert declared(f"train gtl {spelled}".split()) == declared(["train", "gtl", "--fraction", "0.05", "--seed", "0"])


def test_what_the_command_does_not_say_may_be_any_and_a_method_outside_of_the_grid_reads_what_its_like_read(
    checkout: Path,
) -> None:
    silent = declared(["train", "gtl", "--fraction", "0.05"])
    assert silent is not None and "models/classifier-0.05-*" in silent.data
    outside = declared(["train", "tcsm", "--fraction", "0.05", "--seed", "0"])
    assert outside is not None
    assert {"models/source", "models/classifier-0.05-0"} <= set(outside.data)
    assert "methods.tcsm" in outside.params["params.yaml"]


@pytest.mark.parametrize("command", ["configure --set data.seed=1", "status", "sweep", "data import x", "--help", ""])
def test_a_command_that_is_no_stage_reads_nothing_of_them(command: str, checkout: Path) -> None:
    assert declared(command.split()) is None


def test_the_study_reads_its_own_file(checkout: Path) -> None:
    found = declared(["markov", "cells", "--seed", "1"])
    assert found is not None
    assert set(found.params) == {str(STUDY)} and "vanilla" in found.params[str(STUDY)]
    assert found.data == ("markov/source",)


def test_code_that_is_edited_as_a_command_starts_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_imported", {})
    begin_with({LOSS.as_posix(): sha256_file(LOSS)})
    with watched(SOURCE):
        pass
    LOSS.write_text(LOSS.read_text() + "# edited\n")
    with pytest.raises(UserError, match=r"^gtl_lightning/core/schedule.py was edited while"), watched(SOURCE):
        raise AssertionError("it has begun")


def replaced(path: Path, content: bytes) -> None:
    """As DVC and this project write: beside, then renamed."""
    other = path.with_name("new")
    other.write_bytes(content)
    os.replace(other, path)


def edited(path: str | Path, pattern: str, text: str) -> None:
    old = Path(path).read_text()
    new = re.sub(pattern, text, old, count=1, flags=re.MULTILINE)
    assert new != old
    Path(path).write_text(new)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a key that it reads": (
        lambda: edited("params.yaml", r"^  val_examples: .*$", "  val_examples: 77"),
        r"params.yaml \(train.val_examples: \d+ -> 77\)",
    ),
    "a default that it takes": (
        lambda: edited("params.yaml", r"lr: 0.002", "lr: 0.5"),
        r"params.yaml \((train|networks)\.\w+\.lr: 0.002 -> 0.5\)",
    ),
    "a key taken out": (
        lambda: edited("params.yaml", r"^  val_examples: .*\n", ""),
        r"params.yaml \(train.val_examples: \d+ -> unset\)",
    ),
    "no YAML any more": (lambda: Path("params.yaml").write_text("a: ["), r"params.yaml \(.*\) \(and \d+ more\)"),
    "code": (lambda: LOSS.write_text(LOSS.read_text() + "\n"), str(LOSS)),
    "more code": (lambda: LOSS.with_name("more.py").write_text(""), "gtl_lightning/core/more.py"),
    "less code": (LOSS.unlink, str(LOSS)),
    "tokens of the same size": (lambda: replaced(TOKENS, b"87654321"), str(TOKENS)),
    "tokens overwritten": (lambda: TOKENS.write_bytes(b"8765432"), str(TOKENS)),
    "further tokens": (lambda: TOKENS.with_name("x.npy").write_bytes(b""), "tokens/x.npy"),
    "tokens taken away": (TOKENS.unlink, str(TOKENS)),
}
TAKEN: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "a key that it does not read": lambda: edited("params.yaml", r"^  top_p: .*$", "  top_p: 0.5"),
    "a comment": lambda: edited("params.yaml", r"$", "  # a word"),
    "code touched": lambda: LOSS.touch(),
    "code that it does not run": lambda: edited("gtl_lightning/report/style.py", r"$", "\n"),
    "compiled code": lambda: LOSS.with_name("__pycache__").mkdir() or LOSS.with_name("__pycache__").touch(),
    "data that it does not read": lambda: Path("splits").mkdir(),
}


@pytest.mark.parametrize("edit", REFUSED)
def test_a_result_of_what_was_edited_meanwhile_is_refused_in_one_line(edit: str, checkout: Path) -> None:
    change, named = REFUSED[edit]
    with watched(SOURCE) as check:
        check()
        change()
        for refuse in (check, lambda: state_dir("source", {}, code="gtl_lightning.stages.train")):
            with pytest.raises(UserError, match=f"^{named}.* changed while `gtl train source` ran: .*run it again$"):
                refuse()
    check_inputs()  # of no command any more


@pytest.mark.parametrize("edit", TAKEN)
def test_what_a_stage_does_not_read_may_change_meanwhile(edit: str, checkout: Path) -> None:
    with watched(SOURCE) as check:
        TAKEN[edit]()
        check()


def test_an_edit_that_is_put_back_is_none(checkout: Path) -> None:
    before = Path("params.yaml").read_text()
    with watched(SOURCE) as check:
        Path("params.yaml").write_text(before.replace("lr: 0.002", "lr: 0.5"))
        Path("params.yaml").write_text(before)
        check()
