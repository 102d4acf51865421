"""dvc.yaml, the project's and the study's: what a change of a file or of a parameter reruns, what it leaves alone."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows import entry as entry_point
from flows.cli import app
from gtl_lightning.methods import FINETUNED, METHODS, ROLLS
from gtl_lightning.studies.ar2diff.params import PARAMS as AR2DIFF_PARAMS
from gtl_lightning.studies.ar2diff.settings import AR2Diff
from gtl_lightning.studies.markov.params import PARAMS
from gtl_lightning.studies.markov.settings import DIFFERENCES, Markov
from gtl_lightning.studies.tcsm.params import PARAMS as TCSM_PARAMS
from gtl_lightning.studies.tcsm.settings import Tcsm
from gtl_lightning.workspace.closure import ROOT, WITHOUT_RESULT, closure
from gtl_lightning.workspace.params import configure, dump_params
from gtl_lightning.workspace.settings import Methods
from gtl_lightning.workspace.stated import HEIRS, SELDOM
from tests.pipeline.reading import flat

MAIN = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STUDY = yaml.safe_load((ROOT / PARAMS.with_name("dvc.yaml")).read_text())["stages"]
TCSM = yaml.safe_load((ROOT / TCSM_PARAMS.with_name("dvc.yaml")).read_text())["stages"]
AR2DIFF = yaml.safe_load((ROOT / AR2DIFF_PARAMS.with_name("dvc.yaml")).read_text())["stages"]
STUDIES = {"markov": (PARAMS, STUDY), "tcsm": (TCSM_PARAMS, TCSM), "ar2diff": (AR2DIFF_PARAMS, AR2DIFF)}
STAGES: dict[str, Any] = {**MAIN, **STUDY, **TCSM, **AR2DIFF}
TRAINED = {
    "baselines": "baseline",
    "with_classifier": "baseline-with-classifier",
    "ratios": "ratio",
    "tuned_ratios": "ratio-on-finetuned",
}
"""List of the sweep -> the stage that trains what stands in it."""
TRAINING = ("causal", "source", "judge", "planner", "classifier", *TRAINED.values())
EVALUATION = ("evaluate-source", *(f"evaluate-{stage}" for stage in TRAINED.values()))


def parameters(stage: str, file: Path | None = None) -> list[str]:
    """The keys of params.yaml, or of another file, that a stage names."""
    named = STAGES[stage].get("params", [])
    if file is None:
        return [name for name in named if isinstance(name, str)]
    return [name for part in named if isinstance(part, dict) for name in part.get(str(file), [])]


def reads(stage: str, key: str, method: str = "", file: Path | None = None) -> bool:
    """Whether a change of params.yaml's `key` makes the stage, or its cells of `method`, stale."""
    names = [name.replace("${item.method}", method) for name in parameters(stage, file)]
    return any(key == name or key.startswith(f"{name}.") for name in names)


def trained_by(method: str) -> str:
    """The stage whose matrix has the method."""
    return TRAINED[METHODS[method].roll]


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


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_result_took_stands_beside_it_and_only_reports_read_it(stage: str) -> None:
    """Seconds and runs differ between two clones that compute the same; whoever read them would be stale."""
    outs = [out for out in STAGES[stage]["outs"] if isinstance(out, str)]
    timed = [out for out in outs if out.startswith(("models/", "cells/", "ablation", "markov/source", "markov/cells"))]
    assert [out for out in outs if out.startswith("runs/")] == [f"runs/{out}" for out in timed]
    assert stage in ("report", "markov-report") or not [dep for dep in STAGES[stage]["deps"] if dep.startswith("runs")]


def test_every_stage_but_those_of_the_texts_leaves_at_once_and_has_a_warm_process() -> None:
    """What imports torch takes seconds to come and to go (flows/entry.py)."""
    commands = {stage["cmd"].split()[1] for stage in STAGES.values()}
    assert commands - set(entry_point.STAGES) == {"split", "tokenize"}
    assert set(entry_point.STAGES) <= commands


def test_compiled_code_is_no_dependency() -> None:
    """DVC hashes a folder as a whole, and a first run leaves compiled files in it."""
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().split()


def test_what_makes_no_result_exists_and_imports_nothing_that_does() -> None:
    for path in WITHOUT_RESULT:
        assert (ROOT / path).is_file(), path
    own = [f"studies.{study}.{name}" for study in STUDIES for name in ("settings", "params")]
    for name in ("workspace.params", "workspace.settings", "fields", *own, "errors"):
        # Of a method, or a kind of source, the parameters take its settings, which stand in its file.
        computes = {
            path
            for path in closure(f"gtl_lightning.{name}") - WITHOUT_RESULT
            if not path.startswith(("gtl_lightning/methods/", "gtl_lightning/sources/"))
        }
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
            for method in METHODS:
                home = stage == trained_by(method)
                if home or stage not in TRAINED.values():
                    own = home and method == key.split(".")[1]
                    assert reads(stage, key, method) == own, (stage, key, method)


def test_a_default_makes_stale_what_takes_it_and_no_evaluation() -> None:
    for stage in STAGES:
        assert reads(stage, "train.default.lr") == (stage in TRAINING), stage
        builds = stage in TRAINING and stage != "baseline-with-classifier"  # that copies the source's network
        assert reads(stage, "networks.default.width") == builds, stage
    for key, heir in HEIRS.items():
        method = key.split(".")[1]
        stages = [trained_by(method)] if method in METHODS else STAGES
        readers = [stage for stage in stages if reads(stage, key, method)]
        assert readers and all(reads(stage, heir.default) for stage in readers), key


def test_what_is_left_out_of_the_file_makes_no_stage_stale() -> None:
    """Of sections that are written only where they differ, whatever a stage reads is written always.

    A whole section is there if some of it always is: what is left out of it stands at its default.
    """
    for stage in STAGES:
        for name in parameters(stage):
            section, _, key = name.partition(".")
            always = SELDOM[section][1] if section in SELDOM else {key}
            assert key in always if key else always, name


@pytest.mark.parametrize("stage", [name for name in MAIN if name not in ("report", "register")])
def test_the_grid_is_no_parameter_of_a_cell(stage: str) -> None:
    for key in ("fractions", "seeds", *ROLLS):
        assert not reads(stage, f"sweep.{key}")


@pytest.mark.parametrize("profile", ["default", "tcsm", "arxiv", "paper"])
def test_every_parameter_that_a_stage_reads_stands_in_the_file(profile: str) -> None:
    """DVC refuses to run where params.yaml lacks one, were it only an empty `methods.gtl`."""
    main = yaml.safe_load(dump_params(configure(profile, profiles=ROOT / "profiles")))
    studies = [(path, yaml.safe_load((ROOT / path).read_text())) for path, _ in STUDIES.values()]
    for stage in STAGES:
        for file, values in ((None, main), *studies):
            for name in parameters(stage, file):
                for method in METHODS:
                    found = values
                    for part in name.replace("${item.method}", method).split("."):
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


@pytest.mark.parametrize("method", ROLLS["baselines"])
def test_no_classifier_makes_a_denoiser_stale_that_does_not_read_it(method: str) -> None:
    stage = STAGES[trained_by(method)]
    assert not [dep for dep in stage["deps"] if dep.startswith("models/classifier")]
    assert not reads(trained_by(method), "classifier.unsmooth", method)


@pytest.mark.parametrize("stage", [name for name in STAGES if "matrix" in STAGES[name]])
def test_every_matrix_reads_the_one_grid(stage: str) -> None:
    grid = r"\$\{seeds\}" if stage in STUDY else r"\$\{sweep\.\w+\}"
    assert all(re.fullmatch(grid, value) for value in STAGES[stage]["matrix"].values())


def test_the_studies_stand_in_their_own_files_alone() -> None:
    assert set(STUDY) == {"markov-source", "markov-cells", "markov-repeats", "markov-overlap", "markov-report"}
    assert set(TCSM) == {"tcsm-law", "tcsm-chains", "tcsm-text", "tcsm-report"}
    assert set(AR2DIFF) == {"ar2diff-chains", "ar2diff-text", "ar2diff-speed", "ar2diff-report"}
    assert len(STAGES) == len(STUDY) + len(TCSM) + len(AR2DIFF) + len(MAIN)
    assert not [name for name in MAIN if "markov" in str(MAIN[name]) or "studies/" in str(MAIN[name])]


@pytest.mark.parametrize(("study", "stage"), [(name, stage) for name, (_, own) in STUDIES.items() for stage in own])
def test_a_stage_of_a_study_runs_in_the_root_where_its_outputs_stay(study: str, stage: str) -> None:
    file, own = STUDIES[study]
    assert ((ROOT / file).parent / own[stage]["wdir"]).resolve() == ROOT
    assert own[stage]["cmd"].startswith((f"gtl {study} ", f"gtl {study}-study "))
    assert all(str(out).startswith((f"{study}/", f"runs/{study}/", f"reports/{study}")) for out in own[stage]["outs"])
    # DVC writes dvc.lock beside dvc.yaml: a stage that depended on the folder would be stale as soon as it has run.
    around = [dep for dep in own[stage]["deps"] if covers(dep, file.with_name("dvc.lock").as_posix())]
    assert not around


@pytest.mark.parametrize("key", [key for key in flat(Tcsm().model_dump()) if not key.endswith(".also_lr")])
def test_a_parameter_of_tcsm_makes_its_own_stage_stale_and_the_report(key: str) -> None:
    stale = {stage for stage in STAGES if reads(stage, key, file=TCSM_PARAMS)}
    own = set(TCSM) if key == "seeds" else {f"tcsm-{key.split('.')[0]}", "tcsm-report"}
    assert stale == own


@pytest.mark.parametrize("key", [key for key in flat(AR2Diff().model_dump()) if not key.endswith(".also_lr")])
def test_a_parameter_of_ar2diff_makes_the_stages_stale_that_read_it_and_the_report(key: str) -> None:
    """What is timed is written as a task is, by networks of the text's sizes."""
    stale = {stage for stage in STAGES if reads(stage, key, file=AR2DIFF_PARAMS)}
    section = key.split(".")[0]
    more = {"text": {"ar2diff-speed"}, "decoding": {"ar2diff-text", "ar2diff-speed"}}.get(section, set())
    own = set(AR2DIFF) if key == "seeds" else {f"ar2diff-{section}", *more, "ar2diff-report"} & set(AR2DIFF)
    assert stale == own


RATIOS_OF_SEQUENCES = ("sequence", "classifier", "clip", "eta_1")
"""Settings of the study that no token-level ratio reads."""


@pytest.mark.parametrize("key", [key for key in flat(Markov().model_dump()) if not key.endswith(".also_lr")])
def test_every_parameter_of_the_study_makes_something_of_it_stale_and_nothing_else(key: str) -> None:
    stale = {stage for stage in STAGES if reads(stage, key, file=PARAMS)}
    assert stale <= set(STUDY)
    grid = key in ("seeds", "sizes")
    assert stale if not grid else "markov-report" in stale
    others = ("seeds", "repeats", "denoiser", "source", "overlap")
    assert ("markov-cells" in stale) == (key.split(".")[0] not in others)
    trained_alike = key.split(".")[0] not in ("vanilla", "finetune", "low_rank", "lora", "probe", *RATIOS_OF_SEQUENCES)
    assert ("markov-repeats" in stale) == (key == "repeats" or ("markov-cells" in stale and trained_alike))


@pytest.mark.parametrize("stage", [name for name in STUDY if any(reads(name, key, file=PARAMS) for key in DIFFERENCES)])
def test_a_stage_that_trains_reads_what_its_trainings_differ_from(stage: str) -> None:
    assert reads(stage, "training", file=PARAMS)
