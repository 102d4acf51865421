"""params.yaml: one typed object, shipped profiles valid, every mistake named."""

from pathlib import Path

import pytest
import yaml

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.params import Params, configure, dump_params, load_params, override, validate, write_params

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
    assert changed.methods.of("gtl-warm").members == 3
    assert changed.methods.of("gtl").network.depth == 5
    methods = edited.methods
    undone = (
        f"methods.gtl-warm.members={methods.of('gtl-warm').members}",
        f"methods.gtl.network.depth={methods.of('gtl').network.depth}",
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
        ("sweep.fractions=[0.03162277660168379]", "give at most 12 decimals, as 0.0316228"),
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
        ("sweep.ratios=[gtl, gtl-finetuned]", "sweep.ratios.1 = 'gtl-finetuned'"),
        ("sweep.tuned_ratios=[gtl]", "sweep.tuned_ratios.0 = 'gtl'"),
        ("sweep={tuned_ratios: [gtl-finetuned], baselines: [lora]}", "guide what finetune trains, which is none of"),
        # one of each kind that is met late; every parameter: test_every_parameter.py
        ("sweep.seeds=[-1]", "sweep.seeds.0 = -1"),
        ("data.seed=20251126123", "data.seed = 20251126123"),
        ("sampling.gammas=[.inf]", "sampling.gammas.0 = inf"),
        ("train.source.lr=.inf", "train.source.lr = inf"),
        ("train.source.lr=.nan", "train.source.lr = nan"),
        ("tracking.experiment=a/b", "tracking.experiment = 'a/b': begin with a letter or digit"),
        ("tracking.experiment=it's", "tracking.experiment"),
        ("tracking.uri=mlflow.db", "tracking.uri = 'mlflow.db': write an address"),
        ("sweep.fractions=['0.30']", "sweep.fractions.0 = '0.30'"),
        ("sweep.seeds=[true]", "sweep.seeds.0 = True"),
        ("sweep.seeds=[0.0]", "sweep.seeds.0 = 0.0"),
        ("machine.threads=100000", "machine.threads = 100000"),
        ("markov.seeds=[0]", "markov: the study on Markov chains has a file of its own, gtl_lightning/studies/markov/"),
        # what has to fit together
        ("sweep.repeats=[1]", "sweep: repeats has 1 numbers for 4 fractions; give one for each"),
        ("sweep.repeats=[1, 1, 2, 1]", "sweep: repeats asks for 2 of 1 seeds; add seeds, or lower it"),
        ("sweep.repeats=[1, 0, 1, 1]", "sweep.repeats.1 = 0"),
        ("evaluation.mauve_buckets=300", "evaluation: mauve_buckets = 300 exceeds samples = 256"),
        ("train.source.warmup=2000", "train.source: warmup = 2000 exceeds steps = 1400"),
        ("train.source.check_every=2000", "train.source: check_every = 2000 exceeds steps = 1400"),
        ("train.source.also_lr=[0.002]", "also_lr lists a value twice, or lr itself"),
        ("sampling.also_temperatures=[1.0]", "also_temperatures lists temperature = 1.0 itself"),
        ("sampling.positions_per_step=33", "sampling.positions_per_step = 33 exceeds tokenizer.length = 32"),
        ("sampling.block=33", "sampling.block = 33 exceeds tokenizer.length = 32"),
        ("sampling.block_margin=33", "sampling.block_margin = 33 exceeds tokenizer.length = 32"),
        ("sampling.n_ratio=513", "sampling.n_ratio = 513 exceeds tokenizer.vocab_size = 512"),
        ("sampling.n_ratio_sequence=513", "sampling.n_ratio_sequence = 513 exceeds tokenizer.vocab_size = 512"),
        ("ablation.n_ratios=[4, 513]", "ablation.n_ratios = 513 exceeds tokenizer.vocab_size = 512"),
        ("machine.devices=3", "train.source.batch = 64 does not divide into machine.devices x machine.accumulate = 3"),
        ("data.target=[cs]", "archive 'cs' is in both source and target"),
        (
            "data.target_test=0.75",
            "target_val = 0.1, target_test = 0.75, target_judge = 0.15 leave nothing to train on",
        ),
        ("data.max_target=5", "max_target = 5 is below min_examples = 16"),
        ("methods.gtl-warm.nll_weight=0.0", "bce_weight, nll_weight and martingale_weight are all 0"),
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


@pytest.mark.parametrize("name", ["it's", "a:b", 'a"b'])
def test_a_profile_whose_name_has_a_meaning_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.yaml").write_text("data: {seed: 1}\n")
    with pytest.raises(UserError, match="profile = .*: begin with a letter or digit") as caught:
        configure(name, profiles=tmp_path)
    assert name in str(caught.value) or repr(name) in str(caught.value)


def test_a_cell_is_spelled_as_dvc_spells_it(tmp_path: Path) -> None:
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text("sweep: {fractions: [1., 0.30, 3e-3, 0.00001234], seeds: [007]}\nablation: {fraction: 0.3}\n")
    spelled, sweep = load_yaml(str(path))["sweep"], load_params(path).sweep
    assert [str(one) for one in sweep.fractions] == [str(one) for one in spelled["fractions"]]
    assert [str(one) for one in sweep.seeds] == [str(one) for one in spelled["seeds"]]


def test_params_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Params().data.seed = 3  # type: ignore[misc]
