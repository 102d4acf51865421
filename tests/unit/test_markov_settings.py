"""Bad settings of the Markov study: one line each, naming the parameter and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from gtl_lightning.errors import UserError
from gtl_lightning.fields import Training
from gtl_lightning.studies.markov.domains import chains
from gtl_lightning.studies.markov.models import Problem
from gtl_lightning.studies.markov.params import (
    PARAMS,
    dump_settings,
    load_settings,
    overlaid,
    requested,
    write_settings,
)
from gtl_lightning.studies.markov.settings import DIFFERENCES, Markov
from gtl_lightning.studies.markov.study import load_source
from gtl_lightning.workspace.params import load_params
from tests.unit.test_reconfigure import gtl as command
from tests.unit.test_reconfigure import told

ROOT = Path(__file__).parents[2]
MISTAKES = {
    "not square": (
        ("states=2", "target_transition=[[0.5, 0.5], [1.0]]"),
        r"with --set: target_transition has 2 rows of 1 or 2 entries; states = 2 asks for a square",
    ),
    "too few rows": (
        ("source_transition=[[0.5, 0.5], [0.5, 0.5]]",),
        r"with --set: source_transition has 2 rows of 2 entries; states = 5",
    ),
    "not stochastic": (
        ("states=2", "target_transition=[[0.5, 0.5], [0.5, 0.6]]"),
        r"with --set: target_transition\[1\] sums to 1.1; .*must sum to 1",
    ),
    "a negative probability": (
        ("states=2", "source_transition=[[1.5, -0.5], [0.5, 0.5]]"),
        r"source_transition.0.1 = -0.5",
    ),
    "not a number": (("source_transition=[[.nan]]",), r"source_transition.0.0 = nan"),
    "a target transition of probability zero": (
        ("states=2", "target_transition=[[0.0, 1.0], [0.5, 0.5]]"),
        r"transition\[0, 0\] is 0 in the target and 0.1 in the source: the density ratio is zero or infinite",
    ),
    "a target that never moves": (
        ("target_diagonal=1.0",),
        r"target_diagonal = 1.0: input should be less than 1",
    ),
    "no sequences": (("sizes=[20, 0]",), r"sizes.1 = 0: input should be greater than or equal to 2"),
    "fewer sequences than folds": (
        ("sizes=[3]",),
        r"with --set: sizes: n = 3 target sequences cannot be cut into parts = 5; raise n",
    ),
    "a seed twice": (("seeds=[1, 1]",), r"with --set: seeds lists a value twice: \[1, 1\]"),
    "too long": (("length=500",), r"length = 500: .*less than or equal to 128"),
    "one state": (("states=1",), r"states = 1: .*greater than or equal to 2"),
    "several learning rates": (
        ("token.also_lr=[0.1]",),
        r"with --set: token.also_lr: trainings of this study take one learning rate; leave it empty",
    ),
    "an unknown key": (("size=3",), r"unknown parameter size; remove it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_settings_are_named(name: str) -> None:
    overrides, message = MISTAKES[name]
    with pytest.raises(UserError, match=message) as caught:
        chains(overlaid({}, overrides))
    assert "\n" not in str(caught.value)


def test_a_matrix_survives_the_file(tmp_path: Path) -> None:
    settings = overlaid({}, ("states=2", "target_transition=[[0.9, 0.1], [0.2, 0.8]]"))
    write_settings(settings, tmp_path / "params.yaml")
    assert load_settings(tmp_path / "params.yaml") == settings
    assert chains(settings)[1].transition.tolist() == [[0.9, 0.1], [0.2, 0.8]]


def test_cells_before_the_source_say_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="markov/source/network.safetensors does not exist; train it first"):
        load_source()


def test_an_unknown_method_is_named() -> None:
    source, target = chains(Markov())
    problem = Problem(Markov(), source, target, None, 20, 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="method wizard is unknown; choose one of vanilla, finetune"):
        problem.fit("wizard")


def states(values: object) -> int:
    """How many single values a file states; a list is one."""
    return sum(map(states, values.values())) if isinstance(values, dict) else 1


TRAININGS = {name for name, field in Markov.model_fields.items() if field.annotation is Training} - {"training"}


def test_the_shipped_file_is_the_defaults_and_short() -> None:
    text = (ROOT / PARAMS).read_text()
    assert load_settings(ROOT / PARAMS) == Markov()
    assert text == dump_settings(Markov())
    assert 50 < states(yaml.safe_load(text)) <= 65
    part = ""
    for line in text.splitlines()[1:]:
        part = part if line.startswith(" ") else line.partition(":")[0]
        # A training states what differs from `training`, which says what each is; a long one an item a line.
        states_what_differs = part in TRAININGS and line.startswith(" ")
        assert ("# " in line or states_what_differs) and "# None" not in line, line


def test_a_training_states_what_differs_and_takes_over_the_rest(tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / PARAMS).read_text())
    for name, differences in DIFFERENCES.items():
        assert values[name] == differences
        assert getattr(Markov(), name).model_dump() == {**Markov().training.model_dump(), **differences}
    values["training"]["lr"], values["vanilla"] = 0.5, {"steps": 77}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    settings = load_settings(tmp_path / "params.yaml")
    assert settings.token.lr == settings.vanilla.lr == settings.low_rank.lr == 0.5  # says nothing of it itself
    assert settings.finetune.lr == 5e-3  # says so itself
    assert settings.vanilla == settings.training.model_copy(update={"steps": 77})


def test_a_wrong_default_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.lr = -1") as caught:
        overlaid({}, ("training.lr=-1.0",))
    assert str(caught.value).count("lr") == 1


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_settings(Markov())
    return tmp_path


def gtl(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    return command("markov", "configure", *words, monkeypatch=monkeypatch)


def test_configure_tells_old_and_new_and_keeps_the_rest(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PARAMS.write_text(PARAMS.read_text().replace("kl_draws: 500", "kl_draws: 40"))
    assert gtl("--set", "seeds=[0, 7]", "--set", "training.patience=9", monkeypatch=monkeypatch) == 0
    inherit = ("token", "sequence", "classifier")
    assert told(capsys) == [
        "seeds: [0, 1, 2] -> [0, 7]",
        "training.patience: 4 -> 9",
        *(f"{name}.patience: 4 -> 9" for name in inherit),
        f"{PARAMS} written",
    ]
    asked = ("seeds=[0, 7]", "training.patience=9", "kl_draws=40")
    assert load_settings() == overlaid({}, asked)
    before = PARAMS.read_text()
    assert gtl("--set", "kl_draws=40", monkeypatch=monkeypatch) == 0
    assert told(capsys) == [f"{PARAMS} is so already"]
    assert PARAMS.read_text() == before


def test_configure_without_an_option_is_as_shipped_and_tells_what_it_drops(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_settings(overlaid({}, ("kl_draws=40",)))
    assert gtl(monkeypatch=monkeypatch) == 0
    assert told(capsys) == ["dropped kl_draws: 40 -> 500", f"{PARAMS} written"]
    assert load_settings() == Markov()
    PARAMS.write_text("kl_drawn: 4\n")
    assert gtl(monkeypatch=monkeypatch) == 0
    first, _ = told(capsys)
    assert first.startswith(f"dropped, as it could not be read: {PARAMS}: unknown parameter kl_drawn")
    assert load_settings() == Markov()


def test_a_wrong_value_in_the_file_is_mended_by_setting_it(here: Path) -> None:
    PARAMS.write_text("kl_draws: -3\nvanilla: {lr: 0.5}\n")
    settings, lines = requested(("kl_draws=3",))
    assert lines == ["kl_draws: -3 -> 3"]
    assert settings.vanilla == Markov().training.model_copy(update={"lr": 0.5})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--set", "kl_draws=-1"), f"{PARAMS} with --set: kl_draws = -1"),
        (("--set", "nosuch=1"), f"{PARAMS} with --set: unknown parameter nosuch"),
        (("--set", "kl_draws"), "--set kl_draws: write it as key=value"),
    ],
)
def test_what_is_refused_leaves_the_file(
    words: tuple[str, ...], line: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = PARAMS.read_text()
    assert gtl(*words, monkeypatch=monkeypatch) == 2
    (said,) = told(capsys)
    assert said.startswith(f"error: {line}")
    assert PARAMS.read_text() == before


def test_a_missing_file_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"{PARAMS} does not exist; write it with `gtl markov configure`")):
        load_settings()


def test_an_old_section_of_params_yaml_is_told_where_it_went(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("markov: {seeds: [0, 1], token: {lr: -1}}\n")
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    assert str(caught.value) == (
        f"{tmp_path / 'params.yaml'}: markov: the study on Markov chains has a file of its own, {PARAMS}; set there "
        "what differs (`gtl markov configure --set KEY=VALUE`) and remove the section here"
    )
