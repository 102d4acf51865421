"""The Prefect server that the command line talks to: configured, reachable, or one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
    temporary_settings,
)

from flows.login import LOGIN, new_login, read_login
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.addresses import unreachable, without_credentials


def server_url() -> str | None:
    """Address of the configured server; None when flows bring their own short-lived one."""
    url = PREFECT_API_URL.value()
    return str(url) if url else None


@contextmanager
def logged_in() -> Iterator[None]:
    """Prefect's clients within it know the password: of `make serve` in this checkout, or of a flow's own server.

    A password that is configured (PREFECT_API_AUTH_STRING) is left alone.
    """
    url, name = server_url(), PREFECT_API_AUTH_STRING.name
    if PREFECT_API_AUTH_STRING.value():
        yield
    elif url is None:
        own = new_login()[name]
        # Without a page of its own, it has no origin from which it would have to be asked.
        closed = {PREFECT_SERVER_API_AUTH_STRING: own, PREFECT_SERVER_CORS_ALLOWED_ORIGINS: ""}
        with temporary_settings({PREFECT_API_AUTH_STRING: own, **closed}):
            yield
    else:
        login = read_login(Path(LOGIN))
        known = name in login and login.get(PREFECT_API_URL.name) == url.rstrip("/")
        with temporary_settings({PREFECT_API_AUTH_STRING: login[name]} if known else {}):
            yield


def check_server() -> None:
    """Fail within seconds when a server is configured and nobody listens there, or it demands another password.

    Raises:
        UserError: naming the address.
    """
    url = server_url()
    if url is None:
        return
    if reason := unreachable(url):
        raise UserError(
            f"Prefect server {without_credentials(url)} does not answer ({reason}); start it (`make serve`), or unset "
            "PREFECT_API_URL to run without one"
        )
    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise UserError(
                f"Prefect server {without_credentials(url)} asks for a password; read it into this terminal "
                f"(`. {LOGIN}` in the folder of `make serve`), or set PREFECT_API_AUTH_STRING"
            ) from error
        raise_failure(url, error)
    except httpx.HTTPError as error:
        raise_failure(url, error)


@contextmanager
def connect() -> Iterator[SyncPrefectClient]:
    """A client of the configured server.

    Raises:
        UserError: none is configured, it does not answer, or it refuses.
    """
    url = server_url()
    if url is None:
        raise UserError(
            "no Prefect server is configured; start one (`make serve`) and set PREFECT_API_URL, "
            "for example http://127.0.0.1:4200/api"
        )
    with logged_in():
        check_server()
        try:
            with get_client(sync_client=True) as client:
                yield client
        except httpx.HTTPError as error:
            raise_failure(url, error)


def raise_failure(url: str, error: httpx.HTTPError) -> NoReturn:
    """Turn what a client of Prefect raises into one line.

    Raises:
        UserError: always.
    """
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"Prefect server {without_credentials(url)} failed: {reason}") from error
