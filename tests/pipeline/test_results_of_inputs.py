"""A result is of the inputs that it is filed under: by DVC, by the state of a training, by a clone that made it too."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from gtl_lightning.data.snapshot import import_snapshot
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json
from gtl_lightning.stages import train
from gtl_lightning.stages.data import split, tokenize
from gtl_lightning.workspace import fitting
from gtl_lightning.workspace.closure import ROOT
from gtl_lightning.workspace.params import Params, dump_params
from tests.dvc_kit import dvc_repository
from tests.pipeline.conftest import inside, tiny
from tests.unit.trees import snapshot

RATE = 0.001
NOT_OF_THE_RESULT = {"seconds", "time", "date", "run", "host"}
SLOW_HAND = """#!{python}
# `gtl`, beside which somebody edits params.yaml when the training has ended
import sys
from pathlib import Path

from gtl_lightning.modules import fit as home

plain = home.fit


def fit(*given, **named):
    result = plain(*given, **named)
    edit = Path("edit")
    if edit.exists():
        edit.replace("params.yaml")
    return result


home.fit = fit
from gtl_lightning.cli import main

main()
"""


@pytest.fixture
def workspace(tokenised: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenised, tmp_path / "workspace"))


@pytest.fixture
def checkout(workspace: Path) -> Path:
    """A workspace with the project's code and pipeline, under DVC."""
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, workspace)
    shutil.copytree(ROOT / "gtl_lightning", workspace / "gtl_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    with inside(workspace):
        train.train_causal(tiny())
    (workspace / "bin").mkdir()
    command = workspace / "bin" / "gtl"
    command.write_text(SLOW_HAND.format(python=sys.executable))
    command.chmod(0o755)
    dvc_repository(workspace)
    return workspace


def repro(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "source"]
    path = os.pathsep.join([str(checkout / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(checkout)}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_a_rate_edited_while_the_source_trains_is_not_filed_with_its_weights(checkout: Path) -> None:
    before = dump_params(tiny(f"train.source.lr={RATE}"))
    (checkout / "params.yaml").write_text(before)
    (checkout / "edit").write_text(dump_params(tiny("train.source.lr=0.5")))
    failed = repro(checkout)
    assert failed.returncode != 0
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: params.yaml (train.source.lr: {RATE} -> 0.5) changed while `gtl train source` ran")
    assert not (checkout / "dvc.lock").exists()

    # Put back, what was trained is found under the rate that it was trained with.
    (checkout / "params.yaml").write_text(before)
    (state,) = (checkout / ".state").glob("source-0-network-*/best.safetensors")
    trained = state.stat().st_mtime_ns
    done = repro(checkout)
    assert done.returncode == 0, done.stderr
    lock = yaml.safe_load((checkout / "dvc.lock").read_text())["stages"]["source"]
    assert lock["params"]["params.yaml"]["train.source"]["lr"] == RATE
    assert read_json(checkout / "models/source/result.json")["lr"] == RATE
    assert [path.stat().st_mtime_ns for path in (checkout / ".state").glob("source-*/best.safetensors")] == [trained]


# --- the state of a training


class NamedError(Exception):
    """A training has come to its state's name."""


@pytest.fixture
def state_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The name of the state that the source's training would go on from; nothing is trained."""

    def name(*overrides: str, stage: Callable[[Params], object] = train.train_source) -> str:
        with pytest.raises(NamedError) as found:
            stage(tiny(*overrides))
        return str(found.value)

    plain = fitting.state_dir

    def named(*given: Any, **options: Any) -> None:
        raise NamedError(plain(*given, **options))

    monkeypatch.setattr(fitting, "state_dir", named)
    return name


def reverse_words() -> None:
    """Import every abstract with its words in reverse: as many records, words and tokens as before, other texts."""
    with gzip.open("data/snapshot.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    for record in records:
        record["abstract"] = " ".join(reversed(record["abstract"].split()))
    other = Path("reversed.jsonl")
    other.write_text("".join(json.dumps(record) + "\n" for record in records))
    import_snapshot(other, Path("data"))


def reverse_tokens() -> None:
    """The same at the tokens, by hand: what meta.json says of them is left as it was."""
    path = Path("tokens/source_train.tokens.npy")
    np.save(path, np.load(path)[::-1])


def test_reversed_texts_are_not_taken_for_those_that_were_trained_on(
    workspace: Path, state_of: Callable[..., str]
) -> None:
    with inside(workspace):
        before = state_of()
        reverse_tokens()
        with pytest.raises(UserError, match="is not what was written"):
            state_of()
        reverse_words()
        split(tiny())
        tokenize(tiny())
        assert state_of() != before
        assert state_of() == state_of()


@pytest.mark.parametrize(
    "override",
    ["machine.accumulate=2", "machine.devices=2", "machine.precision=bf16-mixed", "train.source.lr=0.5", "data.seed=1"],
)
def test_what_moves_the_weights_names_another_state(
    override: str, workspace: Path, state_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "check_machine", lambda _: None)  # there are no two GPUs to be seen
    with inside(workspace):
        assert state_of(override) != state_of()


def test_two_processes_and_two_parts_are_not_the_same_machine(
    workspace: Path, state_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both halve each batch; the sums are taken in another order."""
    monkeypatch.setattr(train, "check_machine", lambda _: None)
    with inside(workspace):
        assert state_of("machine.accumulate=2") != state_of("machine.devices=2")


def test_other_frozen_weights_name_another_state(trained: Path, tmp_path: Path, state_of: Callable[..., str]) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    with inside(workspace):
        before = state_of(stage=train.train_planner)
        shutil.copy("models/vanilla-0.3-0/network.safetensors", "models/source/network.safetensors")
        assert state_of(stage=train.train_planner) != before


# --- two clones


def forms(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every JSON value below `folder`, those in the headers of weights among them, with its file."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            yield str(path), read_json(path)
        elif path.suffix == ".jsonl":
            yield from ((str(path), json.loads(line)) for line in path.read_text().splitlines())
        elif path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                yield from ((str(path), json.loads(text)) for text in (file.metadata() or {}).values())


def keys(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value, at any depth, with what it holds."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield str(key), inner
        yield from keys(inner)


def test_no_result_holds_a_time_or_the_name_of_a_run(trained: Path) -> None:
    """They differ between two clones that compute the same; what reads a result would be computed again."""
    told = list(forms(trained / "runs"))
    ids = {inner for _, value in told for key, inner in keys(value) if key == "mlflow_run"}
    assert len(ids) == 1 + 7 * 2
    assert any(key == "seconds" for _, value in told for key, _ in keys(value))
    looked = 0
    for folder in ("splits", "tokens", "models", "real", "cells", "ablation"):
        for path, value in forms(trained / folder):
            looked += 1
            for key, inner in keys(value):
                assert not NOT_OF_THE_RESULT.intersection(re.split(r"[\W_]+", key)), (path, key)
                assert not (isinstance(inner, str) and inner in ids), (path, key)
    assert looked > 60


def test_equal_trainings_leave_equal_files_whatever_the_clock_says(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(workspace, tmp_path / "other"))
    with inside(workspace):
        train.train_source(tiny())
    plain = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: 1000 * plain())
    with inside(other):
        train.train_source(tiny())
    took = [read_json(folder / "runs/models/source/result.json")["seconds"] for folder in (workspace, other)]
    assert took[1] > 10 * took[0] > 0
    assert snapshot(workspace / "models") == snapshot(other / "models")
    assert len(snapshot(other / "models")) == 3


def test_times_and_runs_reach_the_report(trained: Path) -> None:
    rows = read_json(trained / "reports/transfer.json")
    for row in rows:
        assert row["sample_seconds"] > 0 and len(row["mlflow_run"]) == 32
        assert (row["train_seconds"] or 0) > 0 or row["method"] == "source"
    assert all(row["sample_seconds"] > 0 for row in read_json(trained / "reports/ablation.json"))
