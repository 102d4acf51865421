"""What lies beyond this process: the Prefect server, the workers of its pools, the DVC remote of several checkouts.

A stage for a pool is a flow run of its own, taken by whichever worker is free: one GPU worker runs one stage at a time.
Several machines, each with a checkout of its own, share results through a DVC remote that all of them reach: every
finished stage is pushed with DVC's run-cache, the record of what a command made of which inputs. Whoever needs the
stage next, on whatever machine, takes it from there and writes its own dvc.lock: nothing is computed twice.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import httpx
from filelock import FileLock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
    temporary_settings,
)
from prefect.states import Cancelling

from flows.group import is_stopped
from flows.lockfile import STUDIES
from flows.login import LOGIN, new_login, read_login
from flows.stage import Result, StageError
from gtl_lightning.errors import UserError, reason
from gtl_lightning.files import digest, writing
from gtl_lightning.inputs import read_text
from gtl_lightning.workspace.addresses import unreachable, without_credentials
from gtl_lightning.workspace.params import PARAMS

POLL_SECONDS = 1.0
FIRST_START_SECONDS = 120  # it makes some hundred tables and changes of them
OWNER_TAG = "sweep:"  # of a stage's run: begins the tag that names the flow run which asked for it
STAGE_TAG = "stage:"
UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


def run_on_pool(
    deployment: str, *, stage: str, label: str, minutes: float | None, owner: str, told: dict[str, Any] | None = None
) -> Result:
    """Start a run of the flow `stage` and wait for it; cancel it when the owner is stopped.

    A run of the same stage that another owner left behind (a sweep that was killed) is taken over instead.

    Args:
        deployment: `stage/gpu`, for example; its workers share this repository's folder, or share its DVC remote.
        stage: address of the DVC stage.
        label: name of the run.
        minutes: time limit of the stage, which its worker enforces.
        owner: id of the flow run that asks.
        told: further parameters of the flow `stage`.

    Raises:
        StageError: no such deployment, or the run ended otherwise than Completed.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise StageError(_no_deployment(deployment)) from error
        run = _left_behind(client, found.id, stage) or client.create_flow_run_from_deployment(
            found.id,
            parameters={"stage": stage, "time_limit_minutes": minutes, **(told or {})},
            name=label,
            tags=[f"{OWNER_TAG}{owner}", f"{STAGE_TAG}{stage}"],
        )
        return _result(_final_state(client, run.id, owner), label)


def check_pool(deployment: str) -> str | None:
    """A warning when no worker of the deployment's pool is online; None when one is, or the pool needs none.

    Raises:
        UserError: no such deployment.
    """
    with get_client(sync_client=True) as client:
        try:
            found: DeploymentResponse = client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise UserError(_no_deployment(deployment)) from error
        pool = found.work_pool_name
        return None if pool is None else without_worker(client, pool)


def without_worker(client: SyncPrefectClient, pool: str) -> str | None:
    """That no worker of a pool is online, and how to start one; None when one is."""
    if any(worker.status == WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(pool)):
        return None
    start = f"prefect worker start --pool {pool} --limit 1"
    return f"no worker of the pool {pool} is online: its runs wait until one is (`{start}` in this folder)"


def _no_deployment(name: str) -> str:
    return f"deployment {name} does not exist on this server; `sh infra/deploy.sh` makes pools and deployments"


def _left_behind(client: SyncPrefectClient, deployment: UUID, stage: str) -> FlowRun | None:
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[f"{STAGE_TAG}{stage}"]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
        ),
        limit=1,
    )
    return runs[0] if runs else None


def _final_state(client: SyncPrefectClient, run_id: UUID, owner: str) -> State:
    cancelled = False
    while True:
        state = client.read_flow_run(run_id).state
        if state is not None and state.is_final():
            return state
        if is_stopped(owner) and not cancelled:
            # Not by force: Prefect's rules keep what has just ended, and cancel at once what no worker has taken.
            client.set_flow_run_state(run_id, Cancelling())
            cancelled = True
        time.sleep(POLL_SECONDS)


def _result(state: State, label: str) -> Result:
    if state.is_completed():
        return "cached" if state.message == "cached" else "ran"
    # A crash is the machine's doing; a failure has been retried where that made sense.
    raise StageError(state.message or f"the run {label!r} ended {state.name}", retriable=state.is_crashed())


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


def start_own_server(database: Path) -> None:
    """Start a flow's own server on an SQLite file that is not there yet, which makes its tables; one process at a time.

    Servers that start at once on such a file make its tables twice, and one of them fails. Where the file is there, the
    flow starts its server by itself.

    Args:
        database: what PREFECT_API_DATABASE_CONNECTION_URL names.

    Raises:
        UserError: its folder cannot be written.
    """
    with writing(database), FileLock(database.with_suffix(".lock")):
        if not database.exists():
            # Seconds of imports, which most commands need not pay.
            from prefect.server.api.server import SubprocessASGIServer

            server = SubprocessASGIServer()  # the one that the flow will find
            try:
                server.start(FIRST_START_SECONDS)
            except RuntimeError:  # the flow tries it once more, and says why not
                server.stop()


def stop_own_server() -> None:
    """End the server that this process brought along, if it did."""
    brought = sys.modules.get("prefect.server.api.server")  # which only a start imports: nobody waits for it at Ctrl-C
    if brought is not None:
        brought.SubprocessASGIServer().stop()


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
    raise UserError(f"Prefect server {without_credentials(url)} failed: {reason(error)}") from error


def check_remote(root: Path) -> str:
    """Name of the default DVC remote, if others can reach it and what it gives is compared with its hash.

    Raises:
        UserError: there is none, it lies in this checkout, or DVC takes from it what it gives.
    """
    from dvc.repo import Repo

    add = "`dvc remote add --local --default store s3://BUCKET` (or a shared folder) makes one"
    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        if not name:
            raise UserError(f"share needs a default DVC remote; {add}")
        remote = repo.config["remote"][name]
        url = str(remote["url"])
    if "://" not in url and Path(url).resolve().is_relative_to(root.resolve()):
        raise UserError(f"share needs a DVC remote that other machines reach, and {name} lies in this checkout; {add}")
    if not remote.get("verify"):
        raise UserError(
            f"share needs a DVC remote whose objects are compared with their hashes, and {name} is not so set; "
            f"`dvc remote modify --local {name} verify true` sets it"
        )
    return str(name)


def version(root: Path) -> str:
    """What has to be equal in every checkout of a sweep: commit, stages, parameters."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError("share compares the commits of checkouts, and there is no git here; install it") from error
    return digest([head.stdout.strip(), *(read_text(path) for path in stated(root))])


def stated(root: Path) -> list[Path]:
    """The files that say what exists: the project's, and those of its studies."""
    return [
        root / "dvc.yaml",
        root / PARAMS,
        *sorted(root.glob(f"{STUDIES}/dvc.yaml")),
        *sorted(root.glob(f"{STUDIES}/{PARAMS}")),
    ]
