"""What MLflow holds when hosts begin one study at once, whatever names are used, and when it or its disk fails."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.addresses import resolve_uri
from gtl_lightning.workspace.tracking import Study, fetch_model

TAGS = {"profile": "p", "data_hash": "1"}


def test_hosts_that_begin_a_study_at_once_end_with_one_parent_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second host looks for experiment and parent before the first has made them, and makes its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = Study(uri, "crowd", TAGS)
    unseen = {"_find", "_find_experiment"}

    def blind_once(name: str) -> Any:
        look = getattr(Study, name)

        def looking(self: Study, *asked: Any) -> Any:
            if name in unseen:
                unseen.discard(name)
                return None
            return look(self, *asked)

        return looking

    for name in tuple(unseen):
        monkeypatch.setattr(Study, name, blind_once(name))
    second = Study(uri, "crowd", TAGS)
    assert not unseen
    assert second.run_id == first.run_id
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("crowd")
    assert experiment is not None
    assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [first.run_id]


def logged(uri: str, profile: str, **tags: str) -> str:
    study = Study(uri, "names", {"profile": profile, "data_hash": "1"})
    with study.child("train", "train x", "key", tags) as run:
        run.log_metrics({"score": 1.0})
    return f"{study.run_id} {run.run_id}"


@pytest.mark.parametrize(
    "profile",
    ["it's", 'say "it\'s"', "back\\", "`tick`", "a; drop", "%", "naïve", "a\nb", "", "' or tags.`profile` = '", "--"],
)
def test_a_study_is_found_again_whatever_its_profile_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    other = logged(uri, "plain")
    first = logged(uri, profile, note=profile)
    assert logged(uri, profile, note=profile) == first != other
    assert logged(uri, "plain") == other


@pytest.mark.parametrize(
    ("name", "alias"),
    [("a'b", "c"), ("a/b", "c"), ("..", "c"), ("", "c"), ("a:b", "c"), ("a\nb", "c"), ("a", "c'd"), ("a", "../d")],
)
def test_a_name_that_cannot_be_a_models_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, alias: str
) -> None:
    """The address has nobody: it is not even tried."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="cannot (name a registered model|be an alias)") as caught:
        fetch_model("http://127.0.0.1:1", name, alias, tmp_path)
    assert "\n" not in str(caught.value)


def no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> str:
    """The last line of a process that may write no file above 600 kB, which a tracker's database is, and all of it."""
    script = f"""
import resource, sys
from gtl_lightning.workspace.addresses import resolve_uri
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.tracking import Study, fetch_model
from gtl_lightning.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, ({action.partition(" ")[0]}, -1))
try:
    study = Study("sqlite:///{tmp_path}/mlflow.db", "full", {{"profile": "p"}})
    with study.child("train", "x", "key", {{}}) as run:
        for step in range(2000):
            run.log_metrics({{f"m{{n}}": 1.0 for n in range(500)}}, step)
except UserError as error:
    print("error:", error)
"""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "sqlalchemy" not in done.stderr
    (line,) = done.stdout.strip().splitlines()
    return line


@pytest.mark.parametrize("room", ["4096 at the start", "1000000 while it is logged to"])
def test_a_full_disk_of_the_tracker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    line = no_room(tmp_path, monkeypatch, room)
    assert line.startswith(f"error: tracking at sqlite:///{tmp_path}/mlflow.db failed: ")
    assert "set tracking.uri" in line


@pytest.mark.parametrize("spoil", ["text", "folder", "half"])
def test_a_database_that_is_none_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it tries again and again"))
    path = tmp_path / "mlflow.db"
    if spoil == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"no database at all\n" * 1000 if spoil == "text" else b"SQLite format 3\0" + bytes(50))
    with pytest.raises(UserError, match=r"tracking.*mlflow\.db.* (is damaged|cannot be opened)") as caught:
        Study(f"sqlite:///{path}", "x", {"profile": "p"})
    assert "\n" not in str(caught.value)


def test_a_page_of_the_database_that_is_lost_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, path = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlflow.db"
    logged(uri, "p")
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(UserError, match=r"mlflow\.db failed: .*malformed") as caught:
        logged(uri, "p")
    assert "\n" not in str(caught.value)


def test_artifacts_on_a_full_disk_are_one_line_and_the_first_failure_is_the_one_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = Study(f"sqlite:///{tmp_path}/mlflow.db", "x", {"profile": "p"})
    (tmp_path / "file.txt").write_text("x")
    with study.child("train", "x", "key", {}) as run:
        run.log_file(tmp_path / "file.txt")
        (tmp_path / "mlartifacts").rename(tmp_path / "moved")
        (tmp_path / "mlartifacts").write_text("a file in place of the folder")
        with pytest.raises(UserError, match=r"tracking at .*mlflow\.db failed: .*[Dd]irectory"):
            run.log_file(tmp_path / "file.txt")
    with pytest.raises(ValueError, match="mine"), study.child("train", "x", "key", {}):
        (tmp_path / "mlflow.db").write_bytes(b"gone" * 5000)
        raise ValueError("mine")


def test_lightnings_own_logging_fails_in_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = Study(f"sqlite:///{tmp_path}/mlflow.db", "x", {"profile": "p"})
    with study.child("train", "x", "key", {}) as run:
        logger = run.lightning_logger()
        logger.log_metrics({"loss": 1.0}, step=1)
        assert pickle.loads(pickle.dumps(logger)).run_id == run.run_id
        before = (tmp_path / "mlflow.db").read_bytes()
        (tmp_path / "mlflow.db").write_bytes(b"gone" * 5000)
        with pytest.raises(UserError, match=r"mlflow\.db failed"):
            logger.log_metrics({"loss": 1.0}, step=2)
        (tmp_path / "mlflow.db").write_bytes(before)


def test_an_empty_address_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert resolve_uri("http://host") == "http://host"


def test_a_machine_without_git_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    study = Study(uri, "x", {"profile": "p"})
    assert MlflowClient(uri).get_run(study.run_id).data.tags["git_commit"] == "unknown"
