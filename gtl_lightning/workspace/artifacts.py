"""Artifacts of a tracker that is a database alone: in the folder beside it, by addresses that a server knows too.

MLflow notes with an experiment where its artifacts lie. A path would be that of the checkout in which the experiment
was made: a copy would write into the original, and a client of a server elsewhere could fetch nothing.
`mlflow-artifacts:/` is the address of whatever serves the database. A server (`make ui`) answers it over HTTP; MLflow
itself has no answer without one, so this is it: `mlartifacts/` beside the database, which the server is given too.

MLflow finds `repository` by the entry point `mlflow.artifact_repository` of this package.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from gtl_lightning.workspace.addresses import SQLITE

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

SCHEME = "mlflow-artifacts"
LOCATION = f"{SCHEME}:/"
FOLDER = "mlartifacts"


def repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """The artifacts at an address: a server's over HTTP as ever, else those beside the database."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
    from mlflow.tracking import get_tracking_uri
    from mlflow.utils.file_utils import create_tmp_dir

    class Beside(LocalArtifactRepository):
        """Gives copies, as a server does: MLflow writes into the folder of a model that it has downloaded."""

        def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
            return str(super().download_artifacts(artifact_path, dst_path or create_tmp_dir()))

    tracker = tracking_uri or get_tracking_uri()
    if urlsplit(artifact_uri).netloc or urlsplit(tracker).scheme in ("http", "https"):
        return MlflowArtifactsRepository(artifact_uri, tracker, registry_uri)
    return Beside(local_folder(artifact_uri, tracker).as_uri(), tracker, registry_uri)


def local_folder(artifact_uri: str, tracker: str) -> Path:
    """Where the artifacts at `mlflow-artifacts:/PATH` lie on this disk.

    Raises:
        MlflowException: the path leads out of the folder.
    """
    from mlflow.exceptions import MlflowException

    path = PurePosixPath(unquote(urlsplit(artifact_uri).path).lstrip("/"))
    if ".." in path.parts:
        raise MlflowException(f"the artifacts at {artifact_uri} lie outside of the tracker's folder")
    return artifact_folder(tracker) / path


def artifact_folder(tracker: str) -> Path:
    """The folder of a database's artifacts: beside it where it is a file, else in the working directory."""
    beside = Path(tracker.removeprefix(SQLITE)).parent if tracker.startswith(SQLITE) else Path()
    return beside.resolve() / FOLDER
