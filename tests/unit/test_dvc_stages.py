"""dvc.yaml: what a change of a file or of a parameter reruns, and what it leaves alone."""

import inspect
import re

import pytest
import typer
import yaml

from flows.cli import app
from gtl_lightning.methods import FINETUNED, guides
from gtl_lightning.workspace.closure import ROOT, WITHOUT_RESULT, closure
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.settings import Methods
from tests.pipeline.reading import flat

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
TRAINED = {"baselines": "baseline", "ratios": "ratio", "tuned_ratios": "ratio-on-finetuned"}
"""List of the sweep -> the stage that trains what stands in it."""
TRAINING = ("source", "judge", "planner", "classifier", *TRAINED.values())
EVALUATION = ("evaluate-source", *(f"evaluate-{stage}" for stage in TRAINED.values()))


def reads(stage: str, key: str, method: str = "") -> bool:
    """Whether a change of params.yaml's `key` makes the stage, or its cells of `method`, stale."""
    names = [str(name).replace("${item.method}", method) for name in STAGES[stage].get("params", [])]
    return any(key == name or key.startswith(f"{name}.") for name in names)


def trained_by(method: str) -> str:
    """The stage whose matrix has the method."""
    guided = guides(method)
    return TRAINED["baselines" if guided is None else "ratios" if guided == "source" else "tuned_ratios"]


def entry(stage: str) -> str:
    """The module that a stage's command starts in, as the command line has it."""
    command = typer.main.get_command(app)
    words = STAGES[stage]["cmd"].replace("${item.method}", "gtl").split()[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    source = inspect.getsource(inspect.unwrap(command.callback))
    (home,) = re.findall(r"from (gtl_lightning\.(?:stages|studies)[\w.]*) import (\w+)\n", source)
    return ".".join(home)


def code(stage: str) -> list[str]:
    """The stage's dependencies on files and folders of the project."""
    return [dep for dep in STAGES[stage]["deps"] if dep.startswith("gtl_lightning/")]


def covers(dep: str, path: str) -> bool:
    return path == dep or path.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_file_of_the_project_that_it_runs(stage: str) -> None:
    runs = closure(entry(stage)) - WITHOUT_RESULT
    assert len(runs) > 3
    missing = sorted(path for path in runs if not any(covers(dep, path) for dep in code(stage)))
    assert not missing, f"add to the deps of {stage} in dvc.yaml: {', '.join(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_file_of_the_project_that_it_does_not_run(stage: str) -> None:
    runs = closure(entry(stage)) - WITHOUT_RESULT
    idle = [dep for dep in code(stage) if not any(covers(dep, path) for path in runs)]
    assert not idle, f"remove from the deps of {stage} in dvc.yaml: {', '.join(idle)}"
    assert len(set(code(stage))) == len(code(stage))


def test_compiled_code_is_no_dependency() -> None:
    """DVC hashes a folder as a whole, and a first run leaves compiled files in it."""
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().split()


def test_what_makes_no_result_exists_and_imports_nothing_that_does() -> None:
    for path in WITHOUT_RESULT:
        assert (ROOT / path).is_file(), path
    for name in ("workspace.params", "workspace.settings", "fields", "studies.markov.settings", "errors"):
        # Of a method the parameters take its settings, which stand in its file.
        computes = {path for path in closure(f"gtl_lightning.{name}") - WITHOUT_RESULT if "/methods/" not in path}
        assert computes <= {"gtl_lightning/files.py"}, name


@pytest.mark.parametrize("stage", TRAINING)
def test_gamma_and_n_ratio_train_nothing(stage: str) -> None:
    for key in (
        "sampling.gammas",
        "sampling.sample_gammas",
        "sampling.also_temperatures",
        "sampling.n_ratio",
        "ablation.gammas",
        "ablation.n_ratios",
    ):
        assert not reads(stage, key)


def test_gamma_resamples_guided_cells_alone() -> None:
    for stage in ("evaluate-ratio", "evaluate-ratio-on-finetuned"):
        assert reads(stage, "sampling.gammas")
        assert reads(stage, "sampling.sample_gammas")
    assert not reads("evaluate-source", "sampling.gammas")
    assert not reads("evaluate-baseline", "sampling.gammas")
    assert not reads("evaluate-baseline", "sampling.sample_gammas")
    for stage in EVALUATION:
        assert reads(stage, "sampling.top_p")
        assert reads(stage, "sampling.also_temperatures")


def test_what_changes_every_sample_makes_every_cell_stale() -> None:
    """Guided and unguided cells are compared: neither may be left as it was."""
    for key in ("sampling.block", "sampling.block_margin", "evaluation.samples", "evaluation.mauve_buckets"):
        assert all(reads(stage, key) for stage in EVALUATION), key
    for key in ("evaluation.samples", "evaluation.featurizer", "evaluation.mauve_buckets", "evaluation.mauve_seeds"):
        assert reads("real-text", key)
        assert not any(reads(stage, key) for stage in TRAINING), key


def test_a_methods_own_settings_make_its_cells_stale_and_no_others() -> None:
    settings = {"methods": Methods().model_dump()}
    assert len(flat(settings)) > 100
    for key in flat(settings):
        for stage in STAGES:
            for method in settings["methods"]:
                trained = stage == trained_by(method) and method == key.split(".")[1]
                if trained or stage not in TRAINED.values():
                    assert reads(stage, key, method) == trained, (stage, key, method)
                elif method != key.split(".")[1]:
                    assert not reads(stage, key, method), (stage, key, method)


@pytest.mark.parametrize("stage", [name for name in STAGES if name not in ("report", "register")])
def test_the_grid_is_no_parameter_of_a_cell(stage: str) -> None:
    for key in ("sweep.fractions", "sweep.seeds", "sweep.baselines", "sweep.ratios", "sweep.tuned_ratios"):
        assert not reads(stage, key)


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_that_a_stage_reads_exists(stage: str) -> None:
    values = Params().model_dump()
    for name in STAGES[stage].get("params", []):
        if "${" in name:
            continue
        found = values
        for part in name.split("."):
            assert part in found, name
            found = found[part]


def test_only_what_guides_the_fine_tuned_denoiser_waits_for_it() -> None:
    """And that alone: neither the source's denoiser nor a classifier makes those cells stale."""
    finetuned = f"models/{FINETUNED}-${{item.fraction}}-${{item.seed}}"
    waiting = {stage for stage in STAGES if finetuned in STAGES[stage]["deps"]}
    assert waiting == {"ratio-on-finetuned", "evaluate-ratio-on-finetuned"}
    for stage in waiting:
        assert STAGES[stage]["matrix"]["method"] == "${sweep.tuned_ratios}"
        assert not [dep for dep in STAGES[stage]["deps"] if dep.startswith(("models/source", "models/classifier"))]


@pytest.mark.parametrize("stage", [name for name in STAGES if "matrix" in STAGES[name]])
def test_every_matrix_reads_the_one_grid(stage: str) -> None:
    grid = "${markov." if stage.startswith("markov") else "${sweep."
    assert all(value.startswith(grid) for value in STAGES[stage]["matrix"].values())
