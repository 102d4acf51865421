"""The study of target concrete score matching on a tiny scale: every stage runs, its rows and its text are whole."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from gtl_lightning.data.sample import write_sample
from gtl_lightning.errors import UserError
from gtl_lightning.modules.uniform import UniformDenoiserModule
from gtl_lightning.networks import BackboneConfig, UniformDenoiser, seeded
from gtl_lightning.papers.tcsm import score_loss
from gtl_lightning.studies.tcsm import params as config
from gtl_lightning.studies.tcsm.chains import measure_chains
from gtl_lightning.studies.tcsm.law import measure_law
from gtl_lightning.studies.tcsm.page import tcsm_report
from gtl_lightning.studies.tcsm.settings import Tcsm
from gtl_lightning.studies.tcsm.text import ABSORBING, UNIFORM, UniformScoreModule, characters, measure_text, text_rows
from gtl_lightning.workspace.params import Params
from tests.pipeline.conftest import inside

QUICK = "{steps: 4, batch: 8, lr: 0.01, warmup: 1, check_every: 2, patience: 2}"
TINY = (
    "seeds=[0]",
    "law={states: 2, length: 3, steps: 5, batch: 32, betas: [0.5, 1.0], best_of: [1, 2]}",
    "chains={states: 3, length: 6, gradients: 3, held_out: 8, diagonals: [0.3, 0.8]}",
    f"chains.training={QUICK}",
    "chains.network={width: 8, depth: 1, heads: 2}",
    "text={characters: 4000, length: 16, held_out: 8}",
    f"text.training={QUICK}",
    "text.network={width: 8, depth: 1, heads: 2, cond_dim: 4}",
)


def tiny(*changes: str) -> Tcsm:
    return config.overlaid({}, (*TINY, *changes))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tcsm")
    with inside(folder):
        write_sample(Path("data"), seed=0, source_records=40, target_records=20)
        for stage in (measure_law, measure_chains, measure_text):
            stage(tiny())
        tcsm_report(tiny(), Params())
    return folder


def test_every_part_has_its_rows(study: Path) -> None:
    rows = json.loads((study / "reports/tcsm.json").read_text())
    assert {row["part"] for row in rows} == {
        "objective",
        "preference",
        "target",
        "reward",
        "examples",
        "gradients",
        "text",
    }
    text = {(row["noise"], row["objective"]) for row in rows if row["part"] == "text"}
    assert text == {
        ("none", "causal model"),
        *(("absorbing", name) for name in ABSORBING),
        *(("uniform", name) for name in UNIFORM),
    }
    assert all(0 < row["bits"] < 20 for row in rows if row["part"] == "text")
    assert {row["diagonal"] for row in rows if row["part"] == "gradients"} == {0.3, 0.8}
    assert {row["beta"] for row in rows if row.get("kind") == "frontier"} == {0.5, 1.0}
    assert {row["n"] for row in rows if row.get("kind") == "best of n"} == {1, 2}


def test_the_page_has_every_form_and_figure(study: Path) -> None:
    page = (study / "reports/tcsm.md").read_text()
    for name in ("model first", "mask by mask", "tilted position by position", "trained by weight", "tcsm-distilled"):
        assert name in page
    for figure in ("text", "chains", "reward"):
        assert f"tcsm/{figure}.svg" in page
        assert (study / f"reports/tcsm/{figure}-dark.svg").stat().st_size > 2000


def test_without_abstracts_the_generated_sample_is_read_and_a_file_in_their_place(tmp_path: Path) -> None:
    (tmp_path / "text8").write_text("anarchism originated as a term of abuse " * 100)
    with inside(tmp_path):
        generated = text_rows(tiny("text.characters=2000").text, 0)
        given = text_rows(tiny("text.file=text8").text, 0)
        again = text_rows(tiny("text.file=text8").text, 0)
    without = [{key: value for key, value in row.items() if key != "seconds"} for row in given]
    assert without == [{key: value for key, value in row.items() if key != "seconds"} for row in again]
    assert all(math.isfinite(row["bits"]) for row in generated) and generated[0]["bits"] != given[0]["bits"]


def test_what_is_no_text_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("one two")
    with inside(tmp_path):
        with pytest.raises(UserError, match="short|20 are needed") as told:
            text_rows(tiny("text.file=short").text, 0)
        assert "\n" not in str(told.value)
        with pytest.raises(UserError, match="text.file") as told:
            text_rows(tiny("text.file=no").text, 0)
        assert "\n" not in str(told.value)
    shutil.rmtree(tmp_path / ".state", ignore_errors=True)


def test_letters_and_one_blank_between_them() -> None:
    assert characters("Ab, c\n\n\u00e9z 9").tolist() == [0, 1, 26, 2, 26, 25, 26]


def test_under_uniform_noise_every_objective_is_scored_by_the_nelbo_and_trained_by_its_own() -> None:
    config = BackboneConfig(vocab_size=7, length=6, width=8, depth=1, heads=2, mask_index=5, pad_index=6, cond_dim=4)
    with seeded(0):
        network = UniformDenoiser(config)
    plain, scored = UniformDenoiserModule(network), UniformScoreModule(network, terms=score_loss)
    batch = {"x_0": torch.randint(5, (16, 6), generator=torch.Generator().manual_seed(1))}

    def draws() -> torch.Generator:
        return torch.Generator().manual_seed(2)

    assert scored.held_out_loss(batch, draws()) == plain.held_out_loss(batch, draws())
    assert scored.loss(batch, draws()) != plain.loss(batch, draws())
    scored.loss(batch, draws()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.output.parameters())
