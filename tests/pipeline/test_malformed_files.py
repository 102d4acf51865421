"""Every file that a command reads, spoiled in every way that we know of: one line that names it, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gtl_lightning.bench.results import TEXTS
from gtl_lightning.errors import UserError
from gtl_lightning.files import load_tensors, read_json, save_tensors, sha256_file, write_json
from gtl_lightning.records import Row, Shape, read_record
from gtl_lightning.studies.markov.page import CELLS, MOVED
from gtl_lightning.workspace.params import Params
from tests.pipeline.malformed import FILE, JSON, Line, Spoil, drop, linked, put, replaced

SAMPLE = "sample --method gtl --fraction 0.3 --count 1"
CELL, ROW, RESULT = "models/gtl-0.3-0", "cells/gtl-0.3-0/row.json", "models/gtl-0.3-0/result.json"
READ_BY = {
    "data/provenance.json": "report",
    "splits/summary.json": "report",
    "tokens/meta.json": SAMPLE,
    ROW: SAMPLE,
    RESULT: SAMPLE,
    "real/values.json": "report",
    "real/texts.json": "report",
    "ablation/rows.json": "report",
    "models/classifier-0.3-0/advisor.json": "report",
    "runs/models/gtl-0.3-0/result.json": "report",
}
"""JSON, and a command that reads it."""
RUN = "runs/models/gtl-0.3-0/result.json"
MAY_LACK = {ROW, RUN, "models/classifier-0.3-0/advisor.json"}
OTHERS = {
    "tokens/target_train.tokens.npy": SAMPLE,
    "tokens/target_train.offsets.npy": SAMPLE,
    "tokens/tokenizer/tokenizer.json": SAMPLE,
    f"{CELL}/network.safetensors": SAMPLE,
    "models/source/network.safetensors": SAMPLE,
    "splits/source_train.parquet": "tokenize",
    "data/snapshot.jsonl.gz": "split",
    "params.yaml": "split",
}
META, REAL, ABLATION = "tokens/meta.json", "real/values.json", "ablation/rows.json"
ADVISOR, SUMMARY, ORIGIN = "models/classifier-0.3-0/advisor.json", "splits/summary.json", "data/provenance.json"
KEYS: list[tuple[str, Spoil, str]] = [
    *(
        (META, put(key, value=value), key)
        for key in ("vocab_size", "length")
        for value in (0, -1, 2**70, "9", None, 1.5)
    ),
    *(
        (META, put(key, value=value), key)
        for key in ("mask_index", "pad_index", "eos_index")
        for value in (-1, 10**6, True, [])
    ),
    *((META, drop(key), key) for key in ("vocab_size", "mask_index", "eos_index", "length", "splits")),
    (META, put("pad_index", value=2), "one id"),
    (META, put("splits", value=[]), "splits"),
    (META, put("splits", "target_test", value=5), "splits.target_test"),
    (META, put("splits", "target_test", value={}), "splits.target_test.examples"),
    (META, put("splits", "target_test", "examples", value=-3), "splits.target_test.examples"),
    (META, drop("splits", "target_val"), "splits.target_val"),
    *((ROW, put("temperature", value=value), "temperature") for value in (-1, 10**9, "1", None, True, [1])),
    *((ROW, put("sample_gamma", value=value), "sample_gamma") for value in (-1, 1e300, "1", True, {})),
    *((ROW, drop(key), key) for key in ("temperature", "sample_gamma")),
    *((RESULT, put("read", value=value), "read") for value in ([], 5, None, {"models/source": 5})),
    *((RESULT, put(key, value="many"), key) for key in ("trainable_parameters", "steps")),
    *((RESULT, put(key, value=-1), key) for key in ("trainable_parameters", "steps")),
    (RESULT, drop("steps"), "steps"),
    *((REAL, put("measured", key, value=[]), f"measured.{key}") for key in ("featurizer", "samples", "mauve_buckets")),
    (REAL, drop("measured", "samples"), "measured.samples"),
    (REAL, put("values", "mauve", value="high"), "values.mauve"),
    *((ABLATION, put(0, key, value={}), "entry 0") for key in ("axis", "gamma", "mauve", "method", "fraction")),
    (ABLATION, put(0, value=7), "entry 0"),
    (ABLATION, drop(1, "axis"), "axis"),
    (ADVISOR, drop("rows"), "rows"),
    *((ADVISOR, put("rows", 0, key, value=[]), f"rows.0.{key}") for key in ("fraction", "level", "verdict", "auc")),
    (ADVISOR, put("rows", 0, value="a"), "rows.0"),
    *((SUMMARY, put(key, value=7), key) for key in ("splits", "quarantine", "unused")),
    (SUMMARY, put("splits", "source_val", value={"cs": "many"}), "splits.source_val.cs"),
    *((RUN, put(key, value=value), key) for key, value in (("seconds", "long"), ("seconds", -1), ("rows", [5]))),
    *((ORIGIN, put("sha256", value=value), "sha256") for value in (5, None, [])),
    (ORIGIN, put("generated", value="no"), "generated"),
    (ORIGIN, put("records", value=-1), "records"),
]
CASES = [
    *(
        pytest.param(file, command, spoil, "", id=f"{file} {name}")
        for file, command in READ_BY.items()
        for name, spoil in JSON.items()
        if not (name == "missing" and file in MAY_LACK)
    ),
    *(
        pytest.param(file, command, spoil, "", id=f"{file} {name}")
        for file, command in OTHERS.items()
        for name, spoil in FILE.items()
        if (file, name) != ("params.yaml", "cut")  # states what differs: half of it is whole
    ),
    *(
        pytest.param(file, READ_BY[file], spoil, named, id=f"{file} {number} {named}")
        for number, (file, spoil, named) in enumerate(KEYS)
    ),
]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(monkeypatch, capsys)


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    return linked(trained, tmp_path / "workspace")


@pytest.mark.parametrize(("file", "command", "spoil", "named"), CASES)
def test_a_spoiled_file_is_named(
    file: str, command: str, spoil: Spoil, named: str, workspace: Path, line: Line
) -> None:
    spoil(workspace / file)
    said = line.refused(command, workspace, named)
    assert file in said or (Path(file).parent.name == "tokenizer" and "tokens/tokenizer" in said), said


def header(**changes: object) -> Spoil:
    """A network's file whose configuration says something else, and whose hash fits that."""

    def spoil(path: Path) -> None:
        tensors, meta = load_tensors(path)
        meta["network"]["config"] |= changes
        path.unlink()
        save_tensors(path, tensors, meta)

    return spoil


NETWORKS = [
    *({"width": value} for value in (0, -16, 2**60, 65536, "16", None, 16.5, True, [])),
    *({"depth": value} for value in (0, -1, 2**60, "1")),
    *({"heads": value} for value in (0, 3, -2, None)),
    *({"vocab_size": value} for value in (0, -5, 2**31, 2**70, {})),
    *({"mask_index": value} for value in (-5, 10**9, "2", None)),
    *({"pad_index": value} for value in (-5, 10**9)),
    *({"length": value} for value in (0, -1, 2**60)),
    *({"dropout": value} for value in (-1, 1, 5, "0.1")),
    {"cond_dim": -1},
    {"tied": "yes"},
    {"unknown": 1},
]


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_a_network_of_other_sizes_is_named(changes: dict[str, object], workspace: Path, line: Line) -> None:
    header(**changes)(workspace / "models/source/network.safetensors")
    line.refused(SAMPLE, workspace, "models/source/network.safetensors")


@pytest.mark.parametrize("at", [3, 8, 20, 200, -1, -500])
def test_a_flipped_bit_of_a_network_is_told(at: int, workspace: Path, line: Line) -> None:
    path = workspace / CELL / "network.safetensors"
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    replaced(path, bytes(content))
    line.refused(SAMPLE, workspace, f"{CELL}/network.safetensors")


@pytest.mark.parametrize("change", ["outside", "negative", "flat", "descending", "texts of floats", "gap", "pickle"])
def test_arrays_that_are_no_texts_are_named(change: str, workspace: Path, line: Line) -> None:
    import numpy as np

    folder = workspace / "tokens"
    tokens, offsets = (np.load(folder / f"target_train.{part}.npy") for part in ("tokens", "offsets"))
    if change == "outside":
        tokens[5] = 60_000
    elif change == "negative":
        tokens = tokens.astype(np.int32)
        tokens[5] = -1
    elif change == "flat":
        tokens = tokens.reshape(1, -1)
    elif change == "descending":
        offsets[1:3] = offsets[2:0:-1]
    elif change == "texts of floats":
        tokens = tokens.astype(np.float32)
    elif change == "gap":
        offsets[0] = 1
    else:
        tokens = np.array([{}], dtype=object)
    for name, array in (("tokens", tokens), ("offsets", offsets)):
        path = folder / f"target_train.{name}.npy"
        path.unlink()
        np.save(path, array, allow_pickle=True)
    for name in ("tokens", "offsets"):  # recorded as written: what tells them is what they hold
        array = f"target_train.{name}.npy"
        put("files", array, value=sha256_file(folder / array))(folder / "meta.json")
    for noted in workspace.glob("models/*/result.json"):  # and as what the networks were trained on
        if "tokens" in read_json(noted):
            put("tokens", value=sha256_file(folder / "meta.json")[:12])(noted)
    line.refused(SAMPLE, workspace, "target_train.tokens.npy")


def tensors(**others: torch.Tensor | None) -> Spoil:
    """A file of tensors with other ones, or without some, under a hash that fits."""

    def spoil(path: Path) -> None:
        found, meta = load_tensors(path)
        found = {key: value for key, value in {**found, **others}.items() if value is not None}
        path.unlink()
        save_tensors(path, found, meta)

    return spoil


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        *(("models/judge/judge.safetensors", spoil) for spoil in FILE.values()),
        *(
            ("models/judge/judge.safetensors", tensors(**{name: None}))
            for name in ("vocabulary", "idf", "coefficients")
        ),
        ("models/judge/judge.safetensors", tensors(vocabulary=torch.full((9,), 255, dtype=torch.uint8))),
        ("models/judge/judge.safetensors", tensors(idf=torch.ones(3))),
        *(("real/features.safetensors", spoil) for spoil in FILE.values()),
        *(("real/features.safetensors", tensors(**{name: None})) for name in ("real", "train")),
        ("real/features.safetensors", tensors(real=torch.ones(4))),
        ("real/features.safetensors", tensors(real=torch.ones(4, 3))),
    ],
)
def test_what_samples_are_measured_with_is_named(
    file: str, spoil: Spoil, workspace: Path, monkeypatch: pytest.MonkeyPatch, line: Line
) -> None:
    monkeypatch.setattr("gtl_lightning.stages.evaluate.evaluate_cell", measuring)
    spoil(workspace / file)
    line.refused("evaluate source", workspace, file)


def measuring(params: Params, *cell: object) -> None:
    """What `evaluate` opens to measure with; nothing is sampled."""
    from gtl_lightning.evaluation.judge import Judge
    from gtl_lightning.workspace.corpus import Corpus
    from gtl_lightning.workspace.real import RealText

    RealText.open(params, Corpus.open(params))
    Judge.load("models/judge/judge.safetensors")


BENCH = Row({"profile": str, "part": str, "group": str}, TEXTS)
GOOD = {"rows": [{"method": "gtl", "n": 1, "seed": 0, "transition": [[1.0]], "row_kl": 0.1, "diagonal": 1.0}]}
STUDY: list[tuple[str, object, Row | Shape]] = [
    *(
        ("cells.json", {**GOOD, "calibration": [], "rows": [{**GOOD["rows"][0], key: value}]}, CELLS)
        for key, value in (("method", 5), ("n", -1), ("seed", "0"), ("transition", [[1], "a"]), ("row_kl", None))
    ),
    ("cells.json", {**GOOD, "calibration": [{"level": "x"}]}, CELLS),
    ("cells.json", GOOD, CELLS),
    *(("overlap.json", value, MOVED) for value in ({"method": 1}, {}, {"method": "gtl", "n": 1, "seed": 0})),
    *(("bench.json", value, BENCH) for value in ({}, {"profile": 1}, [], "a")),
    ("bench.json", {"profile": "p", "part": "a", "group": "b", "batch": "many"}, BENCH),
    ("bench.json", {"profile": "p", "part": "a", "group": "b", "guidance": 5}, BENCH),
]


@pytest.mark.parametrize(("name", "content", "shape"), STUDY)
def test_rows_of_studies_and_benchmarks_are_looked_at(
    name: str, content: object, shape: Row | Shape, tmp_path: Path
) -> None:
    write_json(tmp_path / name, content)
    with pytest.raises(UserError, match=name) as caught:
        read_record(tmp_path / name, shape)
    assert "\n" not in str(caught.value)
