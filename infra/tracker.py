"""MLflow's server behind a password: uvicorn --app-dir infra --factory tracker:tracker.

MLflow by itself asks nobody who he is, and reads whatever file its process may read for whoever points an experiment at
a folder with a link in it: on loopback that is every user of the machine. Here each request needs the user and the
password of MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which MLflow's clients send and a browser asks for.
A page of another origin is refused even then, as a browser sends along a password that it knows.

As a program (`python infra/tracker.py`) it brings the database up to date. MLFLOW_BACKEND_STORE_URI,
MLFLOW_ARTIFACTS_DESTINATION, MLFLOW_SERVER_ALLOWED_HOSTS and MLFLOW_SERVER_CORS_ALLOWED_ORIGINS mean what they mean to
`mlflow server`.
"""

from __future__ import annotations

import base64
import hmac
import os
from typing import Any

from mlflow.server.constants import (
    ARTIFACT_ROOT_ENV_VAR,
    ARTIFACTS_DESTINATION_ENV_VAR,
    BACKEND_STORE_URI_ENV_VAR,
    REGISTRY_STORE_URI_ENV_VAR,
    SERVE_ARTIFACTS_ENV_VAR,
)

OPEN = ("/health", "/version")  # for probes
ORIGINS = "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"


class Guarded:
    """An ASGI application that answers who logs in, and pages of its own origins.

    Args:
        app: the application behind it.
        user: name, without a colon.
        password: of the user.
        origins: of pages that may send requests; a request without an origin comes from no foreign page.
    """

    def __init__(self, app: Any, user: str, password: str, origins: list[str]) -> None:
        self._app = app
        self._wanted = b"Basic " + base64.b64encode(f"{user}:{password}".encode())
        self._origins = [origin.encode() for origin in origins]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or (scope.get("method") == "GET" and scope["path"] in OPEN):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._wanted):
            await _refuse(scope, send, 401, [(b"www-authenticate", b'Basic realm="MLflow"')])
        elif b"origin" in headers and headers[b"origin"] not in self._origins:
            await _refuse(scope, send, 403, [])
        else:
            await self._app(scope, receive, send)


async def _refuse(scope: dict[str, Any], send: Any, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def tracker() -> Guarded:
    """MLflow's application, set up as `mlflow server` sets it up for its processes; it reads that on import."""
    store = os.environ["MLFLOW_BACKEND_STORE_URI"]
    os.environ.update(
        {
            BACKEND_STORE_URI_ENV_VAR: store,
            REGISTRY_STORE_URI_ENV_VAR: store,
            ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            ARTIFACTS_DESTINATION_ENV_VAR: os.environ["MLFLOW_ARTIFACTS_DESTINATION"],
            SERVE_ARTIFACTS_ENV_VAR: "true",
        }
    )
    from mlflow.server.fastapi_app import app as mlflow_app

    user, password = (os.environ[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD"))
    return Guarded(mlflow_app, user, password, os.environ.get(ORIGINS, "").split(","))


if __name__ == "__main__":
    from mlflow.db import commands

    # As `mlflow db upgrade`, which takes the address with its password on the command line, where every user sees it.
    commands(["upgrade", os.environ["MLFLOW_BACKEND_STORE_URI"]])
