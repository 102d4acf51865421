"""What benchmarks are made of: timers, counters, fits; and that the stage leaves its rows and page."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gtl_lightning.bench.page import benchmark_page, benchmark_panels, quality_panels
from gtl_lightning.bench.reference import plain_sample
from gtl_lightning.bench.sampling import MASK, Bench, Case
from gtl_lightning.bench.timing import Times, flops, growth, matrix_rate, paired, peak_memory, quartiles, share_of_rate
from gtl_lightning.errors import UserError
from gtl_lightning.stages import bench
from gtl_lightning.stages.bench import GROUPS, _check, run_bench
from gtl_lightning.workspace.params import Params, configure, validate
from tests.oracle.enumeration import random_laws, total_variation, total_variation_bound

CPU = torch.device("cpu")


def tiny(**changes: object) -> Params:
    values = Params().model_dump(mode="json")
    for network in values["networks"].values():
        network |= {"width": 16, "depth": 1, "heads": 2}
    values["tokenizer"] |= {"vocab_size": 40, "length": 12}
    values["ablation"] |= {"n_ratios": [4]}
    values["bench"] |= {
        "batches": [1, 2],
        "lengths": [6, 12],
        "n_ratios": [2, 8],
        "positions_per_step": [1, 4],
        "blocks": [4],
        "candidates": 3,
        "steps": 2,
        "rounds": 3,
        "seconds": 0.01,
        "train_batch": 4,
        "matrix": 32,
        **changes,
    }
    return validate(values, "test")


def test_paired_calls_alternate_and_ratios_are_taken_within_a_round() -> None:
    order: list[str] = []
    times = paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert order == ["a", "b"] * 4
    assert len(times["a"].seconds) == 3
    fast, slow = Times((1.0, 2.0, 4.0)), Times((2.0, 4.0, 8.0))
    assert slow.over(fast) == (2.0, 2.0, 2.0)
    assert share_of_rate(4 * 2 * 10**3, slow, 10, fast) == pytest.approx(2.0)  # four products in the time of two
    assert fast.median == 2.0
    assert fast.spread == pytest.approx((3.0 - 1.5) / 2 / 2.0)
    assert quartiles([3.0, 1.0, 2.0]) == (1.5, 2.5)


def test_a_group_over_its_budget_ends_after_the_fewest_rounds() -> None:
    assert len(paired({"a": lambda: None}, 9, CPU, budget=0.0)["a"].seconds) == 3


def test_growth_is_the_exponent() -> None:
    xs = [1.0, 2.0, 8.0]
    assert growth(xs, [3 * x**1.7 for x in xs]) == pytest.approx(1.7)
    assert math.isnan(growth([4.0], [1.0]))


def test_quartiles_and_growth_are_those_of_earlier_pages() -> None:
    """Written down before numpy and the standard library computed them."""
    times = Times((0.0713, 0.0698, 0.0741, 0.0702, 0.0935, 0.0711, 0.0699))
    other = Times((0.0611, 0.0607, 0.0659, 0.0601, 0.0688, 0.0612, 0.0605))
    assert quartiles(times.seconds) == pytest.approx((0.07005, 0.0727), rel=1e-14)
    assert times.spread == pytest.approx(0.01863572433192686, rel=1e-12)
    assert times.over(other) == pytest.approx((1.161764705882353, 1.1526447642517734, 1.1674963440637671), rel=1e-14)
    exponent = growth((1, 2, 4, 8, 16), (0.011, 0.019, 0.041, 0.0795, 0.166))
    assert exponent == pytest.approx(0.9896171067260024, rel=1e-12)


@settings(max_examples=50)
@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=9), st.floats(0.1, 10))
def test_quartiles_move_with_the_unit_and_stay_among_the_values(values: list[float], unit: float) -> None:
    first, third = quartiles(values)
    assert min(values) <= first <= third <= max(values)
    assert quartiles([unit * value for value in reversed(values)]) == pytest.approx((unit * first, unit * third))
    assert quartiles(values[:1]) == (values[0], values[0])  # one round


@settings(max_examples=50)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.floats(0.1, 10))
def test_growth_is_the_least_squares_fit_in_any_unit(noise: list[float], unit: float) -> None:
    xs = [1.0, 2.0, 8.0, 16.0]
    ys = [x**1.3 * math.exp(error) for x, error in zip(xs, noise, strict=True)]
    left = [math.log(y) - growth(xs, ys) * math.log(x) for x, y in zip(xs, ys, strict=True)]
    # What a least squares line leaves is orthogonal to x.
    centred = [math.log(x) - math.log(4.0) for x in xs]
    assert sum(u * residual for u, residual in zip(centred, left, strict=True)) == pytest.approx(0.0, abs=1e-12)
    assert growth([unit * x for x in xs], [y / unit for y in ys]) == pytest.approx(growth(xs, ys), abs=1e-9)


def test_flops_of_a_product_and_of_attention() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7
    q = torch.ones(1, 2, 6, 4)
    attend = nn.functional.scaled_dot_product_attention
    assert flops(lambda: attend(q, q, q)) == 2 * 2 * 2 * 6 * 6 * 4


def test_rate_and_peak_memory_are_of_the_right_size() -> None:
    assert 1e6 < matrix_rate(CPU, torch.float32, 64, 3) < 1e15
    peak = peak_memory(lambda: torch.ones(40 << 20, dtype=torch.uint8), CPU)
    assert peak is None or 30 << 20 < peak < 200 << 20


def test_the_plain_reference_has_the_same_law() -> None:
    laws = random_laws(vocab=3, length=2, seed=0)
    n = 1500
    x = plain_sample(
        laws.denoiser,
        laws.sequence_log_ratio,
        prompt=torch.full((n, 2), laws.mask_index),
        mask_index=laws.mask_index,
        n_ratio=3,
        gamma=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert total_variation(x, laws.q, laws) < total_variation_bound(laws.q, n)
    assert total_variation(x, laws.p, laws) > total_variation_bound(laws.p, n)


@pytest.mark.parametrize("case", [Case(k=4), Case(guidance="token", n_ratio=8), Case(guidance="token", block=4)])
def test_a_timed_call_takes_the_stated_steps(case: Case) -> None:
    subject = Bench(tiny(), CPU)
    case = Case(**{**vars(case), "length": 12, "batch": 2})
    steps = []
    subject.denoiser.backbone.register_forward_hook(lambda *_: steps.append(1))
    x = subject.call(case)()
    assert len(steps) == subject.steps(case) == (4 if case.block else 2)
    assert x.shape == (2, 12)
    assert (x != MASK).all()


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_sampling_is_timed_in_the_precision_in_which_the_pipeline_samples(precision: str, dtype: torch.dtype) -> None:
    params = tiny()
    machine = params.machine.model_copy(update={"sampling_precision": precision})
    subject = Bench(params.model_copy(update={"machine": machine}), CPU)
    found: set[torch.dtype] = set()
    subject.denoiser.backbone.blocks[0].up.register_forward_hook(lambda *given: found.add(given[2].dtype))
    subject.call(Case(guidance="token", length=12, n_ratio=8))()
    assert found == {dtype} == {subject.dtype}


def test_operations_do_not_grow_with_the_candidates_and_fall_with_k() -> None:
    """Counted: pruning costs a token ratio nothing, k positions share a pass, a window is cheaper than a pass."""
    subject = Bench(tiny(), CPU)

    def per_step(**options: object) -> float:
        case = Case(**{"length": 12, "guidance": "token", "n_ratio": 8, **options})  # type: ignore[arg-type]
        return flops(subject.call(case)) / subject.steps(case)

    assert per_step(n_ratio=2) == per_step(n_ratio=8)
    assert per_step(k=4) / 4 < 0.5 * per_step()  # of a position
    assert per_step(block=4) < 0.8 * per_step(planner="margin")  # which needs whole passes
    assert per_step(guidance="plain") > 3 * per_step(guidance="none")


def test_bench_leaves_rows_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_bench(tiny(), "gtl bench")
    run_bench(tiny().model_copy(update={"profile": "paper"}), "gtl bench --profile paper")
    rows = json.loads(Path("reports/bench.json").read_text())
    assert {row["profile"] for row in rows} == {"default", "paper"}
    own = [row for row in rows if row["profile"] == "default"]
    assert {row["group"] for row in own} == {*GROUPS, "growth", "machine"}
    run_bench(tiny(), "gtl bench --only k", only=("k",))
    again = [row for row in json.loads(Path("reports/bench.json").read_text()) if row["profile"] == "default"]
    assert len(again) == len(own)
    for group in GROUPS:
        assert ([r for r in again if r["group"] == group] == [r for r in own if r["group"] == group]) == (group != "k")
    sampling = [row for row in own if row["part"] == "sampling" and "spread" in row]
    for row in sampling:
        assert row["seconds_per_step"] > 0
        assert row["gflop_per_step"] > 0
        assert (row["guided_over_unguided"] is None) == (row["guidance"] == "none")
    assert [row["sampling_precision"] for row in rows if row["part"] == "machine"] == ["32-true"] * 2
    assert {row["module"] for row in own if row["part"] == "training"} >= {"source", "ratio", "head", "warm", "planner"}
    beside = {row["module"] for row in own if row["part"] == "training" and row["over_nelbo"]}
    assert beside == {"tcsm-score", "tcsm-distribution", "tcsm-distilled", "tcsm-kept-32"}
    page = Path("docs/benchmarks.md").read_text()
    assert "## Profile default" in page
    assert "## Profile paper" in page
    # The limit is shown for every profile that was measured; that of the operations for the published sizes alone.
    assert page.count("guided over unguided, n\\_ratio") == 2 * len(tiny().bench.n_ratios)
    assert page.count(" counted") >= 2 * (len(tiny().bench.n_ratios) + len(tiny().bench.batches))
    assert page.count("GFLOP a step and sequence") == 1
    assert Path("docs/figures/benchmarks.svg").exists()


def test_times_of_another_machine_do_not_stay_under_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reports").mkdir()
    old = {"profile": "default", "part": "machine", "group": "machine", "hardware": "an old one", "date": "2025-01-01"}
    stale = {"profile": "default", "part": "training", "group": "training", "module": "source"}
    quality = {"profile": "default", "part": "quality", "group": "quality"}
    other = stale | {"profile": "paper"}
    machine = {"part": "machine", "group": "machine", **dict.fromkeys(bench.ALIKE, 1), "hardware": "new", "torch": "2"}
    machine["sampling_precision"] = "32-true"
    same = machine | {"profile": "default"}
    unnoted = {key: value for key, value in same.items() if key != "sampling_precision"}
    half = same | {"sampling_precision": "bf16-mixed"}
    monkeypatch.setattr(bench, "measure", lambda *_: iter([("machine", [machine])]))
    monkeypatch.setattr(bench, "write_page", lambda: None)
    gone, stays = [quality, other], [stale, quality, other]
    for before, kept in ((old, gone), (half, gone), (same, stays), (unnoted, stays)):
        bench.ROWS.write_text(json.dumps([before, stale, quality, other]))
        run_bench(tiny(), "gtl bench --only k", only=("k",))
        rows = json.loads(bench.ROWS.read_text())
        assert rows[:-1] == kept
        assert rows[-1].items() >= {"profile": "default", "hardware": "new"}.items()


def test_of_what_was_not_measured_no_table_is_shown() -> None:
    machine = {"profile": "default", "part": "machine", "hardware": "CPU", "torch": "2", "date": "", "command": ""}
    sizes = ("gflops_fp32", "gflops_bf16", "denoiser_parameters", "ratio_parameters", "vocab_size")
    machine |= {**dict.fromkeys(sizes, 1), "sampling_precision": "bf16-mixed"}
    growth = {"profile": "default", "part": "growth", "axis": "batch", "guidance": "none"}
    page = benchmark_page([machine, growth | {"exponent_seconds": 1, "exponent_flops": 1}])
    assert "1 ids, sampled with products in bf16." in page
    assert "1 ids, fp32." in benchmark_page([machine | {"sampling_precision": "32-true"}])
    assert "**Growth" in page
    assert not any(f"**{caption}" in page for caption in ("Limits", "Steps of the sampler", "Steps of training"))


def test_one_size_alone_draws_no_line_over_sizes() -> None:
    rows = [
        {"profile": "default", "part": "sampling", "group": "batch", "guidance": "none", "batch": batch, "length": 12}
        | {"spread": 0.0, "seconds_per_step": 1.0}
        for batch in (1, 4)
    ]
    machine = {"profile": "default", "part": "machine"}
    assert [panel.title for panel in benchmark_panels([machine, *rows])] == ["A step by batch"]


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(UserError, match="--only speed is no group of benchmarks; choose some of batch, length"):
        run_bench(tiny(), "gtl bench", only=("speed",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"positions_per_step": [13]}, "positions_per_step = 13 exceeds"), ({"blocks": [7]}, "blocks = 7 exceeds")],
)
def test_cases_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check(tiny(**changes))


def test_the_paper_profile_fits() -> None:
    params = configure("paper", profiles=Path(__file__).parents[2] / "profiles")
    _check(params)
    assert params.bench.vocab_size == 30_522


def test_the_page_shows_speed_against_quality() -> None:
    rows = [
        {
            "profile": "arxiv",
            "part": "quality",
            "group": "quality",
            "method": "gtl",
            "fraction": 0.01,
            "gamma": 0.8,
            "k": k,
            "block": block,
            "samples": 64,
            "tokens_per_second": 100.0 * k * (1 + block),
            "reference_nats": 5.0,
            "reference_nats_real": 4.5,
            "nelbo": 4.0 + 0.1 * k,
            "mauve": 0.9 - 0.01 * k,
            "mauve_low": 0.8,
            "mauve_high": 0.95,
            "mauve_real": 0.97,
            "domain_score": 0.9,
        }
        for block in (0, 8)
        for k in (1, 2)
    ]
    panels = quality_panels(rows)
    assert [[point.y for point in line.points] for line in panels[0].series] == [[0.89, 0.88], [0.89, 0.88]]
    assert [line.label for line in panels[1].series] == ["whole passes", "blocks of 8"]
    assert benchmark_panels(rows) == []
    page = benchmark_page(rows, ["speed-quality"])
    assert "| 8 | 2 | 1,800 | 18.00 | 0.880 (0.800 to 0.950) | 5.000 | 4.200 | 0.900 |" in page
    assert "figures/speed-quality.svg" in page
