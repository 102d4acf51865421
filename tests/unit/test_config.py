"""params.yaml: one typed object, shipped profiles valid, every mistake named."""

from pathlib import Path

import pytest
import yaml

from gtl_lightning.config import Params, configure, dump_params, load_params, override, validate, write_params
from gtl_lightning.errors import UserError

ROOT = Path(__file__).parents[2]


def test_committed_params_are_the_default_profile() -> None:
    assert load_params(ROOT / "params.yaml") == Params()
    assert (ROOT / "params.yaml").read_text() == dump_params(Params())


@pytest.mark.parametrize("profile", [path.stem for path in (ROOT / "profiles").glob("*.yaml")])
def test_shipped_profiles_are_valid_and_survive_a_round_trip(profile: str, tmp_path: Path) -> None:
    params = configure(profile, profiles=ROOT / "profiles")
    assert params.profile == profile
    write_params(params, tmp_path / "params.yaml")
    assert load_params(tmp_path / "params.yaml") == params


def test_overrides_win_over_the_profile() -> None:
    params = configure("paper", ("train.source.steps=7000", "sweep.seeds=[4, 5]"), profiles=ROOT / "profiles")
    assert params.train.source.steps == 7000
    assert params.sweep.seeds == (4, 5)
    assert params.tokenizer.length == 512


def test_an_override_changes_what_it_names_and_nothing_else() -> None:
    edited = configure("paper", ("train.source.steps=7000",), profiles=ROOT / "profiles")
    changed = override(edited, ("methods.gtl-warm.members=3", "methods.gtl.network={depth: 5}"))
    assert changed.methods.gtl_warm.members == 3
    assert changed.methods.gtl.network.depth == 5
    methods = edited.methods
    undone = (
        f"methods.gtl-warm.members={methods.gtl_warm.members}",
        f"methods.gtl.network.depth={methods.gtl.network.depth}",
    )
    assert override(changed, undone) == edited
    assert override(edited, ()) == edited


@pytest.mark.parametrize(
    "change",
    ["methods.gtl-warm.members", "methods.gtl-warm.members=0", "methods.nosuch=1", "methods.gtl-warm.members=[1"],
)
def test_a_bad_override_is_one_clear_line(change: str) -> None:
    with pytest.raises(UserError) as refused:
        override(Params(), (change,))
    assert "\n" not in str(refused.value)
    assert "methods" in str(refused.value)


def test_every_parameter_is_described() -> None:
    for line in dump_params(Params()).splitlines()[1:]:
        assert line.endswith(":") or "# " in line, line
        assert "# None" not in line, line


def test_dump_is_yaml_of_the_same_values() -> None:
    assert validate(yaml.safe_load(dump_params(Params())), "dump") == Params()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.source.stepz=3", "unknown parameter train.source.stepz"),
        ("gama=3", "unknown parameter gama"),
        ("data.near_duplicate=3", "data.near_duplicate = 3"),
        ("train.source.batch=-1", "train.source.batch = -1"),
        ("train.source.lr=fast", "train.source.lr = 'fast'"),
        ("sweep.fractions=[0.5, 1.5]", "sweep.fractions.1 = 1.5"),
        ("sweep.fractions=[1]", "1.0"),
        ("sweep.fractions=[0.5, 0.5]", "fractions lists a value twice"),
        ("sweep.baselines=[distill]", "sweep.baselines.0 = 'distill'"),
        ("sampling.gammas=[-1.0]", "sampling.gammas.0 = -1.0"),
        ("networks.denoiser.heads=5", "networks.denoiser"),
        ("train.source", "key=value"),
        ("profile.name=x", "profile"),
        ("ablation.fraction=0.2", "ablation.fraction = 0.2"),
        ("sweep.ratios=[gtl-sequence-bce]", "ablation.method = gtl"),
    ],
)
def test_a_wrong_parameter_is_named(override: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        configure(overrides=(override,))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", ""])
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_missing_params_and_unknown_profile() -> None:
    with pytest.raises(UserError, match="gtl configure"):
        load_params("nowhere/params.yaml")
    with pytest.raises(UserError, match="unknown profile 'papre'.*default"):
        configure("papre")


def test_params_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Params().data.seed = 3  # type: ignore[misc]
