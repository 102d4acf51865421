"""MLflow: a study, below it the sweeps, below a sweep its cells, below a cell its trainings; what stages know of it.

A *study* is one profile on one data set. A run is found again by its key, so a stage that was killed and runs again
continues its run, and no cell appears twice. Whoever makes a run knows the study alone, and puts it there; who comes
later and knows better takes it below itself: the evaluated cell its trainings, the sweep its cells (`Study.adopt`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from gtl_lightning.errors import UserError
from gtl_lightning.files import writing
from gtl_lightning.workspace.addresses import check_reachable, exists, has_server, lock_path, resolve_uri
from gtl_lightning.workspace.artifacts import LOCATION
from gtl_lightning.workspace.mlflow_client import found_runs, open_client
from gtl_lightning.workspace.origin import origin, process
from gtl_lightning.workspace.pages import VIEW, experiment_place, shown_at
from gtl_lightning.workspace.tracked import PARENT, Run
from gtl_lightning.workspace.versions import register_version

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

PLAIN = re.compile(r"[\w .,:;@/+=()-]*")
"""Values that MLflow's filters take as they are. They know no escape: quotes and backslashes are compared here."""
AXES = ("method", "fraction", "seed", "n")
"""Tags that a run has as parameters too: charts and columns know parameters, filters of the pages tags."""
NOTE = "mlflow.note.content"
STUDY_NOTE = (
    "One profile on one data set. Below it every sweep, below a sweep its cells, below a cell its trainings; what "
    "several share lies here. `tags.kind = 'cell'` finds the cells, `tags.kind = 'curve'` each method's metrics "
    "against examples."
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
        self._experiment = experiment
        self._tags = dict(tags)
        lock = lock_path(self.uri)
        with writing(lock), FileLock(lock):  # two stages that start at once create one database
            self._client = open_client(self.uri)
            self.experiment_id = self._find_experiment(experiment) or self._create_experiment(experiment)
            self._share_view()
            self.run_id = self._own_run({"kind": "study", **tags}, f"study {tags.get('profile', '')}")

    @property
    def page(self) -> str:
        """Address of the page that lists the runs."""
        return shown_at(self.uri, experiment_place(self.experiment_id))

    @property
    def commit(self) -> str:
        """The checkout's commit, as the runs are tagged with it."""
        return origin()["git_commit"]

    def begin(self, kind: str, name: str, key: str, tags: Mapping[str, Any], note: str = "") -> Run:
        """The run of this `key`, made or found again, RUNNING in this process until `Run.end`.

        Args:
            kind: of run: `train`, `cell`, `sweep`, ...
            name: for people.
            key: of what it is; equal keys are one run.
            tags: what it is; those of `AXES` are parameters too.
            note: what it is, in a sentence: the description on its page.
        """
        found = self._find({**self._tags, "key": key})
        own = {"kind": kind, "key": key, **tags, NOTE: note or name}
        run_id = found.info.run_id if found else self._create(name, {**own, PARENT: self.run_id})
        self._client.update_run(run_id, status="RUNNING")
        run = Run(self._client, run_id, self.uri, self._experiment, tags)
        run.set_tags(process())
        run.log_params({axis: tags[axis] for axis in AXES if tags.get(axis) is not None})
        return run

    @contextmanager
    def child(self, kind: str, name: str, key: str, tags: Mapping[str, Any], note: str = "") -> Iterator[Run]:
        """`begin`, and an end: FINISHED, FAILED or KILLED."""
        run = self.begin(kind, name, key, tags, note)
        try:
            yield run
        except BaseException as error:
            with suppress(UserError):  # of a tracker that fails too: what failed first is what is told
                run.set_tags({"error": str(error).splitlines()[0][:500] if str(error) else type(error).__name__})
                run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        run.end()

    @contextmanager
    def parent(self) -> Iterator[Run]:
        """The study's own run, for figures and reports that span its cells."""
        yield Run(self._client, self.run_id, self.uri, self._experiment)

    def runs(self, tags: Mapping[str, Any]) -> list[str]:
        """Ids of the study's runs that have these tags, the oldest first."""
        return [run.info.run_id for run in self._all({**self._tags, **tags})]

    def adopt(self, parent: str, runs: Collection[str]) -> None:
        """Put runs below another, those of them that lie below none but the study; foreign ids are left out."""
        for run in set(self.runs({PARENT: self.run_id})).intersection(runs) - {parent}:
            self._client.set_tag(run, PARENT, parent)

    def discard(self, runs: Iterable[str]) -> None:
        """Move runs into MLflow's bin."""
        for run in runs:
            self._client.delete_run(run)

    def register(
        self,
        name: str,
        run_id: str,
        folder: str,
        key: str,
        tags: Mapping[str, Any],
        aliases: Sequence[str],
        card: str,
    ) -> str:
        """A version of a registered model, as `versions.register_version`."""
        return register_version(self._client, name, run_id, folder, key, tags, aliases, card)

    def _create(self, name: str, tags: Mapping[str, Any]) -> str:
        own = {**self._tags, **origin(), **tags, "mlflow.runName": name}
        texts = {key: str(value)[:5000] for key, value in own.items()}
        run = self._client.create_run(self.experiment_id, tags=texts, run_name=name)
        return str(run.info.run_id)

    def _own_run(self, tags: Mapping[str, Any], name: str) -> str:
        """The study's own run, found or made. Hosts share no lock: of what several make at once the oldest stays."""
        if found := self._find(tags):
            return str(found.info.run_id)
        own = self._create(name, {**tags, NOTE: STUDY_NOTE})
        oldest = self._find(tags)
        if oldest is None or oldest.info.run_id == own:
            self._client.set_terminated(own, "FINISHED")  # it is a folder: nothing runs in it
            return own
        self._client.delete_run(own)
        return str(oldest.info.run_id)

    def _find_experiment(self, name: str) -> str | None:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id) if found else None

    def _create_experiment(self, name: str) -> str:
        location = None if has_server(self.uri) else LOCATION
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except UserError:
            if made := self._find_experiment(name):  # by another host, just now
                return made
            raise

    def _share_view(self) -> None:
        known = self._client.get_experiment(self.experiment_id).tags
        for tag, state in VIEW.items() - known.items():
            self._client.set_experiment_tag(self.experiment_id, tag, state)

    def _find(self, tags: Mapping[str, Any]) -> MlflowRun | None:
        """The oldest run that has these tags."""
        return next(iter(self._all(tags)), None)

    def _all(self, tags: Mapping[str, Any]) -> Iterator[MlflowRun]:
        """The runs that have these tags, the oldest first."""
        wanted = {key: str(value) for key, value in tags.items()}
        plain = {key: value for key, value in wanted.items() if PLAIN.fullmatch(value)}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in plain.items())
        yield from (
            run
            for run in found_runs(self._client, self.experiment_id, query)
            if wanted.items() <= run.data.tags.items()
        )


def find_experiment(uri: str, name: str) -> str | None:
    """The id of an experiment at an address as `resolve_uri` gives it; None where there is none, and nothing is made.

    Raises:
        UserError: the tracker cannot be reached or read.
    """
    check_reachable(uri)
    found = open_client(uri).get_experiment_by_name(name) if exists(uri) else None
    return str(found.experiment_id) if found else None
