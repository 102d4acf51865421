"""What people expect of a DVC repository: the root's pipeline, metrics on a screen, plots offline, parameters alike."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from gtl_lightning.stages.report import SHOWN
from gtl_lightning.studies.markov import params as markov
from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.studies.tcsm import params as tcsm
from gtl_lightning.studies.tcsm.settings import Tcsm
from gtl_lightning.workspace.params import configure, load_params, write_params

ROOT = Path(__file__).parents[2]
PROFILES = [None, *sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))]


def test_plain_repro_is_the_main_job_and_all_of_it_is_made_by_a_sweep() -> None:
    """`make repro` makes the report and the registry; what they need is all that `dvc repro` has to do."""
    with Repo(str(ROOT)) as repo:
        own = {stage.addressing for stage in repo.stage.collect("dvc.yaml")}  # DVC's own target where none is given
        graph = repo.index.graph
        needed, waiting = set[str](), [stage for stage in graph if stage.addressing in ("report", "register")]
        while waiting:
            stage = waiting.pop()
            if stage.addressing not in needed:
                needed.add(stage.addressing)
                waiting += graph.successors(stage)
    assert not [address for address in own if ":" in address], "a study has its own command: make markov"
    assert own == {address for address in needed if not address.endswith(".dvc")}
    assert "then dvc repro; else gtl sweep; fi\n" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("named", "asked"), [("  remote: sample\n", "--remote sample "), ("", "")])
def test_the_store_that_data_dvc_names_is_the_one_that_make_asks(named: str, asked: str, tmp_path: Path) -> None:
    """Without it DVC warns of a default that is not there; of other records it must ask the user's own default."""
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: 0.dir\n  path: data\n{named}")
    (tmp_path / "dvc").write_text('#!/bin/sh\necho "$@" >&2\n')
    (tmp_path / "dvc").chmod(0o755)
    done = subprocess.run(
        ["make", "--silent", f"--file={ROOT / 'Makefile'}", "--eval=records: ; $(RECORDS)", "records"],
        cwd=tmp_path, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr == f"pull {asked}data.dvc\n"


def changed(path: Path, **keys: object) -> list[str]:
    """The lines that DVC changes when it sets these keys, as `dvc exp run -S` does."""
    before = path.read_text().splitlines()
    with modify_yaml(str(path)) as values:
        values.update(keys)
    after = path.read_text().splitlines()
    assert len(after) == len(before)
    return [new for old, new in zip(before, after, strict=True) if old != new]


@pytest.mark.parametrize("profile", PROFILES)
def test_dvc_and_configure_write_the_parameters_alike(profile: str | None, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    params = configure(profile) if profile else load_params(ROOT / "params.yaml")
    write_params(params, path)
    assert changed(path) == []
    assert load_params(path) == params
    (line,) = changed(path, schedule="cosine")
    assert line.startswith("schedule: cosine")
    assert load_params(path).schedule == "cosine"


def test_long_lists_and_nothing_are_written_as_dvc_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    seeds = list(range(40))
    params = configure(overrides=(f"sweep.seeds={seeds}", "sampling.block=4", "data.max_source=null"))
    write_params(params, path)
    assert changed(path) == []
    assert load_params(path) == params


@pytest.mark.parametrize(("study", "settings"), [(markov, Markov()), (tcsm, Tcsm())], ids=["markov", "tcsm"])
def test_the_studies_parameters_too(study: ModuleType, settings: Any, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    study.write_settings(settings, path)
    assert changed(path) == []
    assert study.load_settings(path) == settings
    assert path.read_text() == (ROOT / study.PARAMS).read_text()


def test_plots_are_drawn_from_data_and_need_no_network() -> None:
    """DVC calls `vegaEmbed`, which the page has itself; the template's fields are those of curves.json."""
    page = (ROOT / "infra" / "dvc-plots.html").read_text()
    assert "function vegaEmbed(" in page and "{scripts}" not in page
    assert not re.search(r"(src|href)=|import\(|fetch\(", page)
    template = json.loads((ROOT / ".dvc" / "plots" / "curve.json").read_text())
    assert {template["encoding"][axis]["field"] for axis in ("color", "strokeDash")} == {"method", "rev"}
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    drawn = [next(iter(plot.values())) for plot in pipeline["plots"] if isinstance(plot, dict)]
    assert [plot["x"] for plot in drawn] == ["examples"] * 2 and {plot["template"] for plot in drawn} == {"curve"}
    assert [plot["y"] for plot in drawn] == [{"reports/curves.json": metric} for metric in ("nelbo", "mauve")]
    assert set(SHOWN) == {"nelbo", "mauve", "domain_score"}
