"""MLflow, and the only importer of it: a parent run per study, a child per trained component and per evaluated cell.

A *study* is one profile on one data set. A child run is found again by its key, so a stage that was killed and runs
again continues its run, and no cell appears twice.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from gtl_lightning.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from pytorch_lightning.loggers import MLFlowLogger

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

CONNECT_TIMEOUT_SECONDS = 3.0
SQLITE = "sqlite:///"


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
        """Log rows as a JSON table that the MLflow page shows under `name`."""
        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        self._client.log_dict(self.run_id, table, name)

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
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, str(value))

    def lightning_logger(self) -> MLFlowLogger:
        """A Lightning logger that writes learning curves into this run."""
        from pytorch_lightning.loggers import MLFlowLogger

        return MLFlowLogger(
            experiment_name=self._experiment, tracking_uri=self._uri, run_id=self.run_id, log_model=False
        )


class Study:
    """The parent run of one profile on one data set.

    Args:
        uri: tracking server or database; the environment variable MLFLOW_TRACKING_URI wins over it.
        experiment: experiment name.
        tags: what the study is (profile, data hash); equal tags find the same parent again.

    Raises:
        UserError: the server does not answer, or the database cannot be opened.
    """

    def __init__(self, uri: str, experiment: str, tags: Mapping[str, str]) -> None:
        self.uri = resolve_uri(uri)
        check_reachable(self.uri)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports every table it creates
        self._experiment = experiment
        self._tags = {**tags, "git_commit": _git_commit()}
        with FileLock(_lock_path(self.uri)):  # two stages that start at once create one database
            try:
                self._client = MlflowClient(tracking_uri=self.uri)
                self._experiment_id = self._find_experiment(experiment) or self._create_experiment(experiment)
                self.run_id = self._own_run({"kind": "study", **tags}, f"study {tags.get('profile', '')}")
            except MlflowException as error:
                raise UserError(
                    f"tracking at {without_credentials(self.uri)} failed: {str(error).splitlines()[0]}"
                ) from error
            except ModuleNotFoundError as error:
                raise UserError(
                    f"tracking at {without_credentials(self.uri)} needs the package {error.name}, which is not "
                    "installed; for PostgreSQL: pip install 'psycopg[binary]'"
                ) from error

    @contextmanager
    def child(self, kind: str, name: str, key: str, tags: Mapping[str, Any]) -> Iterator[Run]:
        """Open the child run of this `key` (made, or found again), mark it FINISHED or FAILED at the end."""
        found = self._find({"key": key, "mlflow.parentRunId": self.run_id})
        own = {"kind": kind, "key": key, "mlflow.parentRunId": self.run_id, **tags}
        run_id = found.info.run_id if found else self._create(name, own)
        self._client.update_run(run_id, status="RUNNING")
        try:
            yield Run(self._client, run_id, self.uri, self._experiment, tags)
        except BaseException as error:
            self._client.set_tag(
                run_id, "error", str(error).splitlines()[0][:500] if str(error) else type(error).__name__
            )
            self._client.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self._client.set_terminated(run_id, "FINISHED")

    @contextmanager
    def parent(self) -> Iterator[Run]:
        """The study's own run, for figures and reports that span its cells."""
        yield Run(self._client, self.run_id, self.uri, self._experiment)
        self._client.set_terminated(self.run_id, "FINISHED")

    def register(
        self, name: str, run_id: str, folder: str, key: str, tags: Mapping[str, Any], aliases: Iterable[str]
    ) -> str:
        """A version of the registered model `name` from a run's artifact folder; the aliases move to it.

        Args:
            name: made if it does not exist.
            run_id: whose artifact it is.
            folder: artifact folder.
            key: of the content; a version that has it already is taken in place of a new one.
            tags: of the version.
            aliases: to set.

        Raises:
            UserError: the registry refuses.
        """
        from mlflow.exceptions import MlflowException

        try:
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name)
            known = {
                version.tags.get("key"): version for version in self._client.search_model_versions(f"name = '{name}'")
            }
            source = f"{self._client.get_run(run_id).info.artifact_uri}/{folder}"
            texts = {"key": key, **{tag: str(value) for tag, value in tags.items()}}
            version = known.get(key) or self._client.create_model_version(name, source, run_id, tags=texts)
            for alias in aliases:
                self._client.set_registered_model_alias(name, alias, version.version)
        except MlflowException as error:
            raise UserError(f"{name} cannot be registered: {str(error).splitlines()[0]}") from error
        return str(version.version)

    def _create(self, name: str, tags: Mapping[str, Any]) -> str:
        texts = {key: str(value) for key, value in {**self._tags, **tags, "mlflow.runName": name}.items()}
        run = self._client.create_run(self._experiment_id, tags=texts, run_name=name)
        return str(run.info.run_id)

    def _own_run(self, tags: Mapping[str, Any], name: str) -> str:
        """The study's own run, found or made. Hosts share no lock: of what several make at once the oldest stays."""
        if found := self._find(tags):
            return str(found.info.run_id)
        own = self._create(name, tags)
        oldest = self._find(tags)
        if oldest is None or oldest.info.run_id == own:
            return own
        self._client.delete_run(own)
        return str(oldest.info.run_id)

    def _find_experiment(self, name: str) -> str | None:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id) if found else None

    def _create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = None
        if self.uri.startswith("sqlite:"):
            location = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException:
            if made := self._find_experiment(name):  # by another host, just now
                return made
            raise

    def _find(self, tags: Mapping[str, Any]) -> MlflowRun | None:
        """The oldest run that has these tags."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs: Iterable[MlflowRun] = self._client.search_runs(
            [self._experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"]
        )
        return next(iter(runs), None)


def fetch_model(uri: str, name: str, alias: str, folder: Path) -> Path:
    """Download a registered model's artifact folder; nothing in it is loaded or executed.

    Raises:
        UserError: no such model or alias, or the tracker cannot be reached.
    """
    uri = resolve_uri(uri)
    check_reachable(uri)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():  # reading must not make one
        raise UserError(f"model {name}@{alias} cannot be fetched: there is no {uri}; `gtl register` makes both")
    from mlflow import MlflowClient, artifacts
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        version = client.get_model_version_by_alias(name, alias)
        source = client.get_model_version_download_uri(name, version.version)
        return Path(artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri))
    except (MlflowException, OSError) as error:
        reason, where = str(error).splitlines()[0], without_credentials(uri)
        raise UserError(
            f"model {name}@{alias} cannot be fetched from {where} ({reason}); `gtl register` makes it"
        ) from error


def resolve_uri(uri: str) -> str:
    """The tracking address: MLFLOW_TRACKING_URI if set, else `uri`; a SQLite path is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or uri  # set to nothing is not set
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).resolve()) if uri.startswith(SQLITE) else uri


def check_reachable(uri: str) -> None:
    """Fail within seconds when nobody listens at a server's address.

    Raises:
        UserError: naming the address.
    """
    if reason := unreachable(uri):
        raise UserError(
            f"tracking server {without_credentials(uri)} does not answer ({reason}); "
            "start it, or unset MLFLOW_TRACKING_URI to log into the local database"
        )


def unreachable(uri: str) -> str | None:
    """Why no connection to a server's address can be made; None when one can, or the address is no server's."""
    try:
        address = urlsplit(uri)
        given = address.port
    except ValueError as error:
        return f"it is no address: {error}"
    ports = {"http": 80, "https": 443, "postgresql": 5432}
    scheme = address.scheme.partition("+")[0]
    if scheme not in ports or not address.hostname:
        return None
    try:
        socket.create_connection((address.hostname, given or ports[scheme]), CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def without_credentials(uri: str) -> str:
    """An address as it may be shown: no user, no password, no query."""
    try:
        address = urlsplit(uri)
        _ = address.port
    except ValueError:  # no address at all, though it may hold what looks like one
        return uri.rpartition("@")[2]
    if not address.hostname:
        return uri
    host = f"{address.hostname}:{address.port}" if address.port else address.hostname
    return f"{address.scheme}://{host}{address.path}"


def _lock_path(uri: str) -> str:
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        if not os.access(folder, os.W_OK):
            raise UserError(f"tracking database folder {folder} cannot be written; set tracking.uri in params.yaml")
        return str(folder / ".mlflow.lock")
    return ".mlflow.lock"


def _git_commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
