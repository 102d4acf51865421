"""The study of AR2Diff on a tiny scale: every stage runs, its rows and its text are whole."""

from __future__ import annotations

import json
import math
from html import unescape
from itertools import product
from pathlib import Path

import pytest

from gtl_lightning.data.sample import write_sample
from gtl_lightning.errors import UserError
from gtl_lightning.studies.ar2diff import params as config
from gtl_lightning.studies.ar2diff.chains import FINAL, STARTS, chain_of, measure_chains
from gtl_lightning.studies.ar2diff.corpus import Corpus, turned
from gtl_lightning.studies.ar2diff.drawn import REAL
from gtl_lightning.studies.ar2diff.page import ar2diff_report, chain_wins, text_differences
from gtl_lightning.studies.ar2diff.settings import AR2Diff
from gtl_lightning.studies.ar2diff.speed import measure_speed
from gtl_lightning.studies.ar2diff.text import LOSSES, measure_text
from gtl_lightning.workspace.params import Params
from tests.pipeline.conftest import inside

QUICK = "{steps: 4, batch: 4, lr: 0.01, warmup: 1, check_every: 2, patience: 9}"
SMALL = "{width: 8, depth: 1, heads: 2}"
TINY = (
    "seeds=[0, 1]",
    "chains={states: 3, length: 4, steps: 4, held_out: 8}",
    f"chains.training={QUICK}",
    f"chains.final={QUICK}",
    f"chains.network={SMALL}",
    "text={records: 90, vocabulary: 300, length: 12, prefix: 6, held_out: 10, tested: 4, draws: 1, crossed: 2}",
    "text.drawn=20",
    *(f"text.{name}={QUICK}" for name in ("causal", "diffusion", "task")),
    f"text.network={SMALL}",
    "decoding={steps: 3, samples: 2}",
    "speed={lengths: [4, 8], steps: [2, 8], batches: [1, 2], prefix: 4, tested: 4, repeats: 1}",
    f"speed.training={QUICK}",
)


def tiny(*changes: str) -> AR2Diff:
    return config.overlaid({}, (*TINY, *changes))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ar2diff")
    with inside(folder):
        write_sample(Path("data"), seed=0, source_records=80, target_records=20)
        for stage in (measure_chains, measure_text, measure_speed):
            stage(tiny())
        ar2diff_report(tiny(), Params())
    return folder


def rows(study: Path, part: str) -> list[dict[str, object]]:
    found = json.loads((study / "reports/ar2diff.json").read_text())
    return [row for row in found if row["part"] == part]


def test_every_start_has_its_gap_at_every_n(study: Path) -> None:
    found = rows(study, "chains")
    cells = {(row["chain"], row["start"], row["shift"], row["n"], row["seed"]) for row in found}
    assert len(cells) == len(found)
    for chain, seed in product(("random", "sticky"), (0, 1)):
        for start, shift in STARTS:
            assert {(chain, start, shift, n, seed) for n in (0, 2, 4)} <= cells
        assert (chain, FINAL, True, 4, seed) in cells
    assert all(math.isfinite(row["gap"]) for row in found)  # type: ignore[arg-type]
    assert all(row["gap"] > 0 for row in found if row["n"] == 0)  # type: ignore[operator]
    differences = chain_wins(found, "random")
    assert set(differences) == {0, 2, 4} and all(math.isfinite(half) for _, half in differences.values())


def test_text_is_compared_at_equal_steps_and_at_equal_compute(study: Path) -> None:
    curve = rows(study, "curve")
    assert {row["n"] for row in curve if row["start"] == "AR2Diff"} == {0, 2, 4}
    assert {row["n"] for row in curve if row["start"] == "from nothing"} == {0, 2, 4, 6, 8}
    assert {row["causal_steps"] for row in curve if row["start"] == "AR2Diff"} == {4}
    found = text_differences(curve)
    assert set(found) == {0, 2, 4}
    for n, by in found.items():
        for name, other in (("equal steps", n), ("equal compute", n + 4)):
            pairs = [
                [row["nats"] for row in curve if (row["start"], row["n"], row["seed"]) == (start, steps, seed)]
                for seed in (0, 1)
                for start, steps in (("AR2Diff", n), ("from nothing", other))
            ]
            (a,), (b,), (c,), (d,) = pairs
            assert by[name][0] == pytest.approx(((a - b) + (c - d)) / 2)  # type: ignore[operator]
    crossed = {(row["loss"], row["shift"], row["anneal"]) for row in rows(study, "crossed")}
    assert crossed == {(loss, shift, anneal) for loss in LOSSES for shift in (True, False) for anneal in (0.0, 0.5)}
    assert {row["n"] for row in rows(study, "causal")} == {4, 8}


def test_every_system_has_its_mauve_beside_that_of_held_out_text(study: Path) -> None:
    found = rows(study, "drawn")
    systems = {row["system"] for row in rows(study, "task")} | {REAL}
    assert {(row["system"], row["seed"]) for row in found} == set(product(systems, (0, 1)))
    assert all(0 < row["mauve"] <= 1 and row["texts"] == 20 for row in found)  # type: ignore[operator]
    real = {row["mauve"] for row in found if row["system"] == REAL}
    assert len(real) == 1, "held-out text is the same for every seed"


def test_both_tasks_have_every_system_and_way(study: Path) -> None:
    found = rows(study, "task")
    assert {row["task"] for row in found} == {"abstract -> title", "title -> abstract"}
    for task in ("abstract -> title", "title -> abstract"):
        ways = {(row["system"], row["way"]) for row in found if row["task"] == task}
        assert ways == {
            ("AR", "greedy"),
            ("AR", "best of 2"),
            ("AR2Diff, N = 0", "best of 2"),
            ("AR2Diff, N = 4", "best of 2"),
            ("AR2Diff by SUNDAE, N = 2", "best of 2"),
            ("from nothing, equal steps", "best of 2"),
            ("from nothing, equal compute", "best of 2"),
        }
    assert all(0 <= row[name] <= 100 for row in found for name in ("rouge_l", "chrf", "exact"))  # type: ignore[operator]
    budgets = {row["system"]: row["causal_steps"] + row["n"] for row in found}  # type: ignore[operator]
    assert budgets["AR"] == budgets["AR2Diff, N = 4"] == budgets["from nothing, equal compute"] == 8


def test_time_stands_beside_length_and_quality(study: Path) -> None:
    found = rows(study, "speed")
    ways = {(row["way"], row["length"]) for row in found}
    assert ways == {
        ("AR", 4),
        ("AR", 8),
        ("diffusion, 2 steps", 4),
        ("diffusion, 2 steps", 8),
        ("diffusion, 8 steps", 8),
    }
    assert {row["batch"] for row in found} == {None, 1, 2}
    measured = [row for row in found if row["batch"] is None]
    assert len(measured) == len(ways) and all(0 <= row["chrf"] <= 100 for row in measured)  # type: ignore[operator]
    assert all(row["seconds"] > 0 for row in found if row not in measured)  # type: ignore[operator]


def test_the_page_has_every_table_and_figure(study: Path) -> None:
    page = unescape((study / "reports/ar2diff.md").read_text()).replace("\\", "")
    for name in ("equal compute", "SUNDAE", "distilled", "abstract -> title", "greedy", "diffusion, 2 steps", "sticky"):
        assert name in page
    assert "MAUVE" in page and "To the end" in page
    for figure in ("chains", "text", "tasks", "speed"):
        assert f"ar2diff/{figure}.svg" in page
        assert (study / f"reports/ar2diff/{figure}-dark.svg").stat().st_size > 2000


def test_records_of_any_two_fields_will_do_and_those_held_out_are_the_same_for_every_seed(tmp_path: Path) -> None:
    records = [{"question": f"what is {i}", "answer": f"it is {i} or {i + 1}"} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with inside(tmp_path):
        text = tiny("text.file=pairs.jsonl", "text.first=question", "text.second=answer").text
        corpus = Corpus.open(text)
        assert [pair.given for pair in corpus.test] == [f"what is {i}" for i in range(56, 60)]
        assert turned(corpus.test)[0].given == "it is 56 or 57"
        assert len(corpus.train) == 46 and corpus.fingerprint == Corpus.open(text).fingerprint
        texts = corpus.texts(text, text.causal, 0)
        assert next(iter(texts.train_dataloader()))["x_0"].shape == (4, text.length)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("text.second=titel", "no field 'titel'; its fields are"),
        ("text.file=no.jsonl", "no.jsonl"),
        ("text.tested=78", "leave 2 to train on"),
        ("text.vocabulary=40", "text.vocabulary = 40"),
    ],
)
def test_what_makes_no_task_is_told_in_one_line(study: Path, change: str, named: str) -> None:
    with inside(study), pytest.raises(UserError, match=named) as told:
        Corpus.open(tiny(change).text)
    assert "\n" not in str(told.value)


def test_the_random_chain_is_the_same_for_every_seed_and_the_other_has_five_states() -> None:
    chains = tiny().chains
    (one, length), (other, _) = chain_of(chains, "random"), chain_of(chains, "random")
    assert one.transition.equal(other.transition) and (one.states, length) == (3, 4)
    assert chain_of(chains, "sticky")[0].states == 5
