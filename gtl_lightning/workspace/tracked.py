"""One open run of MLflow: parameters, metrics, tables and files of what a stage does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from pytorch_lightning.loggers import MLFlowLogger

PARENT = "mlflow.parentRunId"


class Run:
    """One open MLflow run; everything of ours is logged through an explicit client."""

    def __init__(self, client: MlflowClient, run_id: str, uri: str, experiment: str, tags: Iterable[str] = ()) -> None:
        self._client = client
        self._uri = uri
        self._experiment = experiment
        self._tags = frozenset(tags)
        self.run_id = run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings become dotted names. A resumed run keeps the values it has."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(value)[:6000]) for key, value in _flatten(params) if key not in known]
        for start in range(0, len(new), 100):
            self._client.log_batch(self.run_id, params=new[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Log the numbers among `metrics`; no other values, no infinite ones, none that is a tag of the run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(key, float(value), now, step)
            for key, value in metrics.items()
            if isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) < float("inf")
            and key not in self._tags
        ]
        if batch:
            self._client.log_batch(self.run_id, metrics=batch)

    def log_table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Log rows as a table that MLflow's pages compare across runs; one that the run has already stays.

        MLflow adds to a table that is there: a run that is continued would have it twice.
        """
        if name in {file.path for file in self._client.list_artifacts(self.run_id)}:
            return
        columns = list(rows[0]) if rows else []
        self._client.log_table(self.run_id, {column: [row.get(column) for row in rows] for column in columns}, name)

    def log_json(self, value: Mapping[str, Any], name: str) -> None:
        """Log a JSON file, in place of one that is there."""
        self._client.log_dict(self.run_id, dict(value), name)

    def log_text(self, text: str, name: str) -> None:
        """Log a text file, in place of one that is there."""
        self._client.log_text(self.run_id, text, name)

    def log_file(self, path: Path | str, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_folder(self, folder: Path, name: str) -> None:
        """Log a folder and all in it as the artifact folder `name`."""
        self._client.log_artifacts(self.run_id, str(folder), name)

    def log_data(self, name: str, digest: str, source: str) -> None:
        """Log which data set the run read."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="local", source=f'{{"uri": "{source}"}}')
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def end(self, status: str = "FINISHED") -> None:
        """Say how it ended: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status)

    def lightning_logger(self) -> MLFlowLogger:
        """A Lightning logger that writes learning curves into this run."""
        from pytorch_lightning.loggers import MLFlowLogger

        logger = MLFlowLogger(
            experiment_name=self._experiment, tracking_uri=self._uri, run_id=self.run_id, log_model=False
        )
        logger._mlflow_client = self._client  # fails in one line
        return logger


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
