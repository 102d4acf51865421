"""params.yaml, profiles, a study's file, the environment: of another shape each is one line that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gtl_lightning.studies.markov.params import PARAMS as STUDY
from gtl_lightning.workspace.params import configure, write_params
from tests.pipeline.malformed import Line

LAUGHS = "\n".join(
    ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)] + ["data: *a29"]
)
FILES = {
    "empty": "",
    "a list": "- 1",
    "a number": "5",
    "a word": "data",
    "null": "null",
    "a comment": "# nothing",
    "two documents": "data: {}\n---\ndata: {}",
    "an open bracket": "data: [",
    "an open quote": "profile: 'a",
    "a tab": "data:\n\tseed: 1",
    "an alias of nothing": "data: *nothing",
    "an alias of itself": "data: &a {seed: *a}",
    "aliases of aliases": LAUGHS,
    "deep": "data: " + "[" * 5000,
    "deep and closed": "data: " + "[" * 3000 + "]" * 3000,
    "as deep as the file may be": "data: " + "[" * 250_000,
    "as deep as the file may be, in blocks": "- " * 120_000 + "a",
    "deep keys": "? " * 120_000 + "a",
    "deep mappings": "data: " + "{a: " * 3000,
    "a Python object": "data: !!python/object/apply:os.system ['true']",
    "an unknown tag": "data: !thing 5",
    "a key twice": "profile: a\nprofile: b",
    "a key that is a list": "? [1, 2]\n: 3",
    "a key that is a number": "5: 3",
    "a key that is null": "? \n: 3",
    "a merge of nothing": "<<: 5",
    "an unknown section": "datas: {}",
    "a section that is a list": "data: [1]",
    "a section that is a word": "train: fast",
    "a date": "data: {seed: 2020-01-01}",
    "an impossible date": "data: {seed: 2020-13-45}",
    "many digits": "data: {seed: " + "9" * 100_000 + "}",
    "many digits in another base": "data: {seed: 0x" + "f" * 100_000 + "}",
    "a bad byte count": "profile: !!binary '='",
    "a float of many digits": "data: {near_duplicate: 0." + "9" * 100_000 + "e999999999}",
    "a zero byte": "profile: a\0b",
    "an escape": "profile: a\x1b[31mb",
    "half a pair": 'profile: "\\ud800"',
    "too long": "# " + "x" * (1 << 19),
}
VALUES = {
    "profile": ["5", "[a]", "''", "a/b", "null"],
    "schedule": ["nosuch", "5", "[loglinear]", "null"],
    "data.seed": ["-1", "1.5", "true", "'1'", "4294967296", "null", "[1]", "{}", ".nan", ".inf", "1e3"],
    "data.source": ["[]", "cs", "[cs, cs]", "[1]", "null", "['']", "[cs, physics]", "[[cs]]"],
    "data.near_duplicate": ["0", "-1", "8", ".nan", "'0.8'", "true", "[]"],
    "data.max_bad_share": ["-0.1", "1.5", ".nan", "few"],
    "data.max_source": ["0", "-5", "1.5", "true", "100000000000000000000"],
    "tokenizer.length": ["0", "1", "-5", "1.5", "65537", "null", "true"],
    "tokenizer.vocab_size": ["0", "-1", "1e9", "many", "null"],
    "tokenizer.name": ["''", "5", "[a]", "' a'"],
    "train.source.lr": ["0", "-1", ".nan", ".inf", "fast", "true", "null", "11"],
    "train.source.steps": ["0", "-1", "1.5", "true", "2000000000"],
    "train.source.batch": ["0", "many", "[64]"],
    "networks.denoiser.width": ["0", "7", "-8", "100000", "wide"],
    "networks.denoiser.dropout": ["1", "-0.1", ".nan"],
    "sampling.gammas": ["[]", "[-1]", "[.nan]", "5", "[1, 1]", "[a]", "[1001]"],
    "sampling.temperature": ["-1", ".nan", "hot", "null"],
    "sampling.top_p": ["0", "1.5", ".nan"],
    "sampling.planner": ["nosuch", "5", "null"],
    "sampling.block": ["0", "-1", "1.5"],
    "sweep.fractions": ["[]", "[0]", "[2]", "[.nan]", "0.5", "[1.0, 1.0]", "[half]", "null"],
    "sweep.seeds": ["[]", "[-1]", "[0, 0]", "[0.5]", "0", "[true]"],
    "machine.devices": ["0", "-1", "many"],
    "machine.accelerator": ["tpu", "5", "null"],
    "machine.threads": ["-1", "1.5", "all"],
    "tracking.uri": ["''", "5", "[a]"],
    "tracking.experiment": ["''", "a/b", '"a\'b"', "5"],
}


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(monkeypatch, capsys)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    write_params(configure(), tmp_path / "params.yaml")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        *((file, name) for file in ("params.yaml", STUDY) for name in FILES),
        # of a profile these change nothing
        *(("profiles/own.yaml", name) for name in FILES if name not in ("empty", "a comment", "null")),
    ],
)
def test_a_file_of_another_shape_is_named(file: str | Path, name: str, workspace: Path, line: Line) -> None:
    path = workspace / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FILES[name])
    command = {"params.yaml": "split", "profiles/own.yaml": "configure --profile own"}.get(str(file), "markov report")
    said = line.refused(command, workspace)
    assert str(file) in said or "profile own" in said, said


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_a_value_that_cannot_be_is_named(key: str, value: str, workspace: Path, line: Line) -> None:
    if key == "profile":
        path = workspace / "params.yaml"
        path.write_text(path.read_text().replace("profile: default", f"profile: {value}"))
        line.refused("split", workspace, "params.yaml", key)
    else:
        said = line.refused(("configure", "--set", f"{key}={value}"), workspace, key.partition(".")[0])
        assert key.rpartition(".")[2] in said, said


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "no file", "no UTF-8"])
@pytest.mark.parametrize("file", ["params.yaml", "profiles/own.yaml", STUDY])
def test_what_is_no_file_of_parameters_is_named(file: str | Path, kind: str, workspace: Path, line: Line) -> None:
    path = workspace / file
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "no UTF-8":
        path.write_bytes("profile: a".encode("utf-16"))
    command = {"params.yaml": "split", "profiles/own.yaml": "configure --profile own"}.get(str(file), "markov report")
    line.refused(command, workspace, "own" if "own" in str(file) else str(file))


ADDRESSES = [
    "nonsense",
    "http://",
    "http://host:port",
    "http://[::1",
    "sqlite:///",
    "sqlite:////dev/zero",
    "ftp://a",
    " ",
]


@pytest.mark.parametrize(
    "address", [*ADDRESSES, "postgresql://127.0.0.1:9/a", "http://127.0.0.1:9", "file:///dev/null"]
)
def test_a_tracking_address_that_is_none_is_named(address: str, workspace: Path, line: Line) -> None:
    line.refused("sample --model any@best", workspace, MLFLOW_TRACKING_URI=address)


@pytest.mark.parametrize("name", ["MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
def test_a_limit_of_the_tracker_that_is_no_count_is_named(name: str, workspace: Path, line: Line) -> None:
    (workspace / "mlflow.db").touch()
    line.refused("sample --model any@best", workspace, name, **{name: "soon"})
