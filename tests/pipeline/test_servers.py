"""`make serve` obeys nobody who does not know its password, and shows it to nobody."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.login import LOGIN
from tests.pipeline.lab import Lab, wait_until

FOREIGN = "http://evil.example"
DATABASE_PASSWORD = "hunter2hunter2"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.begin("servers")
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


def ask(
    url: str, method: str = "GET", body: Any = None, user: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers (names in lower case) and text of a request."""
    data = json.dumps(body).encode() if body is not None else None
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    if user is not None:
        told["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **told}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read().decode()


def auth(lab: Lab) -> str:
    return lab.login["PREFECT_API_AUTH_STRING"]


def deployment(client: SyncPrefectClient) -> str:
    """Its pool has no worker here: what is started stays in the queue."""
    return str(client.read_deployment_by_name("stage/gpu").id)


# --- who may ask


def test_nobody_starts_a_run_without_the_password(lab: Lab) -> None:
    with lab.client() as client:
        url = f"{lab.url}/deployments/{deployment(client)}/create_flow_run"
        before = len(client.read_flow_runs())
    variables = {"command": f"touch {lab.folder}/owned"}
    for user in (None, "gtl:", "gtl:guess", auth(lab)[:-1], f"x{auth(lab)}"):
        status, _, said = ask(url, "POST", {"job_variables": variables}, user=user)
        assert status == 401, (user, said)
    with lab.client() as client:
        assert len(client.read_flow_runs()) == before


PREFECT = ["/admin/settings", "/admin/version", "/work_pools/cpu", "/docs", "/openapi.json"]


@pytest.mark.parametrize("path", PREFECT)
def test_prefect_tells_nothing_without_the_password(lab: Lab, path: str) -> None:
    assert ask(lab.url + path)[0] == 401


TRACKER = [
    ("GET", "/", None),
    ("POST", "/api/2.0/mlflow/experiments/create", {"name": "x", "artifact_location": "file:///etc"}),
    ("POST", "/ajax-api/2.0/mlflow/runs/create", {"experiment_id": "0"}),
    ("GET", "/get-artifact?path=x&run_uuid=y", None),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x", {}),
    ("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", None),
    ("OPTIONS", "/api/2.0/mlflow/runs/create", None),
    ("POST", "/health", {}),
    ("GET", "//health", None),
]


@pytest.mark.parametrize(("method", "path", "body"), TRACKER, ids=[f"{method} {path}" for method, path, _ in TRACKER])
def test_mlflow_does_nothing_without_the_password(lab: Lab, method: str, path: str, body: Any) -> None:
    """It would read any file of the server's user to who points an experiment at a folder with a link in it."""
    for user in (None, "gtl:guess"):
        status, headers, _ = ask(lab.tracking + path, method, body, user=user)
        assert status == 401
        assert headers["www-authenticate"].startswith("Basic")  # by which a browser asks for it
    assert ask(f"{lab.tracking}/health")[0] == 200


def test_who_knows_the_password_is_answered(lab: Lab) -> None:
    assert ask(f"{lab.url}/admin/version", user=auth(lab))[0] == 200
    assert ask(f"{lab.tracking}/api/2.0/mlflow/experiments/get?experiment_id=0", user=auth(lab))[0] == 200
    assert "mlflow" in ask(f"{lab.tracking}/", user=auth(lab))[2].lower()


def test_prefects_page_asks_for_the_password(lab: Lab) -> None:
    root = lab.url.removesuffix("/api")
    settings = json.loads(ask(f"{root}/ui-settings")[2])
    assert settings["auth"] == "BASIC"
    assert settings["api_url"] == lab.url
    assert ask(f"{root}/", Accept="text/html")[0] == 200


# --- pages of other origins


@pytest.mark.parametrize("server", ["url", "tracking"])
@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://127.0.0.1:1", "http://localhost:1"])
def test_a_page_of_another_origin_may_not_ask(lab: Lab, server: str, origin: str) -> None:
    url = getattr(lab, server) + ("/flow_runs/filter" if server == "url" else "/api/2.0/mlflow/runs/create")
    preflight = {
        "Origin": origin,
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "content-type",
    }
    for user in (None, auth(lab)):
        status, headers, _ = ask(url, "OPTIONS", user=user, **preflight)
        assert status >= 400
        assert "access-control-allow-origin" not in headers
        assert "access-control-allow-origin" not in ask(url, "POST", {}, user=user, Origin=origin)[1]
    if server == "tracking":  # a browser sends a password along that it was told for this server
        assert ask(url, "POST", {"experiment_id": "0"}, user=auth(lab), Origin=origin)[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_servers_own_pages_may_ask(lab: Lab, host: str) -> None:
    prefect = lab.url.removesuffix("/api").replace("127.0.0.1", host)
    told = ask(f"{lab.url}/admin/version", user=auth(lab), Origin=prefect)
    assert told[0] == 200
    assert told[1]["access-control-allow-origin"] == prefect
    tracker = lab.tracking.replace("127.0.0.1", host)
    search = f"{tracker}/ajax-api/2.0/mlflow/experiments/search"
    assert ask(search, "POST", {"max_results": 1}, user=auth(lab), Origin=tracker)[0] == 200


def test_mlflow_answers_by_its_own_name_alone(lab: Lab) -> None:
    search = f"{lab.tracking}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert ask(search, user=auth(lab), Host="evil.example")[0] == 403


# --- what a run may choose

CHOICES = {
    "command": "touch owned",
    "env": {"LD_PRELOAD": "/tmp/x.so"},
    "env.PYTHONPATH": "/tmp",
    "working_dir": "/tmp",
    "name": "x",
    "labels": {},
}


@pytest.mark.parametrize("variable", CHOICES)
def test_a_run_chooses_neither_command_nor_environment_nor_folder(lab: Lab, variable: str) -> None:
    with lab.client() as client:
        url = f"{lab.url}/deployments/{deployment(client)}/create_flow_run"
    allowed = {"parameters": {"stage": "source"}, "job_variables": {"stream_output": True}}
    assert ask(url, "POST", allowed, user=auth(lab))[0] == 201
    wished = {**allowed, "job_variables": {variable: CHOICES[variable]}}
    status, _, said = ask(url, "POST", wished, user=auth(lab))
    assert status == 422
    assert "Additional properties are not allowed" in said


def test_a_command_that_reaches_the_worker_does_not_run(lab: Lab) -> None:
    """Past the server's check: by a run of a pool without a deployment's, and in what the worker makes of it."""
    import asyncio

    from prefect.workers.process import ProcessJobConfiguration

    with lab.client() as client:
        template = client.read_work_pool("cpu").base_job_template
    made = asyncio.run(ProcessJobConfiguration.from_template_and_values(template, CHOICES))
    assert made.command is None
    assert made.env == {}
    assert made.working_dir is None
    assert made.name is None


def test_a_pool_of_an_earlier_version_gets_the_template(lab: Lab) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.workers.process import ProcessWorker

    with lab.client() as client:
        loose = ProcessWorker.get_default_base_job_template()
        client.update_work_pool("gpu", WorkPoolUpdate(base_job_template=loose))
        lab.command("infra/pools.py", "gpu", **lab.login)
        template = client.read_work_pool("gpu").base_job_template
        assert template == client.read_work_pool("cpu").base_job_template
    assert "command" not in template["variables"]["properties"]


# --- where the password is


def family(lab: Lab) -> list[psutil.Process]:
    serve = lab.process()
    return [serve, *serve.children(recursive=True)]


def test_the_password_stands_in_no_command_line_and_no_log(lab: Lab) -> None:
    password = auth(lab).partition(":")[2]
    assert len(password) == 48
    members = family(lab)
    assert len(members) >= 4
    for process in members:
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert password.encode() not in line
        assert base64.b64encode(auth(lab).encode()) not in line
    logs = list((lab.folder / ".prefect" / "logs").iterdir())
    assert logs
    for log in logs:
        assert password not in log.read_text(), log.name
    assert password not in lab.said


def test_its_owner_alone_reads_the_password(lab: Lab) -> None:
    mode = (lab.folder / LOGIN).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    if os.geteuid() == 0:
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(lab.folder / LOGIN)],
            capture_output=True,
            check=False,
        )
        assert done.returncode != 0
        assert not done.stdout


# --- what still works


@pytest.mark.parametrize("command", [["status"], ["reconcile", "--dry-run"]])
def test_the_commands_find_the_password_of_their_checkout(lab: Lab, command: list[str]) -> None:
    """PREFECT_API_URL alone is set, as for years."""
    assert "PREFECT_API_AUTH_STRING" not in lab.environment
    lab.command("-m", "flows.cli", *command)


@pytest.mark.parametrize("command", [["status"], ["reconcile"], ["sweep"]])
@pytest.mark.parametrize("given", [{}, {"PREFECT_API_AUTH_STRING": "gtl:hunter2hunter2"}], ids=["none", "another"])
def test_a_command_without_the_password_is_one_clear_line(
    lab: Lab, tmp_path: Path, given: dict[str, str], command: list[str]
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((lab.folder / name).read_bytes())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_bytes((lab.folder / ".dvc" / "config").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command],
        cwd=tmp_path, env={**lab.environment, **given}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "asks for a password" in line
    assert str(LOGIN) in line
    assert "hunter2" not in done.stdout + done.stderr


def test_a_sweep_runs_as_a_deployment(lab: Lab) -> None:
    """From the terminal that has read the file, with Prefect's own command line."""
    file = f". {LOGIN} && prefect deployment run scarcity-sweep/local --watch --watch-timeout 240"
    own = {name: value for name, value in lab.environment.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        ["sh", "-c", file], cwd=lab.folder, env=own, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (lab.folder / "reports" / "report.md").exists()
    assert not (lab.folder / "owned").exists()
    assert "train-source" in lab.tracked("servers")


def test_every_start_has_a_password_of_its_own(lab: Lab) -> None:
    before = auth(lab)
    lab.stop()
    lab.start()
    assert auth(lab) != before
    assert ask(f"{lab.url}/admin/version", user=before)[0] == 401
    wait_until(lab.is_up)
