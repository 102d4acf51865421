"""The Markov study on a tiny scale: every stage runs, its files are whole, a second run repeats the first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gtl_lightning.networks.store import read_meta
from gtl_lightning.studies.markov import params as config
from gtl_lightning.studies.markov.models import METHODS
from gtl_lightning.studies.markov.overlap import measure_overlap
from gtl_lightning.studies.markov.page import markov_report
from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.studies.markov.study import markov_cells, markov_repeats, markov_source
from gtl_lightning.workspace.params import Params
from tests.pipeline.conftest import inside

QUICK = "{steps: 4, batch: 8, lr: 0.01, warmup: 1, check_every: 2, patience: 2}"
FITS = ("source", "vanilla", "finetune", "low_rank", "token", "sequence", "classifier")
TINY = (
    *(f"{name}={QUICK}" for name in FITS),
    "denoiser={width: 8, depth: 1, heads: 2}",
    "local={heads: 2, width: 8}",
    "lora={rank: 2, alpha: 4.0}",
    "sizes=[8, 12]",
    "seeds=[0]",
    "repeats=[0, 1, 2]",
    "parts=4",
    "held_out=4",
    "length=6",
    "states=3",
    "samples=40",
    "kl_draws=24",
    "rows_scored=8",
    "source_sequences=100",
    "overlap={diagonals: [0.3, 0.9], n: 8}",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("markov")
    with inside(folder):
        markov_source(tiny())
        markov_cells(tiny(), 0, Params())
        measure_overlap(tiny())
        markov_repeats(tiny())
        markov_report(tiny(), Params())
    return folder


def tiny() -> Markov:
    return config.overlaid({}, TINY)


def read(path: Path) -> list[dict[str, object]]:
    return json.loads(path.read_text())


def test_every_cell_has_its_row(study: Path) -> None:
    rows = read(study / "reports/markov.json")
    found = {(row["method"], row["n"]) for row in rows}
    assert found == {(method, n) for method in ("source", "bigram", *METHODS) for n in (8, 12)}
    for row in rows:
        assert row["row_kl"] > 0 and row["nll"] > 0 and row["kl"] > 0
        assert all(abs(sum(line) - 1) < 1e-9 for line in row["transition"])
        guided = row["method"] == "classifier" or str(row["method"]).startswith("gtl")
        assert not guided or row["gamma"] in tiny().gammas


def test_times_reach_the_page_and_stand_in_no_result(study: Path) -> None:
    trained = [row for row in read(study / "reports/markov.json") if row["method"] not in ("source", "bigram")]
    for name in ("train_seconds", "sample_seconds"):  # rounded: the quickest may have taken none
        assert min(row[name] for row in trained) >= 0 and sum(row[name] for row in trained) > 0, name
    for path in ("markov/cells/0.json", "markov/overlap.json", "markov/source/result.json"):
        assert "seconds" not in (study / path).read_text(), path
    assert "seconds" not in read_meta(study / "markov/source/network.safetensors")


def test_calibration_and_overlap_are_flat_rows(study: Path) -> None:
    calibration = read(study / "reports/markov_calibration.json")
    assert {row["method"] for row in calibration} == {m for m in METHODS if "gtl" in m or m == "classifier"}
    overlap = read(study / "reports/markov_overlap.json")
    assert {row["diagonal_target"] for row in overlap} == {0.3, 0.9}
    assert all(
        row[k] in ("go", "caution", "poor overlap") for row in overlap for k in ("verdict", "verdict_reweighting")
    )
    # The exact effective share falls as the target moves away.
    shares = {row["diagonal_target"]: row["ess_share_exact"] for row in overlap}
    assert shares[0.9] < shares[0.3] < 1


def test_the_page_gives_the_repetitions_quantiles(study: Path) -> None:
    repeats = read(study / "reports/markov_repeats.json")
    assert [(row["method"], row["n"], row["seed"]) for row in repeats] == [
        ("gtl-token", n, seed) for n in (8, 12) for seed in range(3)
    ]
    first = next(row for row in read(study / "reports/markov.json") if row["method"] == "gtl-token" and row["n"] == 8)
    assert repeats[0]["row_kl"] == first["row_kl"]  # the cell of the same seed
    values = sorted(row["row_kl"] for row in repeats if row["n"] == 8)
    low, high = (sum(pair) / 2 for pair in (values[:2], values[1:]))  # quartiles of three
    words = [f"{value:.4f}" for value in (values[0], low, values[1], high, values[2])]
    page = (study / "reports/markov.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| 8 | 3 |")]
    assert [word.strip() for word in line.split("|")[3:8]] == words


def test_the_page_names_every_method_and_its_figures(study: Path) -> None:
    page = (study / "reports/markov.md").read_text()
    for name in ("GTL token", "fine-tuning", "LoRA", "classifier alone", "bigram counts"):
        assert name in page
    for figure in ("matrices", "row-kl", "calibration", "overlap"):
        assert f"markov/{figure}.svg" in page
        for ending in (".svg", ".png", "-dark.svg"):
            assert (study / f"reports/markov/{figure}{ending}").stat().st_size > 2000


def test_a_second_run_repeats_the_first_without_training(study: Path) -> None:
    before = (study / "markov/cells/0.json").read_bytes()
    states = {path: path.stat().st_mtime_ns for path in (study / ".state").rglob("best.safetensors")}
    with inside(study):
        markov_cells(tiny(), 0, Params())
    assert (study / "markov/cells/0.json").read_bytes() == before
    assert states == {path: path.stat().st_mtime_ns for path in (study / ".state").rglob("best.safetensors")}
