"""`gtl reward`: every way is measured, a warning reaches report and tracker, what cannot be is one line."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json
from gtl_lightning.stages.reward import RewardRequest, measure_reward
from gtl_lightning.stages.train import train_source
from gtl_lightning.workspace.rewards import length, readability, reward_of, share_of
from tests.pipeline.conftest import inside, tiny


@pytest.fixture(scope="module")
def workspace(tokenised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tokenised, tmp_path_factory.mktemp("reward") / "workspace"))
    with inside(folder):
        train_source(tiny())
    return folder


def asked(reward: object = length, **changed: object) -> RewardRequest:
    options = {"betas": (0.1, 2.0), "best_of": (2, 8), "samples": 48, "count": 6, "seed": 0, **changed}
    return RewardRequest("length", reward, **options)  # type: ignore[arg-type]


def test_every_way_is_measured_and_the_warning_reaches_report_and_tracker(workspace: Path) -> None:
    with inside(workspace):
        measure_reward(tiny(), asked())
        rows = read_json(Path("reports/reward.json"))
        page = Path("reports/reward.md").read_text()
        client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")  # a client of a relative name is one for all folders
        experiment = client.get_experiment_by_name(tiny().tracking.experiment)
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'reward'")
    ways = [(row["way"], row["strength"]) for row in rows]
    expected = [("untouched", 0), ("guided", 0.1), ("trained", 0.1), ("guided", 2), ("trained", 2)]
    assert ways == [*expected, ("best of n", 2), ("best of n", 8)]
    assert rows[0]["drift"] == 0
    assert all(math.isfinite(row[key]) for row in rows for key in ("reward", "drift", "nelbo"))
    assert {row["texts"] for row in rows} == {6}
    by_n = [row["reward"] for row in rows if row["way"] == "best of n"]
    assert by_n[0] <= by_n[1]
    # Of 48 texts a tenth of a standard deviation leaves few, twice one most.
    strong, weak = (next(row for row in rows if row["strength"] == beta) for beta in (0.1, 2.0))
    assert strong["effective_samples"] < 32 < weak["effective_samples"]
    assert "raise --samples or --beta" in strong["warning"] and "warning" not in weak
    assert strong["warning"] in page.replace("\\", "") and run.data.params["warning"] == strong["warning"]


def test_another_network_is_another_training(workspace: Path, tmp_path: Path) -> None:
    """Heads leave every shape of the weights as it was: only the settings tell the two apart."""

    def states() -> set[str]:
        return {path.name for path in Path(".state").glob("reward*")}

    options = {"betas": (2.0,), "best_of": (2,)}
    with inside(Path(shutil.copytree(workspace, tmp_path / "workspace"))):
        measure_reward(tiny(), asked(**options))
        first = states()
        measure_reward(tiny(), asked(**options))
        assert states() == first, "what is trained already is not trained again"
        measure_reward(tiny("methods.gtl.network={width: 16, depth: 1, heads: 4}"), asked(**options))
        assert {name.partition("-2")[0] for name in states() - first} == {"reward-0-ratio"}


def constant(texts: Sequence[str]) -> list[float]:
    return [1.0] * len(texts)


def nan(texts: Sequence[str]) -> list[float]:
    return [math.nan] * len(texts)


def shape(texts: Sequence[str]) -> torch.Tensor:
    return torch.zeros(len(texts), 2)


def raises(texts: Sequence[str]) -> list[float]:
    raise RuntimeError("no\nmodel")


BAD = {
    "beta": ({"betas": (0.0,)}, "--beta 0.0 is no temperature"),
    "nan beta": ({"betas": (math.nan,)}, "--beta nan is no temperature"),
    "no samples": ({"samples": 0}, "--samples 0 leaves no joint samples"),
    "few samples": ({"samples": 15}, "--samples 15 leaves no joint samples to learn from: a batch has 16"),
    "count": ({"count": 1}, "--count 1"),
    "best of": ({"best_of": (25,)}, "--best-of 25"),
    "best of one": ({"best_of": (1,)}, "--best-of 1"),
    "seed": ({"seed": -1}, "--seed -1"),
    "constant": ({"reward": constant}, "is the same for all 48 texts"),
    "not a number": ({"reward": nan}, "gave nan for text 0"),
    "wrong shape": ({"reward": shape}, r"of shape \[48, 2\] for 48 texts"),
    "raises": ({"reward": raises}, r"the reward \(raises\) failed on 48 texts: RuntimeError: no model"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_is_one_line_and_writes_nothing(bad: str, workspace: Path) -> None:
    changed, message = BAD[bad]
    with inside(workspace):
        before = sorted(Path("reports").rglob("*"))
        with pytest.raises(UserError, match=message) as told:
            measure_reward(tiny(), asked(**changed))
        assert sorted(Path("reports").rglob("*")) == before
    assert "\n" not in str(told.value)


def test_the_shipped_rewards_say_what_they_are() -> None:
    texts = ["The cat sat. The cat ran.", "Incomprehensible internationalisation notwithstanding", "", "12 !"]
    assert length(texts) == [6, 3, 0, 0]
    easy, hard, empty, none = readability(texts)
    assert easy > 100 > 0 > hard and empty == none == 0
    assert easy == pytest.approx(206.835 - 1.015 * 3 - 84.6)
    assert share_of("Cat")(texts) == [2 / 6, 0, 0, 0]
    assert share_of("the cat")(["the cat, the cats, The CAT"]) == [2 / 6]


def test_a_function_of_ones_own_is_run_and_what_is_none_is_told(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def score(texts):\n    return [len(t) for t in texts]\nnumber = 3\n")
    assert reward_of(None, None, f"{own}:score")(["abc"]) == [3]
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    for given, message in (
        ((None, None, None), "give one of --reward, --term and --module"),
        (("length", "word", None), "give one of"),
        (("beauty", None, None), "--reward beauty is unknown; choose one of length, readability"),
        ((None, "  ", None), "--term is empty"),
        ((None, None, str(own)), "write it as FILE:FUNCTION"),
        ((None, None, f"{tmp_path / 'no.py'}:score"), "there is no file"),
        ((None, None, f"{own}:nothing"), "has no function nothing"),
        ((None, None, f"{own}:number"), "has no function number"),
        ((None, None, f"{broken}:score"), "fails: ZeroDivisionError"),
    ):
        with pytest.raises(UserError, match=message) as told:
            reward_of(*given)
        assert "\n" not in str(told.value)
