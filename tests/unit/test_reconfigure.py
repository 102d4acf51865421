"""`gtl configure`: what is not named stays, what is dropped is told, a file is replaced only by a valid one."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli import main
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.params import Params, configure, load_params, override, write_params

PROFILE = "sweep: {seeds: [0, 1, 2]}\nsampling: {temperature: 0.8}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "three.yaml").write_text(PROFILE)
    return tmp_path


def gtl(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["gtl", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    return (captured.out + captured.err).splitlines()


def test_a_value_is_set_and_profile_overrides_and_hand_edits_stay(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(configure("three", ("train.source.steps=900",)), here / "params.yaml")
    edited = (here / "params.yaml").read_text().replace("top_p: 1.0", "top_p: 0.9")
    (here / "params.yaml").write_text(edited)
    before = load_params()
    assert gtl("configure", "--set", "data.seed=5", monkeypatch=monkeypatch) == 0
    assert told(capsys) == ["data.seed: 0 -> 5", "params.yaml written: profile three"]
    assert load_params() == override(before, ("data.seed=5",))
    assert (load_params().profile, load_params().train.source.steps, load_params().sampling.top_p) == (
        "three",
        900,
        0.9,
    )


def test_what_is_so_already_is_said_and_the_file_is_left(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "params.yaml").write_text("# mine\ndata: {seed: 5}\n")
    assert gtl("configure", "--set", "data.seed=5", monkeypatch=monkeypatch) == 0
    assert told(capsys) == ["params.yaml is so already: profile default"]
    assert (here / "params.yaml").read_text() == "# mine\ndata: {seed: 5}\n"


def test_a_profile_starts_anew_and_tells_what_it_drops(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = ("train.source.steps=900", "sampling.top_p=0.9", "sampling.temperature=0.8", "data.seed=7")
    write_params(configure("default", changed), here / "params.yaml")
    assert gtl("configure", "--profile", "three", "--set", "data.seed=5", monkeypatch=monkeypatch) == 0
    assert told(capsys) == [
        "dropped train.source.steps: 900 -> 1400",
        "dropped sampling.top_p: 0.9 -> 1.0",
        "data.seed: 0 -> 5",
        "params.yaml written: profile three",
    ]
    assert load_params() == configure("three", ("data.seed=5",))


def test_no_option_is_the_default_profile_anew_and_tells_what_it_drops(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(configure("three", ("data.seed=7",)), here / "params.yaml")
    assert gtl("configure", monkeypatch=monkeypatch) == 0
    assert told(capsys) == ["dropped data.seed: 7 -> 0", "params.yaml written: profile default"]
    assert load_params() == Params()


def test_of_a_profile_that_is_gone_everything_counts_as_set_by_hand(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(configure("three"), here / "params.yaml")
    (here / "profiles" / "three.yaml").unlink()
    assert gtl("configure", monkeypatch=monkeypatch) == 0
    assert "dropped sampling.temperature: 0.8 -> 1.0" in told(capsys)


def test_a_file_that_cannot_be_read_is_replaced_and_that_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "params.yaml").write_text("data: {sead: 3}\n")
    assert gtl("configure", monkeypatch=monkeypatch) == 0
    first, last = told(capsys)
    assert first.startswith("dropped, as it could not be read: params.yaml: unknown parameter data.sead")
    assert last == "params.yaml written: profile default"


def test_a_wrong_value_in_the_file_is_mended_by_setting_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "params.yaml").write_text("data: {seed: -3, near_duplicate: 0.7}\n")
    assert gtl("configure", "--set", "data.seed=3", monkeypatch=monkeypatch) == 0
    assert load_params() == configure(overrides=("data.seed=3", "data.near_duplicate=0.7"))


@pytest.mark.parametrize("words", [("--set", "data.seed=-1"), ("--profile", "nosuch"), ("--set", "nosuch=1")])
def test_what_is_refused_leaves_the_file(words: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(configure("three", ("data.seed=7",)), here / "params.yaml")
    before = (here / "params.yaml").read_bytes()
    assert gtl("configure", *words, monkeypatch=monkeypatch) == 2
    assert (here / "params.yaml").read_bytes() == before


def test_setting_needs_a_file(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert gtl("configure", "--set", "data.seed=1", monkeypatch=monkeypatch) == 2
    assert told(capsys) == ["error: params.yaml does not exist; write it with `gtl configure`"]


REFUSED = {
    "a key given twice": (b"data: {seed: 1}\ndata: {seed: 2}\n", 'key twice: found duplicate key "data"'),
    "a key given twice, deeper": (b"data:\n  seed: 1\n  seed: 2\n", 'found duplicate key "seed".*line 3'),
    "not UTF-8": ("tokenizer: {name: caf\u00e9}\n".encode("latin-1"), r"is not UTF-8 \(byte 0xe9 at 21\)"),
    "a control character": (b"data: {seed: \x00}\n", "is not valid YAML"),
    "a tag that makes objects": (b"data: !!python/object:os.system x\n", "is not valid YAML"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_does_not_say_one_thing_is_refused(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError, match=rf"params\.yaml.*{message}") as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*: Is a directory"):
        load_params(tmp_path)


@pytest.mark.parametrize(
    ("written", "read"), [("1e-3", 0.001), ("2E-3", 0.002), ("0.30", 0.3), ("1.0e-03", 0.001), ("0.5_0", 0.5)]
)
def test_a_number_is_read_as_dvc_reads_it(written: str, read: float, tmp_path: Path) -> None:
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text(f"train: {{source: {{steps: 200, batch: 8, lr: {written}, check_every: 10, patience: 2}}}}\n")
    assert load_params(path).train.source.lr == read == load_yaml(str(path))["train"]["source"]["lr"]


def test_what_looks_like_another_number_to_an_older_yaml_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text("sweep: {seeds: [010, 1]}\n")
    assert list(load_params(path).sweep.seeds) == load_yaml(str(path))["sweep"]["seeds"] == [10, 1]


@pytest.mark.parametrize("name", ["1e5", "010", "yes", "2026-01-01", "null", "0x1f", "a: b", "#x", "~"])
def test_a_name_that_looks_like_a_number_survives_the_file(name: str, tmp_path: Path) -> None:
    values = Params().model_dump(mode="json")
    values["tokenizer"]["name"] = name
    params = Params.model_validate(values)
    write_params(params, tmp_path / "params.yaml")
    assert load_params(tmp_path / "params.yaml") == params
