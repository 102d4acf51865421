"""`make serve` obeys nobody who does not know its password, and shows it to nobody."""

from __future__ import annotations

import argparse
import asyncio
import base64
import http
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from flows.login import LOGIN, read_login
from gtl_lightning.workspace.tracking import Study
from tests.pipeline.lab import REPOSITORY, Lab, free_ports

FOREIGN = "http://evil.example"
DATABASE_PASSWORD = "hunter2hunter2"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.begin("servers")
    try:
        lab.start()
        # A machine without a GPU has no deployment for one; here one stands for a pool without a worker.
        own = {**lab.environment, **lab.login}
        subprocess.run(["sh", "infra/deploy.sh"], cwd=lab.folder, env=own, capture_output=True, check=True)
        yield lab
    finally:
        lab.stop()


BUSY_TRIES = 10


def ask(
    url: str, method: str = "GET", body: Any = None, user: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers (names in lower case) and text of a request; while the server says that it is busy, again."""
    for _ in range(BUSY_TRIES):
        answer = ask_once(url, method, body, user, **headers)
        if answer[0] != http.HTTPStatus.SERVICE_UNAVAILABLE:
            break
        time.sleep(1)  # a database that is locked: Prefect's own clients come again as well
    return answer


def ask_once(url: str, method: str, body: Any, user: str | None, **headers: str) -> tuple[int, dict[str, str], str]:
    """One request."""
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


def test_a_command_that_reaches_the_worker_is_not_taken(lab: Lab) -> None:
    """Past the server's check: what the worker makes of the pool's template."""

    async def made(template: dict[str, Any]) -> ProcessJobConfiguration:
        async with get_client() as client:
            return await ProcessJobConfiguration.from_template_and_values(template, CHOICES, client=client)

    with lab.client() as client:
        configuration = asyncio.run(made(client.read_work_pool("cpu").base_job_template))
    assert configuration.command is None
    assert configuration.env == {}
    assert configuration.working_dir is None


def test_a_pool_of_an_earlier_version_gets_the_template(lab: Lab) -> None:
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


class Recorder:
    """Stands in for the lab: what would be run, and with which variables."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.told: dict[str, dict[str, str]] = {}
        self.lines: list[str] = []

    def run(self, *command: str, **extra: str) -> None:
        self.start(command[-1], *command, **extra)

    def start(self, name: str, *command: str, **extra: str) -> None:
        self.lines.append(" ".join(command))
        self.told[name] = {**self.environment, **extra}

    def wait_for(self, name: str, url: str) -> None:
        self.lines.append(f"{name} {url}")

    def stop(self) -> None:
        pass


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """What `make serve` would run on this machine with a GPU, without running it."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "infra"))
    import serve

    kept: list[Recorder] = []
    devices: list[str] = []

    def recorder(environment: dict[str, str]) -> Recorder:
        kept.append(Recorder(environment))
        return kept[-1]

    def ready() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "Lab", recorder)
    monkeypatch.setattr(serve, "gpus", lambda: devices)
    for name in ("check_database", "check_port", "write_login"):
        monkeypatch.setattr(serve, name, lambda *_: None)

    def run(gpus: Sequence[str] = ("0",)) -> Recorder:
        devices[:] = gpus
        with pytest.raises(KeyboardInterrupt):
            serve.serve(argparse.Namespace(prefect_port=4200, mlflow_port=5000, runs=1), ready)
        return kept[-1]

    return run


def test_the_password_of_a_database_is_told_to_its_server_alone(
    recorded: Callable[[], Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://me:{DATABASE_PASSWORD}@127.0.0.1:1/mlflow",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://me:{DATABASE_PASSWORD}@127.0.0.1:1/prefect",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    lab = recorded()
    assert len(lab.lines) >= 7
    assert DATABASE_PASSWORD not in " ".join(lab.lines)
    assert lab.environment["MLFLOW_TRACKING_PASSWORD"] not in " ".join(lab.lines)
    told = {name for name, own in lab.told.items() if DATABASE_PASSWORD in " ".join(own.values())}
    assert told == {"infra/tracker.py", "mlflow", "prefect"}
    demands = {name for name, own in lab.told.items() if "PREFECT_SERVER_API_AUTH_STRING" in own}
    assert demands == {"prefect"}


def test_every_start_has_a_password_of_its_own(
    recorded: Callable[[], Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the caller's environment says."""
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "gtl:hunter2hunter2")
    starts = [recorded() for _ in range(3)]
    passwords = {lab.environment["MLFLOW_TRACKING_PASSWORD"] for lab in starts}
    assert len(passwords) == 3
    for lab in starts:
        assert lab.told["prefect"]["PREFECT_SERVER_API_AUTH_STRING"] == lab.environment["PREFECT_API_AUTH_STRING"]
        assert "hunter2" not in json.dumps(list(lab.told.values()))


def test_where_no_gpu_is_nothing_is_deployed_for_one(recorded: Callable[..., Recorder]) -> None:
    assert "sh infra/deploy.sh" in recorded(("0", "1")).lines
    without = recorded(()).lines
    assert "sh infra/deploy.sh cpu" in without and not any("--pool gpu" in line for line in without)


def test_what_is_waited_for_is_said_before_it_is_there(lab: Lab) -> None:
    said = lab.said
    order = ["MLflow's database", "waiting for prefect", "waiting for mlflow", "deploying the flows", "Prefect: http"]
    places = [said.index(words) for words in order]
    assert places == sorted(places) and ".prefect/logs/prefect.log" in said


OWN_SERVER = """
import json, urllib.error, urllib.request
from prefect.client.orchestration import get_client
from flows.remote import logged_in
with logged_in(), get_client(sync_client=True) as client:
    client.read_flow_runs()
    request = urllib.request.Request(str(client.api_url) + "flow_runs/count", b"{}", {"Origin": "http://evil.example"})
    try:
        answer = urllib.request.urlopen(request, timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    print(json.dumps([answer.status, answer.headers.get("access-control-allow-origin")]))
"""


def test_the_server_that_a_flow_brings_asks_for_a_password_too(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    patient = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", OWN_SERVER],
        cwd=tmp_path, env={**own, **patient, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [401, None]


FETCH = """
import sys
from pathlib import Path
from mlflow import MlflowClient
print(Path(MlflowClient(sys.argv[1]).download_artifacts(sys.argv[2], "file.txt")).read_text())
"""


def test_mlflow_alone_asks_for_its_password_and_leads_to_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make ui`: what was logged without a server is shown by one, and fetched by clients that see no file of it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = Study(f"sqlite:///{tmp_path}/mlflow.db", "gtl-transfer", {"profile": "p"})
    (tmp_path / "file.txt").write_text("logged without a server")
    with study.child("cell", "x", "key", {}) as run:
        run.log_file(tmp_path / "file.txt")
    shutil.copytree(REPOSITORY / "infra", tmp_path / "infra", ignore=shutil.ignore_patterns("sample-store"))
    (port,) = free_ports(1)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    with subprocess.Popen(
        [sys.executable, "infra/ui.py", f"--mlflow-port={port}"],
        cwd=tmp_path, env={**own, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True,
    ) as ui:  # fmt: skip
        try:
            assert ui.stderr is not None
            said = ""
            while ".prefect/ui.env" not in said and (line := ui.stderr.readline()):
                said += line
            assert said.index("waiting for mlflow") < said.index(".prefect/ui.env"), said
            login = read_login(tmp_path / ".prefect" / "ui.env")
            assert login.keys() == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
            assert login["MLFLOW_TRACKING_PASSWORD"] not in said
            place = f"http://127.0.0.1:{port}/#/experiments/{study.experiment_id}"
            assert f"all runs: {place}?workflowType=machine_learning " in said
            assert ui.stderr.readline().startswith(f"cells by NELBO: {place}/runs?")
            url = f"http://127.0.0.1:{port}/"
            assert ask(url)[0] == 401
            assert ask(url, user=":".join(login.values()))[0] == 200
            done = subprocess.run(
                [sys.executable, "-c", FETCH, url, run.run_id],
                cwd=tmp_path / "infra", env={**own, **login}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.stdout == "logged without a server\n", done.stderr
        finally:
            ui.terminate()
            ui.wait(60)


# --- what still works


@pytest.mark.parametrize("command", [["status"], ["reconcile", "--dry-run"]])
def test_the_commands_find_the_password_of_their_checkout(lab: Lab, command: list[str]) -> None:
    """PREFECT_API_URL alone is set, as for years."""
    assert "PREFECT_API_AUTH_STRING" not in lab.environment
    lab.command("-m", "flows.cli", *command)


@pytest.mark.parametrize(
    ("command", "given"), [("sweep", {}), ("reconcile", {"PREFECT_API_AUTH_STRING": "gtl:hunter2hunter2"})]
)
def test_a_command_without_the_password_is_one_clear_line(
    lab: Lab, tmp_path: Path, command: str, given: dict[str, str]
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((lab.folder / name).read_bytes())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_bytes((lab.folder / ".dvc" / "config").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", command],
        cwd=tmp_path, env={**lab.environment, **given}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "asks for a password" in line
    assert str(LOGIN) in line
    assert "hunter2" not in done.stdout + done.stderr


def watched(lab: Lab, *parameters: str) -> subprocess.CompletedProcess[str]:
    """A run that is watched from the terminal that has read the file, with Prefect's own command line."""
    chosen = " ".join(f"--param '{parameter}'" for parameter in parameters)
    file = f". {LOGIN} && prefect deployment run scarcity-sweep/local --watch --watch-timeout 240 {chosen}"
    own = {name: value for name, value in lab.environment.items() if name != "PREFECT_API_URL"}
    return subprocess.run(
        ["sh", "-c", file], cwd=lab.folder, env=own, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_refused_run_that_is_watched_says_why(lab: Lab) -> None:
    done = watched(lab, "fractions=[0.5]")
    assert done.returncode == 1
    assert "this run would change params.yaml" in done.stdout and "set write_params to allow it" in done.stdout


def test_a_sweep_runs_as_a_deployment(lab: Lab) -> None:
    done = watched(lab)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (lab.folder / "reports" / "report.md").exists()
    assert not (lab.folder / "owned").exists()
    assert "train-source" in lab.tracked("servers")
    with lab.client() as client:
        assert "scarcity-sweep: all of params.yaml" in {run.name for run in client.read_flow_runs()}
