"""A sweep's own run in MLflow: what was asked for, what came out, and below it the cells that it evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.grid import Stage
from flows.runner import Outcome
from flows.tracked import TrackedSweep
from gtl_lightning.files import write_json
from gtl_lightning.workspace.addresses import SQLITE
from gtl_lightning.workspace.pages import comparisons
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import Cell, note_run, study

CELLS = [Cell("source", None, 0), Cell("gtl", 0.05, 0), Cell("lora", 0.05, 0)]


def stages() -> list[Stage]:
    evaluated = [Stage(f"evaluate@{cell.name}", cell, outs=(f"cells/{cell.name}",)) for cell in CELLS]
    return [Stage("tokenize"), *evaluated]


def all_of(state: str) -> dict[str, Outcome]:
    return {stage.address: Outcome(state, seconds=1.0) for stage in stages()}  # type: ignore[arg-type]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: None) -> Path:
    """Data, and a tracker of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("flows.tracked.flow_run.get_id", lambda: "0f0f")
    monkeypatch.setattr("flows.tracked.flow_run.get_name", lambda: "brave-otter")
    write_json(tmp_path / "data" / "provenance.json", {"sha256": "ab" * 32})
    return tmp_path


def test_a_sweep_is_a_run_with_its_grid_its_report_and_its_cells(checkout: Path) -> None:
    made = study(Params())
    ids = {}
    for cell in CELLS:
        with made.child("cell", cell.name, cell.name, {"method": cell.method}) as run:
            ids[cell.method] = run.run_id
        note_run(Path(f"cells/{cell.name}/row.json"), {"mlflow_run": run.run_id})
    sweep = TrackedSweep("scarcity-sweep", Params(), stages(), checkout, study)
    assert sweep.pages() == ""
    sweep.begin()
    client = MlflowClient(made.uri)
    (found,) = client.search_runs([made.experiment_id], "tags.kind = 'sweep'")
    assert found.info.status == "RUNNING" and found.info.run_id in sweep.pages()
    sweep.end(all_of("ran"), "# what came out")
    (found,) = client.search_runs([made.experiment_id], "tags.kind = 'sweep'")
    assert found.info.status == "FINISHED"
    assert found.data.tags["prefect_flow_run"] == "0f0f"
    assert found.data.tags["mlflow.parentRunId"] == made.run_id
    assert found.data.params == {
        "methods": "['source', 'gtl', 'lora']", "fractions": "[0.05]", "seeds": "[0]", "stages": "4"
    }  # fmt: skip
    for cell_run in ids.values():
        assert client.get_run(cell_run).data.tags["mlflow.parentRunId"] == found.info.run_id
    logged = Path(client.download_artifacts(found.info.run_id, ""))
    assert (logged / "report.md").read_text() == "# what came out"
    assert json.loads((logged / "grid.json").read_text())["methods"] == ["source", "gtl", "lora"]
    assert f"#/experiments/{made.experiment_id}?workflowType=machine_learning" in sweep.pages()
    assert all(place in sweep.pages() for place in comparisons(made.experiment_id).values())
    again = TrackedSweep("scarcity-sweep", Params(), stages(), checkout, study)
    again.begin()  # the flow was killed, and is retried
    again.end(all_of("failed"), "")
    (found,) = client.search_runs([made.experiment_id], "tags.kind = 'sweep'")
    assert found.info.status == "FAILED"


def test_a_sweep_that_ran_nothing_has_no_run_and_makes_no_tracker(checkout: Path) -> None:
    sweep = TrackedSweep("scarcity-sweep", Params(), stages(), checkout, study)
    sweep.end(all_of("cached"), "")
    assert sweep.pages() == "" and not (checkout / "mlflow.db").exists()
    made = study(Params())
    sweep.end(all_of("cached"), "")
    assert "all runs" in sweep.pages() and "this sweep" not in sweep.pages()
    assert not MlflowClient(made.uri).search_runs([made.experiment_id], "tags.kind = 'sweep'")


def test_a_tracker_that_refuses_stops_no_sweep(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "mlflow.db").write_bytes(b"no database at all" * 999)
    sweep = TrackedSweep("scarcity-sweep", Params(), stages(), checkout, study)
    sweep.begin()
    sweep.end(all_of("ran"), "")
    assert sweep.pages() == ""
    assert Params().tracking.uri.startswith(SQLITE)
