"""A client of MLflow whose every failure is one line: of the server, the database, the disk of either."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.addresses import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
        return _told(getattr(self._client, name), self._uri)


def _told(call: Callable[..., Any], uri: str) -> Callable[..., Any]:
    def telling(*args: Any, **kwargs: Any) -> Any:
        with one_line(uri):
            return call(*args, **kwargs)

    return telling


def open_client(uri: str) -> MlflowClient:
    """A client that fails in one line.

    Raises:
        UserError: the database cannot be opened.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    # It reports every table that it creates, and every error with its traceback: ours is one line.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    with one_line(uri):
        return cast("MlflowClient", _OneLine(MlflowClient(tracking_uri=uri), uri))
