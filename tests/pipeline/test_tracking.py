"""What MLflow holds when hosts that share no lock begin one study at the same moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from gtl_lightning.tracking import Study

TAGS = {"profile": "p", "data_hash": "1"}


def test_hosts_that_begin_a_study_at_once_end_with_one_parent_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second host looks for experiment and parent before the first has made them, and makes its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = Study(uri, "crowd", TAGS)
    unseen = {"_find", "_find_experiment"}

    def blind_once(name: str) -> Any:
        look = getattr(Study, name)

        def looking(self: Study, *asked: Any) -> Any:
            if name in unseen:
                unseen.discard(name)
                return None
            return look(self, *asked)

        return looking

    for name in tuple(unseen):
        monkeypatch.setattr(Study, name, blind_once(name))
    second = Study(uri, "crowd", TAGS)
    assert not unseen
    assert second.run_id == first.run_id
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("crowd")
    assert experiment is not None
    assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [first.run_id]
