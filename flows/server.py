"""The Prefect server that the command line talks to: configured, reachable, or one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.addresses import unreachable, without_credentials


def server_url() -> str | None:
    """Address of the configured server; None when flows bring their own short-lived one."""
    url = PREFECT_API_URL.value()
    return str(url) if url else None


def check_server() -> None:
    """Fail within seconds when a server is configured and nobody listens there.

    Raises:
        UserError: naming the address.
    """
    url = server_url()
    if url and (reason := unreachable(url)):
        raise UserError(
            f"Prefect server {without_credentials(url)} does not answer ({reason}); start it (`make serve`), or unset "
            "PREFECT_API_URL to run without one"
        )


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
    check_server()
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"Prefect server {without_credentials(url)} failed: {reason}") from error
