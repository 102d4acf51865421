"""MLflow: a parent run per study, a child per trained component and per evaluated cell. Nothing else imports it.

A *study* is one profile on one data set. A child run is found again by its key, so a stage that was killed and runs
again continues its run, and no cell appears twice.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from gtl_lightning.errors import UserError
from gtl_lightning.files import writing
from gtl_lightning.workspace.addresses import SQLITE, check_reachable, lock_path, resolve_uri, runs_page
from gtl_lightning.workspace.mlflow_client import one_line, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from pytorch_lightning.loggers import MLFlowLogger

PLAIN = re.compile(r"[\w .,:;@/+=()-]*")
"""Values that MLflow's filters take as they are. They know no escape: quotes and backslashes are compared here."""
MODEL_NAME = re.compile(r"\w[\w .-]{0,254}")
ALIAS = re.compile(r"[\w-]{1,255}")


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

        logger = MLFlowLogger(
            experiment_name=self._experiment, tracking_uri=self._uri, run_id=self.run_id, log_model=False
        )
        logger._mlflow_client = self._client  # fails in one line
        return logger


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
        self._experiment = experiment
        self._tags = {**tags, "git_commit": _git_commit()}
        lock = lock_path(self.uri)
        with writing(lock), FileLock(lock):  # two stages that start at once create one database
            self._client = open_client(self.uri)
            self._experiment_id = self._find_experiment(experiment) or self._create_experiment(experiment)
            self.run_id = self._own_run({"kind": "study", **tags}, f"study {tags.get('profile', '')}")

    @property
    def page(self) -> str:
        """Address of the page that lists the runs."""
        return runs_page(self.uri, self._experiment_id)

    @property
    def commit(self) -> str:
        """The checkout's commit, as the runs are tagged with it."""
        return self._tags["git_commit"]

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
            with suppress(UserError):  # of a tracker that fails too: what failed first is what is told
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
        self, name: str, run_id: str, folder: str, key: str, tags: Mapping[str, Any], aliases: Sequence[str]
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
            UserError: a name or an alias that cannot be one, or the registry refuses.
        """
        check_model(name)
        for alias in aliases:
            check_model(name, alias)
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        known = {version.tags.get("key"): version for version in self._client.search_model_versions(f"name = '{name}'")}
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{folder}"
        texts = {"key": key, **{tag: str(value) for tag, value in tags.items()}}
        version = known.get(key) or self._client.create_model_version(name, source, run_id, tags=texts)
        for tag, text in texts.items() - version.tags.items():  # of a version from before there was such a tag
            self._client.set_model_version_tag(name, version.version, tag, text)
        for alias in aliases:
            self._client.set_registered_model_alias(name, alias, version.version)
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
        location = None
        if self.uri.startswith(SQLITE):
            location = (Path(self.uri.removeprefix(SQLITE)).parent / "mlartifacts").as_uri()
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except UserError:
            if made := self._find_experiment(name):  # by another host, just now
                return made
            raise

    def _find(self, tags: Mapping[str, Any]) -> MlflowRun | None:
        """The oldest run that has these tags."""
        wanted = {key: str(value) for key, value in tags.items()}
        plain = {key: value for key, value in wanted.items() if PLAIN.fullmatch(value)}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in plain.items())
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                query,
                max_results=1 if plain == wanted else 200,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs: Iterable[MlflowRun] = page
            for run in runs:
                if wanted.items() <= run.data.tags.items():
                    return run
            token = page.token
            if not token:
                return None


def fetch_model(uri: str, name: str, alias: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Download a registered model's artifact folder, and its version's tags; nothing in it is loaded or executed.

    Raises:
        UserError: no such model or alias, or the tracker cannot be reached.
    """
    check_model(name, alias)
    uri = resolve_uri(uri)
    check_reachable(uri)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():  # reading must not make one
        raise UserError(f"model {name}@{alias} cannot be fetched: there is no {uri}; `gtl register` makes both")
    from mlflow import artifacts

    try:
        client = open_client(uri)
        version = client.get_model_version_by_alias(name, alias)
        source = client.get_model_version_download_uri(name, version.version)
        with one_line(uri):
            made = Path(artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri))
        return made, dict(version.tags)
    except UserError as error:
        raise UserError(f"model {name}@{alias} cannot be fetched: {error}; `gtl register` makes it") from error


def check_model(name: str, alias: str = "best") -> None:
    """Refuse what cannot be the name or the alias of a registered model, before it enters a query or a path.

    Raises:
        UserError: naming it, and what it may hold.
    """
    if not MODEL_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a registered model: letters, digits, spaces, `.`, `_` and `-` can; write "
            "NAME@ALIAS, or change tracking.experiment, with which names begin"
        )
    if not ALIAS.fullmatch(alias):
        raise UserError(f"{alias!r} cannot be an alias of {name}: letters, digits, `_` and `-` can; `best` is one")


def _git_commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return "unknown"
    return done.stdout.strip() or "unknown"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
