"""A client of MLflow whose every failure is one line: of the server, the database, the disk of either."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.addresses import SQLITE, without_credentials
from gtl_lightning.workspace.artifacts import SCHEME, repository

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

T = TypeVar("T")
TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
DEFAULTS = {TIMEOUT: 30, RETRIES: 2, "PGCONNECT_TIMEOUT": 10}
"""Seconds and counts that hold where the environment says nothing: MLflow's own are 120 and 7, PostgreSQL has none."""
PATIENCE_SECONDS = 30.0
"""For one question to a tracker, its repetitions counted."""
TRANSFERS = ("log_artifact", "log_artifacts", "log_dict", "log_text", "log_table")
"""Calls that take as long as a file is large: every piece of it is bounded by the timeout of a request. A file of
SQLite, which waits for other writers, is bounded by nothing of ours either."""

UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""Codes by which MLflow says that it knows no such run, model, version or alias."""

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@contextmanager
def one_line(uri: str) -> Iterator[None]:
    """What a tracker, its database or its disk refuses inside is one line that says where it is and what to do.

    Raises:
        UserError: naming the address.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"tracking at {without_credentials(uri)} needs the package {error.name}, which is not installed; "
            "for PostgreSQL: pip install 'psycopg[binary]'"
        ) from error
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:300]
        if getattr(error, "error_code", None) in UNKNOWN:  # the tracker is well, and has no such thing
            raise UserError(
                f"tracking at {without_credentials(uri)} says: {reason.rstrip('.')}; name what is there"
            ) from error
        raise UserError(
            f"tracking at {without_credentials(uri)} failed: {reason}; see that it runs and its disk has room, or set "
            "tracking.uri in params.yaml (MLFLOW_TRACKING_URI wins over it)"
        ) from error


class _OneLine:
    """A client of MLflow, every call of which fails in one line."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self._uri = uri

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while it is unpickled, before it has a client
            raise AttributeError(name)
        seconds = None if name in TRANSFERS or self._uri.startswith(SQLITE) else patience()
        return _told(getattr(self._client, name), self._uri, seconds)


def _told(call: Callable[..., Any], uri: str, seconds: float | None) -> Callable[..., Any]:
    def telling(*args: Any, **kwargs: Any) -> Any:
        with one_line(uri):
            return call(*args, **kwargs) if seconds is None else within(seconds, lambda: call(*args, **kwargs))

    return telling


def patience() -> float:
    """Seconds that a question may take: longer than usual where somebody has set MLflow's own limits so.

    Raises:
        UserError: one of them is no count.
    """
    timeout, retries = (_count(name) for name in (TIMEOUT, RETRIES))
    as_usual = (timeout, retries) == (DEFAULTS[TIMEOUT], DEFAULTS[RETRIES])
    return PATIENCE_SECONDS if as_usual else PATIENCE_SECONDS + timeout * (retries + 1)


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` gives, or TimeoutError after so many seconds: of a server that sends a byte at a time, too.

    A call that is given up stays behind in a thread, which ends with the process.
    """
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if failed:
        raise failed[0]
    return found[0]


def _count(name: str) -> int:
    value = os.environ.get(name) or str(DEFAULTS[name])
    if not value.isdecimal() or len(value) > 9:
        raise UserError(f"the environment variable {name} is {value!r}; set it to a whole number, or unset it")
    return int(value)


def open_client(uri: str) -> MlflowClient:
    """A client that fails in one line, and within seconds.

    Raises:
        UserError: the database cannot be opened, or a limit in the environment is no count.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, str(value))
    seconds = patience()
    from mlflow import MlflowClient

    register_scheme()
    # They report every table that is created, every repetition, every error with its traceback: ours is one line.
    for package in ("mlflow", "urllib3"):
        logging.getLogger(package).setLevel(logging.CRITICAL)
    limit = None if uri.startswith(SQLITE) else seconds  # a new file's tables take as long as its disk
    return cast("MlflowClient", _OneLine(_told(MlflowClient, uri, limit)(tracking_uri=uri), uri))


def register_scheme() -> None:
    """What the package's entry point does, also where a checkout is on the path and was never installed."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry

    _artifact_repository_registry.register(SCHEME, repository)


def found_runs(client: MlflowClient, experiment_id: str, query: str) -> Iterator[MlflowRun]:
    """The experiment's runs of a query, the oldest first, as many pages as there are."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], query, max_results=200, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
