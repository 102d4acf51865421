"""`gtl scale`: parts that stop by themselves and go on, one folder of one run, and what is refused."""

from __future__ import annotations

import gzip
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gtl_lightning.data.sample import write_sample
from gtl_lightning.errors import UserError
from gtl_lightning.modules.callbacks import Keeper
from gtl_lightning.stages import scale
from gtl_lightning.stages.scale import run_scale
from gtl_lightning.stages.whole import Step, whole
from gtl_lightning.workspace.params import Params, configure, load_params
from tests.pipeline.conftest import tiny

ROOT = Path(__file__).parents[2]
NOW = 1e-9
"""Minutes that are over at once: whatever stops the part, it was its time."""
FAST = ("bench.train_batch=2", "bench.rounds=3", "bench.seconds=0.001", "bench.steps=1", "bench.matrix=32")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A snapshot in plain JSON lines."""
    write_sample(tmp_path / "made", seed=0, source_records=400, target_records=300)
    path = tmp_path / "texts.jsonl"
    path.write_bytes(gzip.decompress((tmp_path / "made" / "snapshot.jsonl.gz").read_bytes()))
    return path


@contextmanager
def unlimited(deadline: float) -> Iterator[None]:
    yield


def stopping(monkeypatch: pytest.MonkeyPatch, checks: int) -> None:
    """The time is up as soon as a training has kept so many checks."""
    keep, seen = Keeper._keep_last, []

    def kept(self: Keeper, trainer: object) -> None:
        keep(self, trainer)  # type: ignore[arg-type]
        seen.append(trainer)
        if len(seen) == checks:
            raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "_keep_last", kept)
    monkeypatch.setattr(scale, "_interrupted_at", unlimited)


def test_a_run_in_parts_goes_on_from_a_checkpoint_and_ends_in_one_folder(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Real steps up to the source denoiser, then speed on shorter texts; the test of `gtl demo` runs all the others."""
    params, folder = tiny(*FAST), tmp_path / "out"

    def first(params: Params, *records: Step) -> list[Step]:
        return whole(params, *records)[:5]

    assert scale.SPEED_LENGTH == 512
    monkeypatch.setattr(scale, "SPEED_LENGTH", 40)
    monkeypatch.setattr(scale, "whole", first)
    with caplog.at_level(logging.INFO), monkeypatch.context() as patch:
        stopping(patch, checks=2)
        assert not run_scale(params, texts, {}, folder, NOW, "gtl scale texts.jsonl out")
    said = [record.getMessage() for record in caplog.records]
    assert said[-2:] == [
        "4 of 6 steps are done; next: the source denoiser, which all that follows starts from",
        "go on with: gtl scale texts.jsonl out",
    ]
    assert Path.cwd() != folder and not (folder / "models" / "source").exists()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run_scale(params, texts, {}, folder, 60.0, "gtl scale texts.jsonl out")
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("resuming from") and line.endswith("step 10") for line in said)
    assert not any("disjoint splits" in line for line in said), "what is done is not done again"
    assert said[-1].startswith("everything is done") and said[-1].endswith(str(folder / "reports"))
    note = json.loads((folder / "scale.json").read_text())
    assert list(note["done"])[1:5] == [what for what, _ in whole(params)[:4]] and list(note["done"])[-1] == "speed"
    assert load_params(folder / "params.yaml") == params
    rows = json.loads((folder / "reports" / "bench.json").read_text())
    (machine,) = (row for row in rows if row["part"] == "machine")
    assert machine["torch"] and machine["hardware"] and machine["gflops_bf16"] > 0
    guided = {row["guidance"]: row for row in rows if row["group"] == "guidance"}
    assert set(guided) == {"none", "token", "head", "warm", "counts"}
    assert all(row["length"] == 40 and row["samples_per_second"] > 0 for row in guided.values())
    assert guided["token"]["guided_over_unguided"] > 0
    assert {row["module"] for row in rows if row["part"] == "training"} >= {"source", "ratio", "warm"}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run_scale(params, texts, {}, folder, 60.0, "gtl scale")
    assert caplog.records[0].getMessage().startswith("everything is done")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """A part of a run whose steps are functions."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("{}\n")
    monkeypatch.setattr(scale, "_measure_speed", lambda *_: None)

    def part(
        *functions: Callable[[], object], minutes: float = 60.0, params: Params | None = None, data: Path = texts
    ) -> bool:
        steps = [(f"step {number}", function) for number, function in enumerate(functions)]
        monkeypatch.setattr(scale, "whole", lambda *_: list(steps))
        return run_scale(params or configure(), data, {}, tmp_path / "out", minutes, "gtl scale texts.jsonl out")

    return part


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_a_person_stops_is_stopped_and_what_the_clock_stops_ends_well(run: Callable[..., bool]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(lambda: None, interrupt)
    done: list[int] = []
    assert run(lambda: done.append(0), lambda: done.append(1)) and done == [1]


def test_the_clock_interrupts_a_step_and_leaves_handlers_as_they_were(run: Callable[..., bool]) -> None:
    def ignoring() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Lightning does
        time.sleep(30)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    assert not run(lambda: None, ignoring, minutes=0.3 / 60)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_part_that_keeps_nothing_says_so(run: Callable[..., bool]) -> None:
    with pytest.raises(UserError, match="nothing of 1e-09 minutes could be kept: 'step 0' takes longer.*--minutes"):
        run(interrupt, minutes=NOW)


def test_a_folder_is_of_one_run(run: Callable[..., bool], tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n{}\n")
    with pytest.raises(UserError, match="nothing of"):
        run(interrupt, minutes=NOW)
    assert not run(lambda: None, interrupt, minutes=NOW, data=other), "a run of which nothing is done binds nobody"
    with pytest.raises(UserError, match=r"out holds another run \(data: .*other.jsonl.*texts.jsonl.*name another"):
        run(lambda: None)
    other.write_text("[]\n{}\n")
    with pytest.raises(UserError, match=r"out holds another run \(data: .*other.jsonl"):
        run(lambda: None, data=other)  # of the same name and size
    other.write_text("{}\n{}\n")
    with pytest.raises(UserError, match=r"out holds another run \(data.min_examples: 16 -> 17 \(and 1 more\)\)"):
        run(lambda: None, params=configure(overrides=("data.seed=1", "data.min_examples=17")), data=other)
    note = tmp_path / "out" / "scale.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"code": "of yesterday"}))
    with pytest.raises(UserError, match=r"out holds another run \(code: of yesterday -> "):
        run(lambda: None, data=other)


def test_every_step_of_a_grid_has_a_name_of_its_own_and_stands_behind_what_it_reads() -> None:
    steps = [what for what, _ in whole(tiny("sweep.seeds=[0, 1]", "sampling.planner=learned"), ("records", interrupt))]
    assert len(set(steps)) == len(steps) and steps[0] == "records"
    for cell in ("gtl on 30 % of the target data, seed 1", "finetune on 100 % of the target data, seed 0"):
        before, after = steps.index(f"{cell}: train"), steps.index(f"{cell}: sample, measure")
        assert steps.index("the learned reveal order") < before < after < steps.index("the report")
    assert "the learned reveal order" not in [what for what, _ in whole(tiny())]


def test_the_profile_for_one_gpu_lies_between_its_neighbours() -> None:
    small, own, large = (configure(name, profiles=ROOT / "profiles") for name in ("arxiv", "gpu", "paper"))
    sizes = [p.networks.denoiser.width**2 * p.networks.denoiser.depth for p in (small, own, large)]
    assert sizes == sorted(sizes) and small.tokenizer.length < own.tokenizer.length < large.tokenizer.length
    assert own.machine.accelerator == "gpu" and own.machine.sampling_precision == "bf16-mixed"
    assert own.tokenizer.name is None and own.evaluation.featurizer == "minilm", "nothing is fetched"


def test_a_text_without_the_fields_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli import main

    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"id": "1"}\n' * 3)
    monkeypatch.setattr(sys, "argv", ["gtl", "scale", "texts.jsonl", "out", "--profile", "default"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert said[-1].startswith("error: ") and "texts.jsonl: none of the first 3 records is usable" in said[-1]
