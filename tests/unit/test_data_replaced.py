"""What a data stage replaces: all together or nothing, whatever stops it; what the machine refuses is one line."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from gtl_lightning import files
from gtl_lightning.data import download as download_module
from gtl_lightning.data import split as split_module
from gtl_lightning.data import tokens as tokens_module
from gtl_lightning.data.download import download
from gtl_lightning.data.sample import write_sample
from gtl_lightning.data.snapshot import import_snapshot
from gtl_lightning.data.split import split_snapshot
from gtl_lightning.data.tokens import tokenize_splits
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json, sha256_file
from gtl_lightning.stages import data as stages
from gtl_lightning.workspace import params as config
from tests.dvc_kit import dvc_repository
from tests.unit.test_data_import import PLAIN, contents, line, piped
from tests.unit.test_data_tokens import write_splits

DOMAINS: dict[str, Any] = {"source": ["cs", "math"], "target": ["physics"]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_sample(tmp_path / "data", seed=0, source_records=400, target_records=300)
    return tmp_path / "data"


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("at", range(4))
def test_a_crash_leaves_the_old_records_or_the_new_ones(
    at: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(data)
    (tmp_path / "new").write_bytes(PLAIN)
    import_snapshot(tmp_path / "new", tmp_path / "other")
    after = contents(tmp_path / "other")
    calls = 0
    originals = os.replace, Path.rename

    def counting(original: Any) -> Any:
        def rename(*names: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise Crash
            return original(*names)

        return rename

    monkeypatch.setattr(os, "replace", counting(originals[0]))
    monkeypatch.setattr(Path, "rename", counting(originals[1]))
    with pytest.raises(Crash):
        import_snapshot(tmp_path / "new", data)
    monkeypatch.undo()
    if hasattr(files, "settle"):
        files.settle(data)
    assert contents(data) == (before if at < 2 else after)  # provenance is staged by the first, the second decides


def test_a_kill_in_the_middle_leaves_the_old_records(data: Path, tmp_path: Path) -> None:
    before = contents(data)
    os.mkfifo(tmp_path / "fifo")
    code = "import sys; from gtl_lightning.data.snapshot import import_snapshot; import_snapshot(*sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "fifo"), str(data)])
    with (tmp_path / "fifo").open("wb", buffering=0) as fifo:
        for _ in range(6):  # more than the buffers hold, so that some of it is being written
            fifo.write(PLAIN)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {name: contents(data)[name] for name in before} == before
    import_snapshot(data / "snapshot.jsonl.gz", data)
    assert set(contents(data)) == set(before)


def test_ctrl_c_leaves_the_old_records(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(data)
    (tmp_path / "new").write_bytes(PLAIN)

    def stop(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("gtl_lightning.data.origin.sha256_file", stop)
    with pytest.raises(KeyboardInterrupt):
        import_snapshot(tmp_path / "new", data)
    assert contents(data) == before


def serve(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


ROWS = [{"id": f"k{i}", "categories": "cs.LG", "abstract": f"text number {i}"} for i in range(9)]


def test_a_download_without_usable_records_replaces_nothing(data: Path, tmp_path: Path) -> None:
    before = contents(data)
    source = serve(tmp_path / "set", [{**row, "abstract": ""} for row in ROWS])
    with pytest.raises(UserError, match=r"none of its 9 records is usable \(empty-abstract 9\).*nothing was replaced"):
        download(source, data)
    assert contents(data) == before


def test_damaged_parts_of_a_download_replace_nothing_and_are_fetched_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(data)
    source = serve(tmp_path / "set", ROWS)
    fetch = download_module._fetch

    def damaging(stream: Any, parts: Path, *more: Any) -> None:
        fetch(stream, parts, *more)
        path = parts / "00001.jsonl.gz"
        path.write_bytes(gzip.compress(b"".join(gzip.decompress(path.read_bytes()).splitlines(True)[:2])))

    monkeypatch.setattr(download_module, "_fetch", damaging)
    with pytest.raises(UserError, match="8 of 9 records"):
        download(source, data, part_records=3)
    assert contents(data) == before
    monkeypatch.undo()
    assert download(source, data, part_records=3)["records"] == 9


@pytest.mark.parametrize("state", ["[]", "{}", "null", '{"request": 1}', "{"])
def test_a_state_of_another_shape_is_none(state: str, data: Path, tmp_path: Path) -> None:
    (data / ".download").mkdir()
    (data / ".download" / "state.json").write_text(state)
    assert download(serve(tmp_path / "set", ROWS), data)["records"] == 9


def test_numbers_below_their_range(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--limit 0 takes no record"):
        download(serve(tmp_path / "set", ROWS), tmp_path / "data", limit=0)
    with pytest.raises(UserError, match="seed = -1 is negative"):
        write_sample(tmp_path / "data", seed=-1)


def test_splits_are_replaced_all_together(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "splits"
    split_snapshot(data / "snapshot.jsonl.gz", out, **DOMAINS, seed=0)
    before = contents(out)
    original, written = split_module._write_split, []

    def full(path: Path, *rest: Any) -> None:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        original(path, *rest)

    monkeypatch.setattr(split_module, "_write_split", full)
    with pytest.raises(UserError, match="cannot write .*splits: No space left on device"):
        split_snapshot(data / "snapshot.jsonl.gz", out, **DOMAINS, seed=1)
    assert contents(out) == before  # otherwise a text could lie in the old test data and in the new training data


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from gtl_lightning.data.split import split_snapshot
from gtl_lightning.errors import UserError
try:
    split_snapshot(sys.argv[1], sys.argv[2], source=["cs", "math"], target=["physics"])
except UserError as error:
    print("line:", error)
"""


def test_a_disk_that_is_full_while_texts_are_spooled_is_one_line(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(data / "snapshot.jsonl.gz"), str(tmp_path / "splits")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"line: cannot write {tmp_path / 'splits'}")
    assert list((tmp_path / "splits").iterdir()) == []


def test_tokens_name_their_content(tmp_path: Path) -> None:
    options: dict[str, Any] = {"name": None, "vocab_size": 200, "length": 8}
    texts = ["a flow heats a laser", "the plasma emits"]
    metas = {}
    for name, given in {"one": texts, "same": texts, "swapped": texts[::-1]}.items():
        splits = write_splits(tmp_path / name / "splits", given)
        metas[name] = tokenize_splits(splits, tmp_path / name / "tokens", **options)
    # order alone differs: every count is equal, and so was the whole file before it told the content
    assert {**metas["one"], "files": {}} == {**metas["swapped"], "files": {}}
    assert metas["one"] == metas["same"]
    assert sha256_file(tmp_path / "one/tokens/meta.json") != sha256_file(tmp_path / "swapped/tokens/meta.json")


@pytest.mark.parametrize("failing", ["offsets", "tokenizer", "meta"])
def test_tokens_are_replaced_all_together(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"name": None, "vocab_size": 200, "length": 8}
    tokenize_splits(write_splits(tmp_path / "old", ["a flow", "the plasma"]), tmp_path / "t", **options)
    before = contents(tmp_path / "t")

    def full(*args: Any, **more: Any) -> Any:
        if failing == "tokenizer":  # what the tokenizers library raises on a full disk
            raise Exception("No space left on device (os error 28)")
        raise OSError(28, "No space left on device")

    module, name = {
        "offsets": (np_of(tokens_module), "save"),
        "tokenizer": (tokenizer_class(), "save_pretrained"),
        "meta": (tokens_module, "write_json"),
    }[failing]
    splits = write_splits(tmp_path / "new", ["another text", "and one more"])
    with monkeypatch.context() as patched:
        patched.setattr(module, name, full)
        with pytest.raises(UserError, match="cannot write .*No space left on device"):
            tokenize_splits(splits, tmp_path / "t", **options)
    assert contents(tmp_path / "t") == before


def np_of(module: Any) -> Any:
    return module.np


def tokenizer_class() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast


@pytest.fixture
def workspace(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(data.parent)
    return data.parent


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory")])
@pytest.mark.parametrize("stage", ["split", "tokenize"])
def test_too_little_memory_is_one_line(
    error: Exception, stage: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*args: Any, **more: Any) -> Any:
        raise error

    stages.split(config.configure())
    before = contents(workspace / "splits")
    name = {"split": "split.scan", "tokenize": "tokens.train_tokenizer"}[stage]
    monkeypatch.setattr(f"gtl_lightning.data.{name}", greedy)
    with pytest.raises(UserError, match="not enough memory for (splitting|tokenising)"):
        getattr(stages, stage)(config.configure())
    assert contents(workspace / "splits") == before


def test_an_import_under_other_names_can_be_split(workspace: Path) -> None:
    renamed = workspace / "renamed.jsonl"
    with gzip.open(workspace / "data/snapshot.jsonl.gz", "rt") as file:
        rows = [json.loads(text) for text in file]
    renamed.write_text("".join(json.dumps({"text": row.pop("abstract"), **row}) + "\n" for row in rows))
    import_snapshot(renamed, Path("data"), {"abstract": "text"})
    stages.split(config.configure())
    assert read_json("splits/summary.json")["records"] == len(rows)


def test_records_of_no_wanted_domain_are_refused_by_the_split(workspace: Path) -> None:
    Path("other.jsonl").write_bytes(line(1, categories="econ.GN"))
    assert import_snapshot("other.jsonl", "data")["records"] == 1
    with pytest.raises(UserError, match=r"no record of the source archive 'cs'; archives present: econ \(1\)"):
        stages.split(config.configure())


def test_one_data_command_at_a_time(workspace: Path) -> None:
    before = contents(workspace / "data")
    (workspace / ".state").mkdir()
    with FileLock(workspace / ".state" / "data.lock"), pytest.raises(UserError, match="replaced by another `gtl data`"):
        stages.data_sample(seed=1)
    assert contents(workspace / "data") == before


def test_a_dvc_that_fails_says_what_state_things_are_in(workspace: Path) -> None:
    Path("new.jsonl").write_bytes(PLAIN)  # the workspace is no DVC repository
    with pytest.raises(UserError) as raised:
        stages.data_import(Path("new.jsonl"), fields={})
    (text,) = str(raised.value).splitlines()
    assert "data is replaced, whole and checked (5000 records), but data.dvc still names what it held before" in text
    assert "not inside of a DVC repository" in text and "run `dvc add data`" in text
    assert read_json("data/provenance.json")["records"] == 5000


def test_damaged_records_are_counted_apart(workspace: Path) -> None:
    Path("new.jsonl").write_bytes(PLAIN + b"rubbish\n" * 3000 + b'{"id": "a"}\n')
    with pytest.raises(UserError) as raised:  # the workspace is no DVC repository
        stages.data_import(Path("new.jsonl"), fields={})
    assert "(8001 records, 5000 usable and 3001 damaged: malformed 3000, missing-field 1)" in str(raised.value)
    assert read_json("data/provenance.json")["damaged"] == {"malformed": 3000, "missing-field": 1}


def test_a_pipe_through_the_command_line_is_versioned(workspace: Path) -> None:
    shutil.copy(Path(__file__).parents[2] / ".dvcignore", ".dvcignore")
    dvc_repository(workspace)
    with piped(PLAIN) as reading:
        command = [sys.executable, "-c", "from gtl_lightning.cli import main; main()", "data", "import", "-"]
        done = subprocess.run(command, stdin=reading, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5000 records" in done.stderr
    assert read_json("data/provenance.json")["records"] == 5000
    # what a killed import leaves behind is no change of the data
    (workspace / "data" / ".incoming").mkdir()
    (workspace / "data" / ".incoming" / "snapshot.jsonl.gz").write_bytes(b"half")
    status = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(status.stdout) == {}
