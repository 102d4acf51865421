"""Cells made in separate clones against one DVC remote: a server of the S3 protocol on loopback, or a shared folder."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.flows import scarcity_sweep, stage
from flows.remote import check_remote, version
from gtl_lightning.errors import UserError
from tests.pipeline.flow_kit import make_project, runs

KEY, SECRET = "lab-user", "lab-secret-0123456789"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 server with an empty bucket `dvc`."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="dvc")
    yield address
    server.stop()


@pytest.fixture(params=["s3", "folder"])
def origin(request: pytest.FixtureRequest, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository whose DVC remote is outside of it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in (("ACCESS_KEY_ID", KEY), ("SECRET_ACCESS_KEY", SECRET), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    folder = tmp_path / "origin"
    folder.mkdir()
    make_project(folder, git=True)
    url = f"s3://dvc/{tmp_path.name}" if request.param == "s3" else str(tmp_path / "store")
    dvc(folder, "remote", "add", "--default", "store", url)
    dvc(folder, "remote", "modify", "store", "verify", "true")
    if request.param == "s3":
        dvc(folder, "remote", "modify", "store", "endpointurl", s3)
    (folder / ".gitignore").write_text("/models\n/cells\n/ablation\n/reports\n*.log\n")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "project")
    return folder


def dvc(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, check=True, capture_output=True)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def clone(origin: Path, name: str) -> Path:
    git(origin.parent, "clone", "--quiet", str(origin), name)
    return origin.parent / name


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("origin", ["s3"], indirect=True)
def test_two_clones_make_the_cells_and_the_head_collects_them(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, head = (clone(origin, name) for name in ("one", "two", "head"))
    monkeypatch.chdir(one)
    assert scarcity_sweep(methods=["gtl"], fractions=[1.0], share=True, return_state=True).message == "4 ran"
    monkeypatch.chdir(two)
    shared = scarcity_sweep(methods=["gtl"], fractions=[0.05], share=True, return_state=True)
    assert shared.message == "2 ran, 2 cached", "the source and its evaluation were taken from the remote"
    assert runs(one) == ["gtl-1.0-0", "source"]
    assert runs(two) == ["gtl-0.05-0"]

    monkeypatch.chdir(head)
    collected = scarcity_sweep(methods=["gtl"], share=True, return_state=True)
    assert collected.message == "6 cached: everything was up to date, nothing was run"
    assert runs(head) == []
    assert len(yaml.safe_load((head / "dvc.lock").read_text())["stages"]) == 6
    for maker, cell in ((one, "gtl-1.0-0"), (two, "gtl-0.05-0")):
        for made in (f"models/{cell}", f"cells/{cell}/row.json"):
            assert (head / made).read_text() == (maker / made).read_text()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("origin", ["folder"], indirect=True)
def test_a_worker_in_another_checkout_takes_what_a_stage_needs(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, worker = clone(origin, "head"), clone(origin, "worker")
    monkeypatch.chdir(head)
    assert stage("source", share=True, return_state=True).message == "ran"
    monkeypatch.chdir(worker)
    told = {"share": True, "version": version(head)}
    assert stage("ratio@gtl-0.05-0", **told, return_state=True).message == "ran"
    assert runs(worker) == ["gtl-0.05-0"]
    monkeypatch.chdir(head)
    assert stage("ratio@gtl-0.05-0", share=True, return_state=True).message == "cached"

    params = worker / "params.yaml"
    params.write_text(params.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
    monkeypatch.chdir(worker)
    refused = stage("source", **told, return_state=True)
    assert refused.is_failed()
    assert refused.message is not None
    assert "another version than the sweep's" in refused.message


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("origin", ["s3"], indirect=True)
def test_missing_credentials_are_one_clear_line_and_nothing_is_lost(
    origin: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(origin)
    assert scarcity_sweep(fractions=[1.0], return_state=True).is_completed()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    state = scarcity_sweep(fractions=[1.0], share=True, return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert "credentials" in state.message.lower()
    assert "\n" not in state.message
    assert (origin / "models" / "gtl-1.0-0").exists()


def test_a_remote_that_others_cannot_reach_is_refused(tmp_path: Path) -> None:
    make_project(tmp_path)
    with pytest.raises(UserError, match="needs a default DVC remote"):
        check_remote(tmp_path)
    dvc(tmp_path, "remote", "add", "--default", "inside", str(tmp_path / "store"))
    with pytest.raises(UserError, match="lies in this checkout"):
        check_remote(tmp_path)


def test_a_remote_whose_objects_are_not_verified_is_refused(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    make_project(project)
    dvc(project, "remote", "add", "--default", "store", str(tmp_path / "store"))
    with pytest.raises(UserError, match=r"`dvc remote modify --local store verify true` sets it"):
        check_remote(project)
    dvc(project, "remote", "modify", "--local", "store", "verify", "true")
    assert check_remote(project) == "store"
