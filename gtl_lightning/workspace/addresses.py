"""Addresses of servers and databases: whether one answers, how it may be shown, and what a failure there is called."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from gtl_lightning.errors import UserError

SQLITE = "sqlite:///"
CONNECT_TIMEOUT_SECONDS = 3.0
CREDENTIALS = re.compile(r"(?<=://)[^/\s]+(?=@)")
"""Up to the last @ of an address's host: a password may hold one."""


def resolve_uri(uri: str) -> str:
    """The tracking address: MLFLOW_TRACKING_URI if set, else `uri`; a SQLite path is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or uri  # set to nothing is not set
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).resolve()) if uri.startswith(SQLITE) else uri


def check_reachable(uri: str) -> None:
    """Fail within seconds when nobody listens at a server's address, or a database's file is none.

    Raises:
        UserError: naming the address.
    """
    if uri.startswith(SQLITE):
        _check_sqlite(Path(uri.removeprefix(SQLITE)))
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


def hide_credentials(text: str) -> str:
    """A text with the user and the password of every address in it masked."""
    return CREDENTIALS.sub("***", text)


def exists(uri: str) -> bool:
    """Whether there is a tracker to read: opening a database makes its file, and reading must not."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()


def has_server(uri: str) -> bool:
    """Whether a server answers for the tracker, not the client that opens the database."""
    return uri.startswith(("http://", "https://"))


def lock_path(uri: str) -> Path:
    """The file that stages on one host lock while they open a tracker.

    Raises:
        UserError: the database, or its folder, may not be written.
    """
    if not uri.startswith(SQLITE):
        return Path(".mlflow.lock")
    path = Path(uri.removeprefix(SQLITE))
    folder = path.parent
    for place in (folder, path) if path.exists() else (folder,):
        if not os.access(place, os.W_OK):
            raise UserError(
                f"tracking at {uri} failed: {place} cannot be written; ask for the right to it, or set tracking.uri"
            )
    return folder / ".mlflow.lock"


def _check_sqlite(path: Path) -> None:
    """MLflow tries a file that is no database again and again, for minutes."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):  # somebody writes: MLflow waits for that
            raise UserError(f"tracking database {path} cannot be opened ({error}); set tracking.uri") from error
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"tracking database {path} is damaged ({error}); move it away to begin a new one, or set tracking.uri"
        ) from error
