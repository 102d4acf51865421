"""dvc.yaml says what each stage reads: no key and no file more, and none less. Found by running every stage."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gtl_lightning.cli import app
from gtl_lightning.data.sample import write_sample
from gtl_lightning.sources import SOURCES
from gtl_lightning.workspace import params as config
from gtl_lightning.workspace.params import Params
from tests.adapters_kit import bert, words_of
from tests.pipeline.conftest import every_method, inside, tiny
from tests.pipeline.reading import SAYS_WHERE, Point, Reading, flat, points, run_all

ONE = (
    "sweep.fractions=[0.3]",
    "ablation.fraction=0.3",
    *every_method(),
    "methods.tcsm-reward.samples=24",
)
"""Every method there is."""
OTHER = (
    "sampling.planner=learned",
    "sampling.block=4",
    "sampling.block_margin=1",
    "ablation.method=gtl-sequence-gkl",
)
"""What some keys are read for only when others have a value."""
AGAIN = (
    "evaluate-source",
    "evaluate-baseline",
    "evaluate-baseline-with-classifier",
    "evaluate-ratio",
    "evaluate-ratio-on-finetuned",
    "ablation",
    "report",
    "register",
)
ALIKE = ("", "finetune", "finetune-borrowed", "gtl", "gtl-sequence-gkl", "finetune-two", "gtl-finetuned")
"""Methods, one of each way in which they sample; a stage of none has the empty name."""
NOTES = re.compile(r"models/[^/]+/\w+\.json")
"""What is noted beside a network: on which tokens it was trained, without which it is not opened."""
NAMES_THE_STUDY = "data/provenance.json"
"""Its hash names the MLflow run that a stage is tracked in; other data would have other tokens."""


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> list[Reading]:
    """Every stage run once, those that sample once more with other settings, the source as every kind."""
    folder = tmp_path_factory.mktemp("reading")
    found = []

    def run(params: Params, stages: Collection[str] | None = None, methods: Collection[str] | None = None) -> None:
        config.write_params(params)
        found.append(Reading())
        chosen = [point for point in points(params) if stages is None or point.stage in stages]
        run_all([point for point in chosen if methods is None or point.method in methods], found[-1])

    with inside(folder):
        write_sample(Path("data"), seed=0, source_records=400, target_records=300)
        run(tiny(*ONE))
        run(tiny(*ONE, *OTHER), AGAIN, ALIKE)
        for name, kind in SOURCES.items():
            if kind.trains:
                run(tiny(*ONE, f"source.kind={name}"), ("causal", "source"))
        imported = tmp_path_factory.mktemp("somebody") / "bert"
        bert(imported, words=words_of(Path("splits")))
        config.write_params(tiny(*ONE, "tokenizer.length=12", "sampling.n_ratio=8"))
        done = CliRunner().invoke(app, ["source", "import", str(imported)])
        assert done.exit_code == 0, done.output
        run(config.load_params(), ("tokenize", "causal", "source"))
    return found


@pytest.fixture(scope="module")
def reading(readings: list[Reading]) -> Reading:
    """What all runs have read together."""
    whole = Reading()
    for one in readings:
        for name in ("params", "files", "said"):
            for point, read in getattr(one, name).items():
                getattr(whole, name).setdefault(point, set()).update(read)
    return whole


def listed(what: str, found: set[Any]) -> str:
    return "\n".join([what, *(" ".join(filter(None, row)) for row in sorted(found))])


def covered(key: str, declared: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in declared)


def test_every_stage_has_run(reading: Reading) -> None:
    assert {point.stage for point in reading.params} >= {
        "split",
        "tokenize",
        "ratio",
        "report",
        "register",
        "real-text",
    }
    assert all(reading.files[point] for point in reading.files)


def test_every_parameter_that_a_stage_reads_makes_it_stale(reading: Reading) -> None:
    unknown = {
        (point.stage, point.method, key)
        for point, keys in reading.params.items()
        for key in keys
        if not key.startswith(SAYS_WHERE) and not covered(key, point.params)
    }
    assert not unknown, listed("add to params in dvc.yaml", unknown)


def test_no_parameter_that_a_stage_does_not_read_makes_it_stale(reading: Reading) -> None:
    leaves = flat(tiny(*ONE).model_dump(mode="json"))
    by_stage: dict[str, list[Point]] = {}
    for point in reading.params:
        by_stage.setdefault(point.stage, []).append(point)
    idle = set()
    for stage, found in by_stage.items():
        for key in {key for point in found for key in leaves if covered(key, point.params)}:
            # A method's own settings are for each method; what methods share may be read by one of them.
            readers = [point for point in found if covered(key, point.params)]
            if not any(key in reading.params[point] for point in readers):
                idle.add((stage, key))
    assert not idle, listed("remove from params in dvc.yaml", idle)


def test_an_evaluation_is_found_again_by_all_that_it_reads(reading: Reading) -> None:
    """MLflow's run of a cell is keyed by these settings: others must give another run."""
    for point, said in reading.said.items():
        if point.stage.startswith("evaluate"):
            used = {key for key in reading.params[point] if key.startswith(("schedule", "sampling.", "evaluation."))}
            assert used - said <= {"schedule", "evaluation.neighbours"}, point


def test_the_state_of_a_fit_is_named_by_every_file_that_its_stage_reads(readings: list[Reading]) -> None:
    """Tokens, the frozen denoiser, the classifiers: other content must never meet what was trained on this."""
    trained = {point.stage for reading in readings for point in reading.keyed}
    assert trained >= {"causal", "source", "planner", "classifier", "baseline", "ratio"}
    for reading in readings:
        for point, named in reading.keyed.items():
            read = {path for path in reading.files[point] if path != NAMES_THE_STUDY and not NOTES.fullmatch(path)}
            if point.stage == "judge":  # which reads tokenizer and texts too, for a part that is fitted anew each time
                read = {path for path in read if path.endswith((".npy", "meta.json"))}
            assert read and all(read <= one for one in named), (point, read - named[0])


def test_every_file_that_a_stage_reads_makes_it_stale(reading: Reading) -> None:
    def known(path: str, point: Point) -> bool:
        return path == NAMES_THE_STUDY or any(path == dep or path.startswith(f"{dep}/") for dep in point.deps)

    unknown = {
        (point.stage, point.method, path)
        for point, files in reading.files.items()
        for path in files
        if not known(path, point)
    }
    assert not unknown, listed("add to deps in dvc.yaml", unknown)


def test_no_folder_that_a_stage_does_not_read_makes_it_stale(reading: Reading) -> None:
    idle = set()
    for stage in {point.stage for point in reading.files}:
        found = [point for point in reading.files if point.stage == stage]
        read = {path for point in found for path in reading.files[point]}
        for dep in {dep for point in found for dep in point.deps}:
            if not any(path == dep or path.startswith(f"{dep}/") for path in read):
                idle.add((stage, dep))
    assert not idle, listed("remove from deps in dvc.yaml", idle)
