"""params.yaml states a default and what differs from it; every value that holds follows from it, and is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli import main
from gtl_lightning.errors import UserError
from gtl_lightning.fields import Network, Training, set_fields
from gtl_lightning.methods import METHODS
from gtl_lightning.workspace.params import Params, configure, load_params, override, validate, write_params
from gtl_lightning.workspace.stated import DEFAULTS, GONE, HEIRS, effective, stated
from gtl_lightning.workspace.written import shown
from tests.pipeline.reading import flat

ROOT = Path(__file__).parents[2]
PROFILES = ("default", "tcsm", "arxiv", "paper")
SHIPPED: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
KNOBS = [key for key in flat(Params().model_dump(mode="json")) if key.split(".")[0] in ("train", "networks", "methods")]


def profile(name: str) -> Params:
    return configure(name, profiles=ROOT / "profiles")


def whole(params: Params) -> dict[str, Any]:
    """Dotted key -> value that holds."""
    values = params.model_dump(mode="json")
    return {key: at(values, key) for key in flat(values)}


def at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


CHOICES = {"bce": "lsif"}
"""What a method's choice by name may be instead."""


def other(key: str) -> str:
    """An override that gives a parameter another value, which fits the rest."""
    value = at(Params().model_dump(mode="json"), key)
    if isinstance(value, list):
        return f"{key}={json.dumps(value[:1] if value else [0.0123])}"
    if isinstance(value, str):
        return f"{key}={CHOICES[value]}"
    if isinstance(value, bool):
        changed = not value
    elif isinstance(value, int):
        changed = value // 2 if value > 1 else value + 1
    else:
        changed = (value or 0.0) / 2 or 0.5
    return f"{key}={json.dumps(changed)}"


def told(before: Params, after: Params) -> set[str]:
    old, new = whole(before), whole(after)
    return {key for key in new if old[key] != new[key]}


def written_at(path: Path) -> tuple[int, int]:
    """Changes when a file is written anew; that it was read is no matter."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def count(tree: Any) -> int:
    """Values; a part that states nothing is one."""
    return sum(map(count, tree.values())) if isinstance(tree, dict) and tree else 1


def test_the_shipped_file_states_few_values() -> None:
    """One for each method, as their own stand in their files, and a hundred."""
    assert count(SHIPPED) <= 105 + len(METHODS)
    assert len(whole(Params())) > 2 * count(SHIPPED)


@pytest.mark.parametrize("default", DEFAULTS.values())
def test_a_default_stands_whole(default: str) -> None:
    kind = next(kind for kind, key in DEFAULTS.items() if key == default)
    assert set(at(SHIPPED, default)) == set(kind.model_fields)


@pytest.mark.parametrize("name", PROFILES)
def test_what_holds_follows_from_what_is_stated_and_back(name: str) -> None:
    values = profile(name).model_dump(mode="json")
    said = stated(values)
    assert validate(said, "test").model_dump(mode="json") == values
    assert effective(effective(said)) == effective(said)
    assert stated(validate(said, "test").model_dump(mode="json")) == said


def test_a_default_then_the_method_then_the_file() -> None:
    """The three layers, by numbers."""
    params = configure(
        overrides=("train.default.steps=500", "train.default.lr=0.004", "methods.gtl-warm.train.lr=0.003")
    )
    assert (params.train.default.steps, params.train.default.lr) == (500, 0.004)
    assert (params.train.source.steps, params.train.source.lr) == (1400, 0.004)  # the file says steps
    gtl, warm = params.methods.of("gtl").train, params.methods.of("gtl-warm").train
    assert (gtl.steps, gtl.lr, gtl.weight_decay) == (500, 0.004, 0.1)  # the method says weight_decay
    assert (warm.steps, warm.lr, warm.batch) == (150, 0.003, 32)  # the method says steps and batch, the file lr
    sized = configure(overrides=("networks.default={width: 64, cond_dim: 8}",))
    assert sized.networks.denoiser == Network(width=96, depth=3, heads=4, cond_dim=8, dropout=0.0)
    assert sized.methods.of("gtl").network == Network(width=64, depth=2, heads=4, cond_dim=8, dropout=0.1)


@pytest.mark.parametrize("key", KNOBS)
def test_a_value_changes_itself_and_a_default_all_that_take_it(key: str) -> None:
    before = Params()
    after = override(before, (other(key),))
    section, _, name = key.rpartition(".")
    said = stated(before.model_dump(mode="json"))

    heirs = {heir: its.own for heir, its in HEIRS.items() if its.default == section}
    by_file = {heir for heir in heirs if name in (_get(said, heir) or {})}
    silent = {heir for heir, own in heirs.items() if heir not in by_file and name not in own}
    assert told(before, after) == {key, *(f"{heir}.{name}" for heir in silent)}
    # What DVC sees of it is the part that was named, beside what has come to equal its default.
    new = stated(after.model_dump(mode="json"))
    part = ".".join(key.split(".")[:2])
    assert all(f"{name}.".startswith(f"{part}.") for name in flat(new) if at(new, name) != _get(said, name))
    # The file follows from what holds: what has come to equal its default is no difference, and goes back with it.
    back = override(after, (f"{key}={json.dumps(whole(before)[key])}",))
    met = {f"{heir}.{name}" for heir in by_file if whole(before)[f"{heir}.{name}"] == whole(after)[key]}
    assert told(before, back) == met


def _get(values: Any, key: str) -> Any:
    try:
        return at(values, key)
    except (KeyError, TypeError):
        return None


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_file_says_what_differs_and_no_more(method: str) -> None:
    for _, part in METHODS[method].settings:
        if isinstance(part, Training | Network):
            usual = type(part)()
            assert all(getattr(part, name) != getattr(usual, name) for name in set_fields(part))


def older(params: Params) -> dict[str, Any]:
    """The file as it was when every value was written out and there was no default."""
    values = params.model_dump(mode="json")
    for default in DEFAULTS.values():
        section, _, name = default.partition(".")
        del values[section][name]
    for key, value in GONE.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    return values


@pytest.mark.parametrize("name", PROFILES)
def test_an_older_file_with_every_value_written_out_is_read_as_it_was(name: str, tmp_path: Path) -> None:
    params = profile(name)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(older(params)))
    read, now = whole(load_params(tmp_path / "params.yaml")), whole(params)
    assert {key for key in now if read[key] != now[key]} <= {
        f"{default}.{name}" for kind, default in DEFAULTS.items() for name in kind.model_fields
    }


@pytest.mark.parametrize("key", GONE)
def test_a_parameter_that_is_gone_is_refused_where_it_said_something_else(key: str, tmp_path: Path) -> None:
    values = older(Params())
    section, _, name = key.partition(".")
    values[section][name] = 7
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=rf"params\.yaml: unknown parameter {key}; remove it"):
        load_params(tmp_path / "params.yaml")


def told_by(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    return (captured.out + captured.err).splitlines()


def gtl(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["gtl", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_older_file_is_written_in_the_new_form_by_any_set(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even by one that changes nothing: DVC wants the defaults in the file."""
    (here / "params.yaml").write_text(yaml.safe_dump(older(Params())))
    assert gtl("configure", "--set", "data.seed=0", monkeypatch=monkeypatch) == 0
    assert [line.partition(":")[0] for line in told_by(capsys)] == [
        "networks.default",
        "train.default",
        "params.yaml written",
    ]
    assert (here / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


def test_setting_a_default_tells_every_value_that_it_changes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(Params())
    assert gtl("configure", "--set", "train.default.weight_decay=0.02", monkeypatch=monkeypatch) == 0
    *changed, written = told_by(capsys)
    trainings = {heir for heir, its in HEIRS.items() if its.default == "train.default"}
    own = {heir for heir in trainings if at(Params().model_dump(mode="json"), heir)["weight_decay"] != 0.01}
    assert {"train.classifier", "methods.gtl.train"} <= own
    heirs = trainings - own
    assert set(changed) == {f"{part}.weight_decay: 0.01 -> 0.02" for part in {"train.default", *heirs}}
    assert written == "params.yaml written: profile default"
    assert gtl("configure", "--set", "methods.gtl.train.lr=0.001", monkeypatch=monkeypatch) == 0
    assert told_by(capsys) == ["methods.gtl.train.lr: 0.002 -> 0.001", written]
    assert "  gtl: {train: {lr: 0.001}}  # " in (here / "params.yaml").read_text()


def test_show_prints_every_value_that_holds_once_and_writes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = configure(overrides=("methods.gtl.train.lr=0.001", "data.seed=4"))
    write_params(params)
    before = written_at(here / "params.yaml")
    assert gtl("configure", "--show", monkeypatch=monkeypatch) == 0
    lines = told_by(capsys)
    printed = {}
    for line in lines:
        key, _, rest = line[2:].partition(": ")
        value, _, meaning = rest.partition("  # ")
        printed[key] = json.loads(value)
        assert meaning.partition(": ")[2] not in ("", "None"), line
    assert len(lines) == len(printed)
    assert printed == whole(params)
    assert written_at(here / "params.yaml") == before
    assert [path.name for path in here.iterdir()] == ["params.yaml"]


def test_show_says_what_differs_and_where_it_comes_from() -> None:
    params = configure(overrides=("methods.gtl.train.lr=0.001", "methods.gtl.members=3", "train.default.clip=2.0"))
    found = {one.key: (one.value, one.origin, one.differs) for one in shown(params)}
    assert found["methods.gtl.train.steps"] == (300, "default", False)
    assert found["methods.gtl.train.weight_decay"] == (0.1, "method", True)
    assert found["methods.gtl.train.lr"] == (0.001, "params.yaml", True)
    assert found["methods.gtl.train.clip"] == (2.0, "default", False)
    assert found["methods.gtl.bce_weight"] == (0.3, "method", False)
    assert found["methods.gtl.members"] == (3, "params.yaml", True)
    assert found["train.default.clip"] == (2.0, "params.yaml", True)
    assert found["train.source.steps"] == (1400, "params.yaml", True)
    assert found["data.seed"] == (0, "default", False)


def test_show_takes_a_key_or_the_beginning_of_keys(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(Params())
    assert {one.key.split(".")[1] for one in shown(Params(), "methods.gtl")} == {"gtl"}
    assert [one.key for one in shown(Params(), "train.source.lr")] == ["train.source.lr"]
    assert gtl("configure", "--show", "data.seed", "--set", "data.seed=3", monkeypatch=monkeypatch) == 0
    assert told_by(capsys) == ["* data.seed: 3  # params.yaml: key of the hash that orders and splits the records"]
    assert load_params() == Params()
    assert gtl("configure", "--show", "train.sauce", monkeypatch=monkeypatch) == 2
    assert told_by(capsys) == ["error: --show train.sauce: there is no such parameter; --show alone prints all of them"]
    assert gtl("configure", "--set", "methods.gtl.train={steps:", "7}", monkeypatch=monkeypatch) == 2
    assert told_by(capsys) == [
        "error: 7} stands alone, as a key does after --show; a --set that has blanks needs quotes"
    ]
    assert load_params() == Params()


REFUSED = {
    "a default that does not stand whole": ("train: {default: {steps: 5}}", "train.default.batch is missing; add it"),
    "a key that a default does not have": (
        "methods: {gtl: {train: {stepz: 5}}}",
        "unknown parameter methods.gtl.train.stepz",
    ),
    "a knob that a method does not have": ("methods: {lora: {members: 5}}", "unknown parameter methods.lora.members"),
    "a method that does not exist": ("methods: {gtl2: {}}", "unknown parameter methods.gtl2"),
    "a value out of range": ("train: {source: {lr: -1.0}}", "train.source.lr = -1.0"),
    "a method of no parts": ("methods: {gtl: 5}", "methods.gtl = 5"),
    "a section of no parts": ("train: 5", "train = 5"),
    "a default of no parts": ("networks: {default: [1]}", r"networks.default = [1]"),
    "a training of no parts": ("train: {source: null}", "train.source = None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_stated_wrongly_is_named(name: str, tmp_path: Path) -> None:
    text, message = REFUSED[name]
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["sweep.seeds", "ablation.gammas"])
def test_an_item_at_fault_does_not_make_its_list_empty(key: str) -> None:
    with pytest.raises(UserError) as caught:
        configure(overrides=(f"{key}=[-1]",))
    assert f"{key}.0 = -1: " in str(caught.value) and "at least 1 item" not in str(caught.value)
    with pytest.raises(UserError, match="at least 1 item"):
        configure(overrides=(f"{key}=[]",))


def test_a_wrong_default_is_said_once_and_what_does_not_go_with_it_is_named_with_it() -> None:
    with pytest.raises(UserError) as caught:
        configure(overrides=("train.default.steps=-1",))
    assert str(caught.value).endswith("train.default.steps = -1: input should be greater than or equal to 1")
    with pytest.raises(UserError) as caught:
        configure(overrides=("train.default.warmup=140",))
    assert str(caught.value).endswith(
        "train.classifier: warmup = 140 exceeds steps = 125; lower it with the steps (warmup is that of train.default)"
    )
