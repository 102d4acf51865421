"""The flows' grid is DVC's own."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from flows.flows import MARKOV_REPORT
from flows.grid import Grid, Stage, read_grid
from flows.lockfile import DAMAGED, mend_lockfile
from flows.stage import check_address
from flows.tables import stage_table
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.params import configure, load_params, write_params
from gtl_lightning.workspace.paths import Cell
from tests.dvc_kit import dvc_repository
from tests.pipeline.flow_kit import make_project

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def grid() -> Grid:
    return read_grid(load_params(ROOT / "params.yaml"), ROOT)


def test_addresses_are_those_of_dvc(grid: Grid) -> None:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "stage", "list", "--all", "--name-only"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert set(grid.stages) == set(done.stdout.split())


def test_every_stage_follows_what_it_needs(grid: Grid) -> None:
    seen: set[str] = set()
    for address, stage in grid.stages.items():
        assert seen.issuperset(stage.needs)
        seen.add(address)


def test_every_point_of_the_grid_is_evaluated_once(grid: Grid) -> None:
    sweep = load_params(ROOT / "params.yaml").sweep
    cells = [stage.cell for address in grid.evaluations() for stage in [grid.stages[address]]]
    expected = {Cell("source", None, seed) for seed in sweep.seeds} | {
        Cell(method, fraction, seed) for method in sweep.methods for fraction in sweep.fractions for seed in sweep.seeds
    }
    assert len(cells) == len(expected)
    assert set(cells) == expected
    for address in grid.evaluations():
        stage = grid.stages[address]
        assert stage.cell is not None
        assert stage.row == f"cells/{stage.cell.name}/row.json"


def test_only_report_and_registry_gather_and_they_gather_the_cells(grid: Grid) -> None:
    assert set(grid.gatherers()) == {"report", "register"}
    assert set(grid.stages["report"].gathers) > set(grid.evaluations())
    assert set(grid.stages["register"].gathers) > set(grid.evaluations())


def test_the_study_is_a_pipeline_of_its_own(grid: Grid) -> None:
    """`dvc repro` in the root, and the flow `pipeline`, run the root's dvc.yaml; the study's report brings its own."""
    own = {stage.address for stage in grid.with_upstream([MARKOV_REPORT])}
    stages = yaml.safe_load((ROOT / "gtl_lightning/studies/markov/dvc.yaml").read_text())["stages"]
    folder = MARKOV_REPORT.partition(":")[0]
    assert {address.partition("@")[0] for address in own} == {f"{folder}:{name}" for name in stages}
    others = {address for address in grid.stages if "/studies/" in address} - own
    assert {*grid.main(), *own, *others} == set(grid.stages) and not (own | others).intersection(grid.main())
    assert {"report", "register", "data.dvc"} < set(grid.main())
    assert all(grid.stages[address].cell is None for address in own)
    for address in own:
        check_address(address)


def test_status_shows_a_studys_stages_by_their_names(tmp_path: Path) -> None:
    """Their addresses would fill the row."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(stage_table(Grid([Stage(MARKOV_REPORT), Stage("report")]), tmp_path, []))
    shown = console.export_text()
    assert "markov-report" in shown and "dvc.yaml" not in shown and "up to date" in shown


def test_a_cell_brings_its_upstream_and_nothing_else(grid: Grid) -> None:
    addresses = {stage.address for stage in grid.with_upstream(["evaluate-ratio@gtl-0.05-0"])}
    assert {"split", "tokenize", "source", "classifier@0.05-0", "ratio@gtl-0.05-0"} < addresses
    assert not any("vanilla" in address or "1.0" in address or address == "report" for address in addresses)


def test_what_guides_the_fine_tuned_denoiser_follows_it_and_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sweep.tuned_ratios` lists it; nothing else waits for that denoiser."""
    for name in ("dvc.yaml", "data.dvc", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)  # DVC spells addresses as they are seen from here
    dvc_repository(tmp_path)
    params = configure(overrides=("sweep.tuned_ratios=[gtl-finetuned]",))
    write_params(params, tmp_path / "params.yaml")
    grid = read_grid(params, tmp_path)
    cell = Cell("gtl-finetuned", 0.05, 0)
    evaluated = "evaluate-ratio-on-finetuned@gtl-finetuned-0.05-0"
    assert grid.stages[evaluated].cell == cell
    assert evaluated in grid.evaluations(methods=["gtl-finetuned"], fractions=[0.05])
    upstream = {stage.address for stage in grid.with_upstream([evaluated])}
    assert {"baseline@finetune-0.05-0", "ratio-on-finetuned@gtl-finetuned-0.05-0"} < upstream
    assert not any(address.startswith("baseline@") for address in grid.stages["ratio@gtl-0.05-0"].needs)
    assert set(grid.stages["report"].gathers) > set(grid.evaluations())
    assert grid.stages["ratio-on-finetuned@gtl-finetuned-0.05-0"].label == "ratio-on-finetuned gtl-finetuned 5 % seed 0"


def test_fewer_repetitions_at_a_share_are_no_stages_and_nobody_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC's matrix has them all; the flows make those of `sweep.repeats`, and of the source all, once a seed."""
    for name in ("dvc.yaml", "data.dvc", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    dvc_repository(tmp_path)
    few = ("sweep.fractions=[1.0, 0.05]", "sweep.seeds=[4, 7, 1]", "sweep.repeats=[1, 3]")
    params = configure(overrides=(*few, "sweep.baselines=[finetune]", "sweep.ratios=[gtl]"))
    write_params(params, tmp_path / "params.yaml")
    grid = read_grid(params, tmp_path)
    evaluated = {grid.stages[address].cell for address in grid.evaluations()}
    points = {(1.0, 4), (0.05, 4), (0.05, 7), (0.05, 1)}
    assert set(params.sweep.points) == points
    assert evaluated == {Cell("source", None, seed) for seed in (4, 7, 1)} | {
        Cell(method, *point) for method in ("finetune", "gtl") for point in points
    }
    assert "classifier@1.0-4" in grid.stages and "classifier@1.0-7" not in grid.stages
    assert not any(address.endswith(("-1.0-7", "-1.0-1")) for address in [*grid.stages, *grid.main()])
    for stage in grid.stages.values():
        assert grid.stages.keys() >= {*stage.needs, *stage.gathers} and set(stage.gathers) <= set(stage.needs)


def test_labels_say_method_fraction_and_seed() -> None:
    assert Stage("ratio@gtl-0.05-0", Cell("gtl", 0.05, 0)).label == "ratio gtl 5 % seed 0"
    assert Stage("classifier@0.3-1", Cell("classifier", 0.3, 1)).label == "classifier 30 % seed 1"
    assert Stage("evaluate-source@2", Cell("source", None, 2)).label == "evaluate-source seed 2"
    assert Stage("judge").label == "judge"
    assert Stage("gtl_lightning/studies/markov/dvc.yaml:markov-cells@2").label == "markov-cells@2"


def test_staleness_reaches_everything_downstream_and_only_that() -> None:
    stages = [Stage("d", needs=("b", "c")), Stage("c", needs=("a",)), Stage("b", needs=("a",)), Stage("a"), Stage("e")]
    grid = Grid(stages, stale={"b"})
    assert grid.dirty == {"b", "d"}


def test_evaluations_can_be_narrowed_and_keep_the_source() -> None:
    cells = [Cell("source", None, 0), Cell("gtl", 1.0, 0), Cell("gtl", 0.05, 0), Cell("lora", 0.05, 0)]
    stages = [Stage(f"evaluate@{cell.name}", cell, outs=(f"cells/{cell.name}",)) for cell in cells]
    narrowed = Grid(stages).evaluations(methods=["gtl"], fractions=[0.05])
    assert set(narrowed) == {"evaluate@source-0", "evaluate@gtl-0.05-0"}
    assert Grid(stages).evaluations(seeds=[7]) == []


def test_an_unknown_target_is_named(grid: Grid) -> None:
    with pytest.raises(UserError, match="no stage nonsense@1"):
        grid.with_upstream(["nonsense@1"])


def test_half_a_lock_of_a_study_is_seen_and_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC writes one beside each dvc.yaml, in place: a kill leaves half of either."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)  # addresses are as DVC names them here
    study = tmp_path / MARKOV_REPORT.partition(":")[0]
    study.parent.mkdir(parents=True)
    study.write_text("stages: {}\n")
    lock = study.with_name("dvc.lock")
    lock.write_text("schema: '2.0'\nstages:\n  markov-so")
    with pytest.raises(UserError, match=rf"{lock} is half-written; `gtl reconcile` moves it aside"):
        read_grid(load_params(tmp_path / "params.yaml"), tmp_path)
    assert mend_lockfile(tmp_path)
    assert not lock.exists() and lock.with_name(DAMAGED).exists()
    assert not mend_lockfile(tmp_path)
    assert "report" in read_grid(load_params(tmp_path / "params.yaml"), tmp_path).stages


def test_wherever_the_writing_of_a_lock_was_cut_it_is_read_or_moved_aside(tmp_path: Path) -> None:
    """Half a file can be YAML that is no lock: a stage without its command, a field without its value."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    make_project(tmp_path)
    entry = "    cmd: gtl split\n    deps:\n    - path: data\n      hash: md5\n      md5: 0123.dir\n      size: 12\n"
    whole = "schema: '2.0'\nstages:\n" + "".join(f"  {name}:\n{entry}" for name in ("split", "tokenize"))
    lock = tmp_path / "dvc.lock"
    with Repo(str(tmp_path)) as repo:
        refused = 0
        for length in range(1, len(whole)):
            lock.write_text(whole[:length])
            try:
                Lockfile(repo, str(lock)).load()
            except DvcException:
                refused += 1
                assert mend_lockfile(tmp_path), whole[:length]
            else:
                assert not mend_lockfile(tmp_path), whole[:length]
        assert refused > 20


def test_a_folder_without_dvc_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DVC cannot read the pipeline"):
        read_grid(load_params(ROOT / "params.yaml"), tmp_path)
