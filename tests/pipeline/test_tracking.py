"""What MLflow holds when hosts begin one study at once, whatever names are used, and when it or its disk fails."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _use_tracking_uri

from flows.lockfile import lives
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.addresses import resolve_uri
from gtl_lightning.workspace.artifacts import local_folder, repository
from gtl_lightning.workspace.lost import end_lost
from gtl_lightning.workspace.pages import comparisons, experiment_place, page
from gtl_lightning.workspace.tracking import Study, find_experiment
from gtl_lightning.workspace.versions import fetch_model

TAGS = {"profile": "p", "data_hash": "1"}


def test_hosts_that_begin_a_study_at_once_end_with_one_parent_run(
    tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second host looks for experiment and parent before the first has made them, and makes its own."""
    first = Study(tracker, "crowd", TAGS)
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
    second = Study(tracker, "crowd", TAGS)
    assert not unseen
    assert second.run_id == first.run_id
    client = MlflowClient(tracker)
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
def test_a_study_is_found_again_whatever_its_profile_is_called(tracker: str, profile: str) -> None:
    other = logged(tracker, "plain")
    first = logged(tracker, profile, note=profile)
    assert logged(tracker, profile, note=profile) == first != other
    assert logged(tracker, "plain") == other


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
from gtl_lightning.workspace.tracking import Study
from gtl_lightning.workspace.versions import fetch_model
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


@pytest.mark.parametrize("closed", ["", "mlflow.db"], ids=["folder", "database"])
def test_a_tracker_without_write_access_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    """Whoever runs the tests may write everywhere, or not: the system's answer is played."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, access = f"sqlite:///{tmp_path}/mlflow.db", os.access
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path / closed and access(path, mode))
    with pytest.raises(UserError) as caught:
        Study(uri, "x", {"profile": "p"})
    assert str(caught.value).startswith(f"tracking at {uri} failed: {tmp_path / closed} cannot be written; ask for")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"] and not (tmp_path / "mlflow.db").read_bytes()


def test_a_page_of_the_database_that_is_lost_is_one_line(tracker: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    logged(tracker, "p")
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(UserError, match=r"mlflow\.db failed: .*malformed") as caught:
        logged(tracker, "p")
    assert "\n" not in str(caught.value)


def test_artifacts_on_a_full_disk_are_one_line_and_the_first_failure_is_the_one_told(
    tracker: str, tmp_path: Path
) -> None:
    study = Study(tracker, "x", {"profile": "p"})
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


def test_lightnings_own_logging_fails_in_one_line_too(tracker: str, tmp_path: Path) -> None:
    study = Study(tracker, "x", {"profile": "p"})
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


def test_a_machine_without_git_is_no_reason_to_stop(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    study = Study(tracker, "x", {"profile": "p"})
    assert MlflowClient(tracker).get_run(study.run_id).data.tags["git_commit"] == "unknown"


# --- what lies below what


def parent_of(tracker: str, run_id: str) -> str:
    return str(MlflowClient(tracker).get_run(run_id).data.tags["mlflow.parentRunId"])


def test_a_cell_takes_its_trainings_and_a_sweep_its_cells_and_nobody_takes_twice(tracker: str) -> None:
    study = Study(tracker, "x", TAGS)
    own, other = {"method": "gtl", "fraction": 0.05}, {"method": "lora", "fraction": 0.05}
    ids = {}
    for name, tags in (("own", own), ("other", other)):
        with study.child("train", name, name, tags) as run:
            ids[name] = run.run_id
    with study.child("cell", "cell", "cell", own) as cell:
        study.adopt(cell.run_id, study.runs({"kind": "train", **own}))
    assert parent_of(tracker, ids["own"]) == cell.run_id
    assert parent_of(tracker, ids["other"]) == study.run_id == parent_of(tracker, cell.run_id)
    with study.child("cell", "later", "later", own) as later:
        study.adopt(later.run_id, study.runs({"kind": "train", **own}))
    assert parent_of(tracker, ids["own"]) == cell.run_id, "it was trained for the first"
    with study.child("sweep", "sweep", "sweep", {}) as sweep:
        study.adopt(sweep.run_id, [cell.run_id, "a run of another tracker", sweep.run_id])
    assert parent_of(tracker, cell.run_id) == sweep.run_id
    assert parent_of(tracker, sweep.run_id) == parent_of(tracker, later.run_id) == study.run_id
    with study.child("train", "own", "own", own) as again:
        assert again.run_id == ids["own"], "it is found below its cell too"
    assert parent_of(tracker, ids["own"]) == cell.run_id


def test_what_a_run_is_stands_in_parameters_tags_and_its_description(
    tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/gtl", "evaluate", "--method", "gtl"])
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "x", "--allow-empty"], check=True
    )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    study = Study(tracker, "x", TAGS)
    with study.child("cell", "n", "k", {"method": "gtl", "fraction": 0.05, "seed": 1, "other": 2}, "what it is") as run:
        pass
    with study.child("cell", "n", "source", {"method": "source", "fraction": None, "seed": 1}) as source:
        pass
    client = MlflowClient(study.uri)
    data = client.get_run(run.run_id).data
    assert data.params == {"method": "gtl", "fraction": "0.05", "seed": "1"}
    assert "fraction" not in client.get_run(source.run_id).data.params
    expected = {
        **data.params,
        "other": "2",
        "mlflow.note.content": "what it is",
        "mlflow.source.name": "gtl evaluate --method gtl",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "git_commit": commit[:12],
    }
    assert expected.items() <= data.tags.items() and data.tags["mlflow.user"]
    assert client.get_run(study.run_id).info.status == "FINISHED", "a folder does not run"


def test_a_table_is_mlflows_own_and_stands_once(tracker: str) -> None:
    """MLflow's pages look for the tag; a run that is continued logs its table again."""
    study = Study(tracker, "x", TAGS)
    rows = [{"index": index, "method": "gtl", "text": text} for index, text in enumerate("ab")]
    for _ in range(2):
        with study.child("cell", "n", "k", {}) as run:
            run.log_table(rows, "samples.json")
    client = MlflowClient(study.uri)
    assert "samples.json" in client.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"]
    with _use_tracking_uri(study.uri):  # it asks the address of the process, whatever the client's is
        table = client.load_table(study.experiment_id, "samples.json", run_ids=[run.run_id])
    assert table.to_dict("records") == rows


# --- a process that is gone


def test_a_killed_process_leaves_no_run_running(tracker: str) -> None:
    """`gtl reconcile` asks for every RUNNING run whether its process lives."""
    study = Study(tracker, "x", TAGS)
    client = MlflowClient(study.uri)
    names = ("mine", "killed", "reused", "elsewhere")
    ids = {name: study.begin("cell", name, name, {}).run_id for name in names}
    for name, tags in {
        "killed": {"gtl.pid": str(2**22 + 1)},  # above every process id of Linux
        "reused": {"gtl.born": "1.0"},
        "elsewhere": {"gtl.host": "far", "gtl.pid": str(2**22 + 1)},
    }.items():
        for tag, value in tags.items():
            client.set_tag(ids[name], tag, value)
    foreign = client.create_run(study.experiment_id).info.run_id

    def running() -> set[str]:
        own = {name for name in names if client.get_run(ids[name]).info.status == "RUNNING"}
        return own | ({"foreign"} if client.get_run(foreign).info.status == "RUNNING" else set())

    told = end_lost(study.uri, lives, dry_run=True)
    assert sorted(run.name for run in told) == ["killed", "reused"] and running() == {*names, "foreign"}
    assert sorted(run.name for run in end_lost(study.uri, lives)) == ["killed", "reused"]
    assert running() == {"mine", "elsewhere", "foreign"}
    assert client.get_run(ids["killed"]).info.status == "KILLED"
    assert [run.name for run in end_lost(study.uri, lives, lost_hosts=["far"])] == ["elsewhere"]
    with study.child("cell", "killed", "killed", {}) as again:
        assert again.run_id == ids["killed"]
    assert client.get_run(again.run_id).info.status == "FINISHED"


def test_a_tracker_that_is_not_there_has_lost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert end_lost(f"sqlite:///{tmp_path}/mlflow.db", lives) == [] and not list(tmp_path.iterdir())


# --- where artifacts lie


CONTINUES = """
from gtl_lightning.workspace.tracking import Study
from mlflow import MlflowClient
study = Study("sqlite:///mlflow.db", "x", {"profile": "p", "data_hash": "1"})
with study.child("cell", "n", "k", {}) as run:
    run.log_file("file.txt", "new")
client = MlflowClient(study.uri)
print(run.run_id, *(client.download_artifacts(run.run_id, path) for path in ("file.txt", "new/file.txt")), sep="\\n")
"""


def test_a_copied_checkout_writes_and_reads_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: MLflow remembers where a run's artifacts lie."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first, copied = tmp_path / "first", tmp_path / "copied"
    first.mkdir()
    (first / "file.txt").write_text("one")
    monkeypatch.chdir(first)
    with Study(f"sqlite:///{first}/mlflow.db", "x", TAGS).child("cell", "n", "k", {}) as run:
        run.log_file("file.txt")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first, copied)
    shutil.rmtree(first)
    (copied / "file.txt").write_text("two")
    done = subprocess.run([sys.executable, "-c", CONTINUES], cwd=copied, capture_output=True, text=True, check=True)
    run_id, *found = done.stdout.splitlines()
    assert run_id == run.run_id and not first.exists()
    assert [Path(path).read_text() for path in found] == ["one", "two"]
    assert (copied / "mlartifacts" / run_id / "artifacts" / "new" / "file.txt").exists()


def test_an_address_of_artifacts_leads_nowhere_else(tmp_path: Path) -> None:
    tracker = f"sqlite:///{tmp_path}/mlflow.db"
    assert local_folder("mlflow-artifacts:/run/artifacts", tracker) == tmp_path / "mlartifacts/run/artifacts"
    for leading_out in ("mlflow-artifacts:/../etc", "mlflow-artifacts:/a/%2e%2e/%2e%2e/etc"):
        with pytest.raises(MlflowException, match="outside"):
            local_folder(leading_out, tracker)
    remote = repository("mlflow-artifacts:/run/artifacts", "http://host:5000")
    assert remote.artifact_uri == "http://host:5000/api/2.0/mlflow-artifacts/artifacts/run/artifacts"


# --- pages


def test_the_page_of_an_experiment_shows_its_runs_without_credentials() -> None:
    """Without the last part MLflow opens the traces of an agent; a tag of the experiment does not change that."""
    place = experiment_place("7")
    assert (
        page("http://me:secret@host:5000/", place) == "http://host:5000/#/experiments/7?workflowType=machine_learning"
    )
    assert page("sqlite:///mlflow.db", place) is None


def test_comparisons_are_flat_lists_in_few_columns(tracker: str) -> None:
    """Sorted by date, MLflow hides cells below their sweep; the columns are a view that the experiment carries."""
    study = Study(tracker, "x", TAGS)
    places = comparisons(study.experiment_id)
    key = dict(parse_qsl(places.pop("cells by NELBO").partition("?")[2]))["viewStateShareKey"]
    tags = MlflowClient(study.uri).get_experiment(study.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{key}"])
    assert len(view["selectedColumns"]) == 7 and view["searchFilter"] == "tags.kind = 'cell'"
    asked = {what: dict(parse_qsl(place.partition("?")[2])) for what, place in places.items()}
    assert {what: (one["searchFilter"], one["compareRunsMode"]) for what, one in asked.items()} == {
        "metrics against examples": ("tags.kind = 'curve'", "CHART"),
        "texts side by side": ("tags.kind = 'cell'", "ARTIFACT"),
    }
    for one in (view, *asked.values()):
        assert one["orderByKey"] == "metrics.`nelbo`" and str(one["orderByAsc"]).lower() == "true"


def test_an_experiment_is_looked_up_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert find_experiment(uri, "x") is None and not list(tmp_path.iterdir())
    study = Study(uri, "x", TAGS)
    assert find_experiment(uri, "x") == study.experiment_id
    assert find_experiment(uri, "y") is None
