"""Every option of every command, given something it cannot take: one line, exit code 2, nothing opened or written."""

from __future__ import annotations

import contextlib
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from flows.cli import app, main
from gtl_lightning.methods import METHODS, names
from gtl_lightning.studies.ar2diff.params import write_settings as write_ar2diff
from gtl_lightning.studies.ar2diff.settings import AR2Diff
from gtl_lightning.studies.markov.params import write_settings
from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.studies.tcsm.params import write_settings as write_tcsm
from gtl_lightning.studies.tcsm.settings import Tcsm
from gtl_lightning.workspace.closure import ROOT
from gtl_lightning.workspace.params import configure, write_params
from tests.unit.trees import snapshot

TRAINED = names()
CELL = ("--fraction", "0.05", "--seed", "0")
LENGTH = ("--reward", "length")
FROM, ONE = ("--from", "model"), ("--from", "model", "--steps", "1")
NAMED = ("gtl-0.05-0",)
HERE = ("--profile", "default")
FOLDERS = {"snapshot": "no folder", ".": "a folder that is not empty"}
Case = tuple[tuple[str, ...], str]

POINT: dict[str, list[Case]] = {
    "fraction": [
        (("--fraction", "0.2"), "--fraction 0.2 is none of sweep.fractions"),
        (("--fraction", "nan"), "--fraction nan"),
        (("--fraction", "-1"), "--fraction -1.0"),
        (("--fraction", "1e400"), "--fraction inf"),
        ((), "fraction"),
    ],
    "seed": [
        ((*CELL[:2], "--seed", "-1"), "--seed -1 is none of sweep.seeds"),
        ((*CELL[:2], "--seed", "7"), "--seed 7 is none of sweep.seeds in params.yaml (0)"),
        ((*CELL[:2], "--seed", "0.5"), "--seed"),
    ],
}
FOREIGN = {
    "name": [
        ((), "name"),
        (("nowhere",), "'nowhere' is no folder here, and http://127.0.0.1:9 cannot be"),
        ((".",), ". is no model: it holds no config.json"),
    ],
    "revision": [
        ((".", "--revision", "main"), ". is a folder, which has no revisions"),
        ((".", "--revision", ""), "--revision is empty"),
    ],
    "tokenizer": [((".", "--tokenizer", " "), "--tokenizer is empty")],
    "shift": [((".", "--shift=perhaps"), "--shift")],
}
TABLE: dict[str, dict[str, list[Case]]] = {
    "configure": {
        "profile": [
            (("--profile", "nosuch"), "unknown profile 'nosuch'; choose one of: default"),
            (("--profile", ""), "unknown profile ''"),
            (("--profile", "../params"), "unknown profile '../params'"),
        ],
        "overrides": [
            (("--set", "nosuch=1"), "unknown parameter nosuch"),
            (("--set", "schedule"), "--set schedule: write it as key=value"),
            (("--set", "=3"), "--set =3: write it as key=value"),
            (("--set", "profile=paper"), "choose it with --profile"),
            (("--set", "data.seed={a: 1, a: 2}"), 'found duplicate key "a"'),
            (("--set", "sweep.seeds=[0]", "--set", "sweep.seeds =[1]"), "--set sweep.seeds is given more than once"),
        ],
        "show": [(("--show=perhaps",), "--show")],
        "prefix": [
            (("--show", "train.sauce"), "--show train.sauce: there is no such parameter"),
            (("--show", ""), "--show : there is no such parameter"),
            (("data.seed",), "data.seed stands alone"),
        ],
    },
    "data sample": {"seed": [(("--seed", "-1"), "--seed -1"), (("--seed", str(2**32)), f"--seed {2**32} is out")]},
    "data import": {
        "path": [
            (("nowhere.json",), "nowhere.json"),
            ((), "give either a snapshot, with --field, or both --source and --target"),
            (("snapshot", "--text", "body"), "give either a snapshot"),
        ],
        "source": [
            (("--source", "snapshot"), "give either a snapshot"),
            (("snapshot", "--source", "a.txt", "--target", "b.txt"), "give either a snapshot"),
            (("--source", "a.txt", "--target", "b.txt", "--field", "id=n"), "give either a snapshot"),
            (("--source", "nowhere.txt", "--target", "b.txt"), "nowhere.txt does not exist"),
        ],
        "target": [
            (("--target", "snapshot"), "give either a snapshot"),
            (("--source", "snapshot", "--target", "snapshot"), "snapshot is given as source and as target"),
        ],
        "text": [(("--text", "body"), "give either a snapshot")],
        "field": [
            (("snapshot", "--field", "nosuch=text"), "nosuch"),
            (("snapshot", "--field", "abstract"), "--field abstract: write each field once, as ours=theirs"),
            (("snapshot", "--field", "abstract="), "--field abstract="),
            (("snapshot", "--field", "title=a", "--field", "title=b"), "--field title=b: write each field once"),
        ],
    },
    "data download": {
        "dataset": [((), "dataset"), ((" ",), "DATASET is empty")],
        "split": [(("snapshot", "--split", ""), "--split is empty")],
        "limit": [(("snapshot", "--limit", "0"), "'--limit'"), (("snapshot", "--limit", "-3"), "'--limit'")],
        "field": [(("snapshot", "--field", "nosuch=text"), "nosuch")],
    },
    "train classifier": POINT,
    **{f"train {method}": POINT for method in TRAINED},
    "evaluate": {
        "method": [
            (("foo",), "method 'foo' is unknown; choose one of source, finetune"),
            (("foo", "--seed", "7"), "method 'foo' is unknown"),
            (("classifier", *CELL), "method 'classifier' is unknown"),
        ],
        "fraction": [
            (("finetune",), "finetune is trained on a share of the target data: say which with --fraction"),
            (("gtl",), "gtl is trained on a share of the target data"),
            (("source", "--fraction", ".3"), "--fraction is a share of the target data, and source"),
            (("gtl", "--fraction", "0.2"), "--fraction 0.2 is none of sweep.fractions"),
            (("gtl", "--fraction", "nan"), "--fraction nan"),
        ],
        "seed": [
            (("source", "--seed", "3"), "--seed 3 is none of sweep.seeds"),
            (("gtl", "--fraction", "0.05", "--seed", "-1"), "--seed -1"),
        ],
    },
    "budget": {
        "share": [(("--share", value), "--share") for value in ("0", "-1", "nan", "inf")],
        "timed": [(("--timed=perhaps",), "--timed")],
        "write": [(("--write=perhaps",), "--write")],
    },
    "ablation": {"seed": [(("--seed", "7"), "--seed 7 is none of sweep.seeds"), (("--seed", "-1"), "--seed -1")]},
    "markov configure": {
        "overrides": [
            (("--set", "markov.seeds=[0]"), "unknown parameter markov"),
            (("--set", "seeds"), "--set seeds: write it as key=value"),
            (("--set", "seeds=[0, 0]"), "seeds lists a value twice"),
        ],
    },
    "markov cells": {
        "seed": [
            (("--seed", "7"), "--seed 7 is none of seeds in gtl_lightning/studies/markov/params.yaml (0, 1, 2)"),
            (("--seed", "-1"), "--seed -1"),
        ]
    },
    "tcsm configure": {
        "overrides": [
            (("--set", "tcsm.seeds=[0]"), "unknown parameter tcsm"),
            (("--set", "seeds"), "--set seeds: write it as key=value"),
            (("--set", "seeds=[0, 0]"), "seeds lists a value twice"),
            (("--set", "law.length=9"), "more than 20,000 partly masked texts"),
            (("--set", "text.training.also_lr=[0.1]"), "trainings of this study take one learning rate"),
        ],
    },
    "ar2diff-study configure": {
        "overrides": [
            (("--set", "ar2diff.seeds=[0]"), "unknown parameter ar2diff"),
            (("--set", "seeds"), "--set seeds: write it as key=value"),
            (("--set", "text.prefix=48"), "prefix = 48 of length = 48 leaves no room for a target; lower prefix"),
            (("--set", "text.crossed=-1"), "text.crossed"),
            (("--set", "chains.steps=-5"), "chains.steps"),
            (("--set", "text.crossed=31"), "crossed = 31 must be a check of diffusion"),
            (("--set", "text.second=abstract"), "first and second are both 'abstract'"),
            (("--set", "text.task.also_lr=[0.1]"), "trainings of this study take one learning rate"),
        ],
    },
    "reward": {
        "reward": [
            (("--reward", "beauty"), "--reward beauty is unknown; choose one of length, readability"),
            ((), "give one of --reward, --term and --module"),
        ],
        "term": [
            (("--term", " "), "--term is empty"),
            (("--term", "matrix", "--reward", "length"), "give one of --reward, --term and --module"),
        ],
        "module": [
            (("--module", "rewards"), "--module rewards: write it as FILE:FUNCTION"),
            (("--module", "no.py:score"), "there is no file no.py"),
        ],
        "beta": [((*LENGTH, "--beta", value), f"--beta {value} is no temperature") for value in ("0.0", "-1.0", "nan")],
        "best_of": [
            ((*LENGTH, "--best-of", "1"), "--best-of 1 must lie between 2 and half"),
            ((*LENGTH, "--samples", "64", "--best-of", "33"), "half of --samples 64"),
        ],
        "samples": [((*LENGTH, "--samples", n), f"--samples {n} leaves no joint samples") for n in ("0", "-1", "31")],
        "count": [((*LENGTH, "--count", "1"), "--count 1 is too few")],
        "seed": [((*LENGTH, "--seed", "-1"), "--seed -1 is out of range")],
    },
    "ar2diff": {
        "name": [
            (("--steps", "1"), "--from"),
            (("--from", "nowhere", "--steps", "1"), "'nowhere' is no folder here, and http://127.0.0.1:9 cannot be"),
            (("--from", "nowhere.gguf", "--steps", "1"), "nowhere.gguf does not exist"),
            (("--from", ".", "--steps", "1"), ". is no model: it holds no config.json"),
            (("--from", "snapshot/x/y", "--steps", "1"), "neither a folder nor OWNER/NAME of a hub"),
        ],
        "steps": [
            (FROM, "--steps"),
            ((*FROM, "--steps", "-1"), "--steps -1 is negative"),
            ((*FROM, "--steps", "70"), "--steps 70 are no whole checks of 50 steps"),
        ],
        "out": [
            ((*ONE, "--out", "snapshot"), "--out snapshot is a file"),
            ((*ONE, "--out", "."), "--out . holds other files"),
        ],
        "domain": [((*ONE, "--domain", "physics"), "--domain 'physics' is none of source, target")],
        "length": [((*ONE, "--length", "1"), "--length 1 leaves no room")],
        "prefix": [
            ((*ONE, "--prefix", "128"), "--prefix 128 of --length 128 leaves nothing to predict"),
            ((*ONE, "--prefix", "-1"), "--prefix -1"),
        ],
        "batch": [((*ONE, "--batch", "0"), "--batch 0 is too few")],
        "lr": [((*ONE, "--lr", value), "is no learning rate") for value in ("0", "-1", "nan", "inf")],
        "warmup": [((*ONE, "--warmup", "-1"), "--warmup -1")],
        "check_every": [
            ((*ONE, "--check-every", "0"), "--check-every 0 is too few"),
            ((*ONE, "--check-every", "3"), "--steps 1 are no whole checks of 3 steps"),
        ],
        "shift": [((*ONE, "--shift=perhaps"), "--shift")],
        "sink": [
            ((*ONE, "--sink=perhaps"), "--sink"),
            ((*ONE, "--no-shift", "--sink"), "--sink is of the start, and with --no-shift none is read; leave one of"),
        ],
        "anneal": [((*ONE, "--anneal", value), f"--anneal {value}") for value in ("-0.1", "1.5", "nan")],
        "lora": [((*ONE, "--lora", "-1"), "--lora -1"), ((*ONE, "--lora", "1.5"), "--lora")],
        "checkpointing": [((*ONE, "--checkpointing=perhaps"), "--checkpointing")],
        "precision": [((*ONE, "--precision", "16-mixed"), "--precision '16-mixed': choose auto")],
        "seed": [((*ONE, "--seed", "-1"), "--seed -1 is out of range")],
    },
    "source import": {
        **FOREIGN,
        "copied": [((".", "--copy=perhaps"), "--copy")],
    },
    "source check": {
        **FOREIGN,
        "texts": [((".", "--texts", "nowhere.txt"), "nowhere.txt does not exist; give a file of texts")],
        "length": [((".", "--length", "3"), "'--length'")],
        "count": [((".", "--count", "0"), "'--count'")],
        "seed": [((".", "--seed", "-1"), "'--seed'")],
        "json": [((".", "--json", "."), "--json . is a folder")],
    },
    "bench": {
        "profile": [(("--profile", name), f"unknown profile '{name}'") for name in ("nosuch", "")],
        "only": [(("--only", "speed"), "--only speed is no group of benchmarks")],
    },
    "sample": {
        "method": [
            (("--method", "foo"), "method 'foo' is unknown"),
            (("--method", "gtl", "--model", "gtl-transfer-ratio@best"), "--model names a registered model"),
        ],
        "fraction": [
            (("--method", "source", "--fraction", ".3"), "--fraction is a share of the target data, and source"),
            (("--fraction", "nan"), "--fraction nan"),
            (("--fraction", "0"), "--fraction 0.0 is no share"),
            (("--fraction", "0.3", "--model", "gtl-transfer-ratio@best"), "--model names a registered model"),
        ],
        "model_seed": [
            (("--model-seed", "-1"), "--model-seed -1"),
            (("--model-seed", "0", "--model", "gtl-transfer-ratio@best"), "--model names a registered model"),
        ],
        "count": [(("--count", "0"), "--count 0 is out of range"), (("--count", "-3"), "--count -3")],
        "length": [(("--length", "0"), "--length 0 is out of range"), (("--length", "-3"), "--length -3")],
        "gamma": [
            *((("--gamma", value), f"--gamma {value} is out of range") for value in ("nan", "inf", "-inf", "-1.0")),
            (("--method", "finetune", "--gamma", "2"), "--gamma guides a ratio, and finetune has none"),
        ],
        "temperature": [
            (("--temperature", value), f"--temperature {value} is out of range") for value in ("nan", "inf", "-0.5")
        ],
        "n_ratio": [
            (("--n-ratio", "0"), "--n-ratio 0 is out of range"),
            (("--method", "source", "--n-ratio", "3"), "--n-ratio guides a ratio, and source has none"),
        ],
        "prompt": [(("--prompt", " "), "--prompt ' ' holds no text")],
        "model": [
            (("--model", "@best"), "--model @best: write it as NAME@ALIAS"),
            (("--model", "gtl-transfer-ratio@"), "--model gtl-transfer-ratio@: write it as NAME@ALIAS"),
            (("--model", "nosuch@best"), "set MLFLOW_TRACKING_URI to the tracker that has it"),
        ],
        "seed": [(("--seed", "-1"), "--seed -1 is out of range"), (("--seed", str(2**32)), f"--seed {2**32}")],
        "out": [(("--out", "snapshot"), "--out snapshot cannot be written: it is a file")],
        "trace": [
            (("--trace", "."), "--trace . is a folder"),
            (("--trace", "t.html", "--count", "65"), "--count 65 is more than the 64 texts"),
        ],
        "beside": [
            (("--beside", "finetune"), "give --trace too"),
            (("--trace", "t.html", "--beside", "foo"), "method 'foo' is unknown"),
        ],
        "watch": [(("--watch", "--trace", "t.html"), "give one of them")],
    },
    "export": {
        "cell": [
            (("gtl", "new"), "'gtl' names no cell; give a folder of cells/"),
            (("gtl-0.05-0", "new"), "cell gtl-0.05-0 is not finished"),
            (("source-0", "new"), "source-0 is the untouched source"),
            (("gtl-7.5-0", "new"), "--fraction 7.5 is no share"),
        ],
        "folder": [(("gtl-0.05-0", name), f"{name} is {what}") for name, what in FOLDERS.items()],
        "license": [((*NAMED, "new", "--license", " "), "--license ' ' names no licence")],
    },
    "push": {
        "cell": [(("gtl-0.05", "me/gtl"), "'gtl-0.05' names no cell"), ((*NAMED, "me/gtl"), "is not finished")],
        "name": [((*NAMED, name), "is no OWNER/NAME of a hub") for name in ("gtl", "a/b/c", "a b/c", "../gtl", "")],
        "private": [((*NAMED, "me/gtl", "--private=perhaps"), "--private")],
        "license": [((*NAMED, "me/gtl", "--license", ""), "--license '' names no licence")],
    },
    "explore": {
        "cell": [(("gtl",), "'gtl' names no cell"), (NAMED, "tokens/meta.json does not exist")],
        "beside": [((*NAMED, "--beside", "foo"), "method 'foo' is unknown")],
        "port": [((*NAMED, "--port", value), "--port") for value in ("-1", "65536", "http")],
        "browser": [((*NAMED, "--browser=perhaps"), "--browser")],
    },
    "methods": {},
    "demo": {},
    "scale": {
        "data": [
            ((), "data"),
            (("nowhere.jsonl", "new", *HERE), "nowhere.jsonl does not exist or is no file; give a snapshot"),
            ((".", "new", *HERE), ". does not exist or is no file"),
        ],
        "folder": [
            (("snapshot",), "folder"),
            (("snapshot", "snapshot", *HERE), "snapshot is a file; name a folder"),
            (("snapshot", ".", *HERE), ". is not empty and holds no run of `gtl scale`; name another folder"),
        ],
        "minutes": [
            (("snapshot", "new", *HERE, "--minutes", value), f"--minutes {value}; give more than 0")
            for value in ("0", "-8", "nan")
        ],
        "profile": [(("snapshot", "new", "--profile", "nosuch"), "unknown profile 'nosuch'")],
        "field": [
            (("snapshot", "new", *HERE, "--field", "nosuch=text"), "nosuch"),
            (("snapshot", "new", *HERE, "--field", "title"), "--field title: write each field once"),
        ],
        "overrides": [
            (("snapshot", "new", *HERE, "--set", "nosuch=1"), "unknown parameter nosuch"),
            (("snapshot", "new", *HERE, *("--set", "data.seed=1") * 2), "--set data.seed is given more than once"),
            (("snapshot", "new", *HERE, "--set", "machine.accelerator=gpu"), "no GPU is to be seen; set it to auto or"),
        ],
    },
    "reconcile": {
        "lost_host": [(("--lost-host", ""), "--lost-host")],
        "crashed": [(("--crashed=perhaps",), "--crashed")],
        "dry_run": [(("--dry-run=perhaps",), "--dry-run")],
    },
}
CASES = [
    pytest.param(command, words, named, id=f"{command} {' '.join(words)}")
    for command, options in TABLE.items()
    for cases in options.values()
    for words, named in cases
]


def commands(group: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield " ".join((*prefix, name)), command


def test_the_table_has_every_option_of_every_command() -> None:
    asked = {
        (name, option.name) for name, command in commands(typer.main.get_command(app)) for option in command.params
    }
    tabled = {(name, option) for name, options in TABLE.items() for option in options}
    assert tabled == {(name, option) for name, option in asked if option != "help"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace's own files. Read only."""
    folder = tmp_path_factory.mktemp("written")
    with contextlib.chdir(folder):
        write_params(configure(), Path("params.yaml"))
        write_settings(Markov())
        write_tcsm(Tcsm())
        write_ar2diff(AR2Diff())
    return folder


@pytest.fixture
def workspace(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    (tmp_path / "snapshot").write_text('{"id": "1"}\n')
    return tmp_path


def run(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["gtl", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("command", "words", "named"), CASES)
def test_what_does_not_apply_is_refused_in_one_line_and_changes_nothing(
    command: str,
    words: tuple[str, ...],
    named: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = snapshot(workspace)
    assert run((*command.split(), *words), monkeypatch) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert named in lines[0]
    assert not captured.out
    assert snapshot(workspace) == before


@pytest.mark.parametrize("command", TABLE)
def test_help_changes_nothing(
    command: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(workspace)
    assert run((*command.split(), "--help"), monkeypatch) == 0
    assert "Usage" in capsys.readouterr().out
    assert snapshot(workspace) == before


@pytest.mark.parametrize("words", [("train", "gtl", *CELL[:2]), ("evaluate", "gtl", *CELL[:2]), ("ablation",)])
def test_without_a_repetition_the_sweeps_first_is_meant(
    words: tuple[str, ...], workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(configure(overrides=("sweep.seeds=[1]",)), Path("params.yaml"))
    assert run(words, monkeypatch) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--seed" not in line and "does not exist" in line


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_without_a_server_mlflows_runs_are_reconciled_alone(
    words: tuple[str, ...], workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.remote.server_url", lambda: None)  # whatever server other tests have started
    assert run(("reconcile", *words), monkeypatch) == 0
    captured = capsys.readouterr()
    assert captured.out == "No Prefect server is configured (PREFECT_API_URL): MLflow's runs alone were looked at.\n"
    assert not captured.err


def test_without_a_server_a_tracker_that_cannot_be_read_is_a_failure(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.remote.server_url", lambda: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert run(("reconcile",), monkeypatch) == 2
    assert "tracking server http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(("--version",), monkeypatch) == 0
    assert capsys.readouterr().out == f"gtl-lightning {version}\n"


def test_methods_lists_what_there_is(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line a method: its name, its list in params.yaml, what it trains, what it is."""
    assert run(("methods",), monkeypatch) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "LIST", "TRAINS"]
    assert [line.split()[0] for line in lines] == list(METHODS)
    for line, method in zip(lines, METHODS.values(), strict=True):
        assert line.split()[1:4] == [f"sweep.{method.roll}", "a", method.kind]
        assert line.endswith(f"  {method.help}")
