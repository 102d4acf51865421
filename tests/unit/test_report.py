"""The report: intervals against closed forms, verdicts at their boundaries, holes in sight, a self-contained page."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtl_lightning.errors import UserError
from gtl_lightning.methods import METHODS
from gtl_lightning.report import Report, paired, summarise, write_report
from gtl_lightning.report.answer import findings, limits, next_command
from gtl_lightning.report.costs import cost_panels, time_tables
from gtl_lightning.report.differences import comparisons, holm, p_value
from gtl_lightning.report.document import Group, Table, TableCell, Text, to_html, to_markdown
from gtl_lightning.report.figures import render, spots, spread_out
from gtl_lightning.report.panels import ablation_panels, interval_note, transfer_panels
from gtl_lightning.report.sections import answer, data_tables, difference_table, result_table
from gtl_lightning.report.style import DASH, THEMES, method_colours, method_markers, number, percent, seconds
from gtl_lightning.report.tables import find_holes, half_width
from gtl_lightning.report.words import describe, numbers, tip

ALL, FEW = percent(1.0), percent(0.05)
RUNS = "http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning"
VOID = {"meta", "img", "source", "br", "link", "hr"}
HOSTILE = "<script>alert('x')</script> & | `code` *star* [a](http://x.example)"


def row(method: str, fraction: float | None, seed: int, nelbo: float | None, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "mauve": 0.5,
        "mauve_low": 0.45,
        "mauve_high": 0.6,
        "mauve_real": 0.9,
        "nelbo_se": 0.01,
        "steps": 100,
    }
    values |= {"examples": None if fraction is None else round(1000 * fraction), "domain_score": 0.4}
    return {"method": method, "fraction": fraction, "seed": seed, "nelbo": nelbo, **values, **more}


def study(seeds: tuple[int, ...] = (0, 1, 2), gain: float = 0.5) -> list[dict[str, Any]]:
    rows = [row("source", None, seed, 6.0 + 0.01 * seed) for seed in seeds]
    for fraction in (1.0, 0.05):
        for seed in seeds:
            noise = 0.3 * seed  # shared by the pair: it must cancel
            rows.append(row("finetune", fraction, seed, 5.0 + noise))
            rows.append(row("gtl", fraction, seed, 5.0 - gain + noise + 0.01 * (seed % 2), mauve=0.7 + 0.01 * seed))
    return rows


def with_costs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cost = {"finetune": (371419, 50.0), "gtl": (77227, 40.0)}
    told = []
    for r in rows:
        weights, spent = cost.get(r["method"], (None, None))
        times = {"train_seconds": spent, "cost_seconds": spent, "sample_seconds": 10.0}
        told.append(r | {"trainable_parameters": weights, **times})
    return told


def write(folder: Path, **changes: Any) -> Report:
    arguments: dict[str, Any] = {
        "transfer": with_costs(study()),
        "ablation": [
            {"axis": axis, "method": "gtl", "fraction": 0.05, "seed": 0, axis: value, "mauve": 0.5, "nelbo_val": 5.0}
            for axis, values in (("gamma", (0.0, 1.0)), ("n_ratio", (8, None)))
            for value in values
        ],
        "advisor": [
            {"fraction": 0.05, "seed": 0, "level": level, "ess_share": 0.5, "ece": 0.1, "sentence": "Go ahead."}
            for level in (0.0, 0.5)
        ],
        "samples": {
            None: {"real": ["real words"], "source": ["source words"]},
            1.0: {"finetune": ["tuned on all"]},
            0.05: {"gtl": [HOSTILE], "finetune": ["tuned words"]},
        },
        "data_summary": {"splits": {"target_test": 1234}, "quarantine": {"not JSON": 3}},
        "provenance": {"kind": "sample", "records": 5000, "sha256": "ab" * 32, "generated": True},
        "settings": {
            "sweep": {"fractions": [1.0, 0.05], "seeds": [0, 1, 2], "baselines": ["finetune"], "ratios": ["gtl"]}
        },
        "notes": ["A note."],
        "warnings": ["models/gtl-0.05-0: the loss reached its bound."],
        "made": {"date": "2026-01-02 03:04 UTC", "commit": "abc123", "command": "gtl report", "runs": RUNS},
    }
    return write_report(folder, **(arguments | changes))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write(tmp_path_factory.mktemp("report"))


def test_how_a_text_came_to_be_is_a_closed_page_within_the_page(tmp_path: Path) -> None:
    """Its own markup ends nothing of the page around it; without one nothing of an earlier run stays."""
    inner = "<!DOCTYPE html><title>a \"page\"</title><script>1 && 2; '</iframe>'</script>"
    written = write(tmp_path, trajectory=inner)
    html, markdown = written.html.read_text(), written.markdown.read_text()
    found: list[dict[str, str | None]] = []

    class Frames(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            if tag == "iframe":
                found.append(dict(attributes))

    Frames().feed(html)
    assert [frame["srcdoc"] for frame in found] == [inner]
    assert found[0]["sandbox"] == "allow-scripts" and '<details class="page">' in html
    assert 'href="#how-a-text-came-to-be"' in html and "](figures/trajectory.html)" in markdown
    assert (tmp_path / "figures" / "trajectory.html").read_text() == inner
    assert "How a text came to be" not in write(tmp_path).html.read_text()
    assert not (tmp_path / "figures" / "trajectory.html").exists()


# Intervals ------------------------------------------------------------------------------------------------------------


def test_two_values_have_the_cauchy_quantile() -> None:
    # One degree of freedom: t = tan(pi (0.975 - 1/2)), s = |a - b| / sqrt 2, so half = t |a - b| / 2.
    assert half_width([1.0, 3.0]) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-9)


def test_three_values_have_the_closed_form_of_two_degrees_of_freedom() -> None:
    # Two degrees of freedom: t_p = (2p - 1) / sqrt(2 p (1 - p)); the values have s = 1.
    expected = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6), st.floats(-10, 10), st.floats(0.1, 10))
def test_an_interval_moves_and_scales_with_its_values(values: list[float], shift: float, scale: float) -> None:
    moved = half_width([scale * value + shift for value in values])
    assert moved == pytest.approx(scale * half_width(values), rel=1e-6, abs=1e-6)


def test_equal_values_have_no_spread_at_all() -> None:
    assert half_width([0.1, 0.1, 0.1]) == 0.0  # 3 * 0.1 / 3 is not 0.1 in floating point
    assert half_width([0.0713, 0.0698, 0.0741]) == pytest.approx(0.005421645969098771, rel=1e-14)  # as before


def test_means_and_spreads_are_the_standard_librarys() -> None:
    package = Path(__file__).parents[2] / "gtl_lightning"
    modules = [
        *(package / "report").glob("*.py"),
        *(package / "bench").glob("*.py"),
        package / "studies/markov/panels.py",
    ]
    own = re.compile(r"\bfsum\(|\bsum\(.*\) / ")
    assert len(modules) > 10 and [path.name for path in modules if own.search(path.read_text())] == []


def test_summary_holds_means_over_seeds_and_says_what_the_interval_covers() -> None:
    found = {(r["method"], r["fraction"], r["metric"]): r for r in summarise(study())}
    cell = found["finetune", 0.05, "nelbo"]
    assert (cell["mean"], cell["n"], cell["interval"]) == (pytest.approx(5.3), 3, "seeds")
    assert cell["high"] - cell["mean"] == pytest.approx(half_width([5.0, 5.3, 5.6]))
    assert found["source", None, "nelbo"]["mean"] == pytest.approx(6.01)


def test_one_seed_gets_its_own_interval_and_no_other() -> None:
    found = {r["metric"]: r for r in summarise([row("gtl", 0.05, 0, 5.0)])}
    assert (found["mauve"]["low"], found["mauve"]["high"], found["mauve"]["interval"]) == (0.45, 0.6, "own")
    assert found["nelbo"]["half_width"] == pytest.approx(0.0196)
    assert found["domain_score"]["interval"] is None and found["domain_score"]["half_width"] is None


def test_absent_values_do_not_count() -> None:
    rows = [
        row("gtl", 0.05, 0, 5.0),
        row("gtl", 0.05, 1, None),
        row("gtl", 0.05, 2, math.nan),
        row("gtl", 0.05, 3, 7.0),
    ]
    cell = next(r for r in summarise(rows) if r["metric"] == "nelbo")
    assert (cell["n"], cell["mean"]) == (2, 6.0)


def test_the_same_cell_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"two rows for method gtl, fraction 0\.05, seed 0"):
        summarise([row("gtl", 0.05, 0, 5.0), row("gtl", 0.05, 0, 5.1)])


# Paired differences ---------------------------------------------------------------------------------------------------


def test_pairing_removes_what_the_seeds_share() -> None:
    pair = paired(study())[1]
    assert pair["mean"] == pytest.approx(-0.5 + 0.01 / 3)
    assert pair["half_width"] == pytest.approx(half_width([0.0, 0.01, 0.0]), rel=1e-6)
    assert pair["verdict"] == "better" and pair["sentence"].startswith(
        "At 5\N{NO-BREAK SPACE}%: GTL better (−0.497 nats/token"
    )


@pytest.mark.parametrize(
    ("metric", "differences", "expected"),
    [
        ("nelbo", (-0.2, -0.2), "better"),
        ("nelbo", (0.2, 0.2), "worse"),
        ("mauve", (0.2, 0.2), "better"),
        ("mauve", (-0.2, -0.2), "worse"),
        ("nelbo", (-0.2, 0.1), "open"),
        ("nelbo", (0.0, 0.0), "open"),  # the interval is the point 0: not excluded
        ("nelbo", (-0.2,), "one seed"),
        ("nelbo", (), "missing"),
    ],
)
def test_verdicts(metric: str, differences: tuple[float, ...], expected: str) -> None:
    rows = [row("finetune", 0.05, 9, 0.5)]
    for seed, difference in enumerate(differences):
        rows.append(row("finetune", 0.05, seed, 1.0) | {metric: 1.0})
        rows.append(row("gtl", 0.05, seed, 1.0) | {metric: 1.0 + difference})
    (pair,) = paired(rows, metric=metric)
    assert (pair["verdict"], pair["n"]) == (expected, len(differences))
    words = {"better": "GTL better", "worse": "fine-tuning better", "open": "not distinguishable"}
    words |= {"one seed": "one seed proves nothing", "missing": "no comparison"}
    assert words[expected] in pair["sentence"]


def test_an_interval_that_just_excludes_zero_is_a_verdict_and_one_that_just_holds_it_is_none() -> None:
    half = half_width([0.0, 1.0, 2.0])
    for offset, expected in ((half + 1e-9, "worse"), (half - 1e-9, "open")):
        rows = [row("finetune", 1.0, seed, 0.0) for seed in range(3)]
        rows += [row("gtl", 1.0, seed, seed - 1.0 + offset) for seed in range(3)]
        assert paired(rows)[0]["verdict"] == expected


def test_only_seeds_of_both_methods_are_compared() -> None:
    rows = [
        row("finetune", 1.0, 0, 5.0),
        row("finetune", 1.0, 1, 5.0),
        row("gtl", 1.0, 1, 4.0),
        row("gtl", 1.0, 2, 1.0),
    ]
    assert (paired(rows)[0]["n"], paired(rows)[0]["mean"]) == (1, -1.0)


def test_the_answer_names_fractions_and_never_concludes_from_one_seed() -> None:
    assert (
        answer(study())[0]
        == f"Held-out target NELBO: GTL is better than fine-tuning at {ALL} and {FEW} of the target data."
    )
    assert answer(study((0,)))[0].startswith("One seed proves nothing")
    assert "nothing to compare" in answer([row("finetune", 1.0, 0, 5.0)])[0]


def test_the_answer_names_every_variant_also_the_one_that_loses() -> None:
    worse = [row("gtl-warm", r["fraction"], r["seed"], r["nelbo"] + 2) for r in study() if r["method"] == "gtl"]
    said = [sentence for sentence in answer(study() + worse) if "NELBO" in sentence]
    assert said == [
        f"Held-out target NELBO: GTL is better than fine-tuning at {ALL} and {FEW} of the target data.",
        f"Held-out target NELBO: fine-tuning is better than GTL warm at {ALL} and {FEW} of the target data.",
    ]


# The first screen ----------------------------------------------------------------------------------------------------


def test_a_share_is_one_sentence_best_method_size_certainty_cost() -> None:
    said = [finding.sentence for finding in findings(with_costs(study()))]
    assert len(said) == 2
    assert said[1] == (
        f"At {FEW} of the data (50 texts) GTL is best: NELBO 4.803 nats/token, 0.497 below fine-tuning (MAUVE 0.710 "
        f"against 0.500); more than chance (95 % interval −0.511 to −0.482, 3 seeds), also after Holm's adjustment for "
        "4 comparisons; it trained 77,227 weights in 40.0 s, fine-tuning 371,419 in 50.0 s."
    )


def test_the_best_is_the_best_of_the_seeds_that_every_method_has() -> None:
    """Without its hardest seed a method's mean would be of other trials than its rival's, and the verdict of pairs."""
    nelbo = {"finetune": (3.5, 3.02, 3.03), "gtl": (3.48, 3.0, 3.012)}
    rows = [row(method, 0.05, seed, value) for method, values in nelbo.items() for seed, value in enumerate(values)]
    for hole in (("finetune", 0), ("gtl", 0)):
        (found,) = findings([one for one in rows if (one["method"], one["seed"]) != hole])
        assert "GTL is best:" in found.best, hole
        assert ", of the seeds that every method has (1 and 2), GTL is best" in found.best
        assert "NELBO 3.006" in found.rest and "0.019 below fine-tuning" in found.rest
    (apart,) = findings([one for one in rows if (one["method"], one["seed"]) in {("finetune", 0), ("gtl", 1)}])
    assert ", of methods that have no seed in common, GTL is best" in apart.best
    (whole,) = findings(rows)
    assert "GTL is best:" in whole.best and "of the seeds" not in whole.best


def test_the_loser_is_compared_as_the_winner_is() -> None:
    lost = findings(with_costs(study(gain=-0.5)))[1]
    assert lost.best.endswith("fine-tuning is best:") and "0.503 below GTL" in lost.rest
    assert "95 % interval −0.518 to −0.489" in lost.rest
    assert lost.compared == findings(study())[1].compared == {"gtl", "finetune"}


def test_the_best_may_be_neither_of_the_two_that_are_compared() -> None:
    lora = [row("lora", 0.05, seed, 1.0) for seed in range(3)]
    said = findings(study() + lora)[1]
    assert "LoRA is best:" in said.best
    assert "GTL, of the guided methods the best, is 0.497 below fine-tuning" in said.rest
    worse = [r | {"nelbo": r["nelbo"] + (9 if r["method"] != "source" else 0)} for r in study()]
    assert "the untouched source is best" in findings(worse)[0].best


def test_a_share_without_a_pair_or_without_results_says_so() -> None:
    (alone,) = findings([row("finetune", 1.0, 0, 5.0)])
    assert "no guided method has a pair with fine-tuning" in alone.rest and alone.compared == frozenset()
    (void,) = findings([row("finetune", 1.0, 0, None)])
    assert "no method has a held-out NELBO" in void.best


def test_one_seed_says_what_it_can_and_cannot_what_next_and_how_long() -> None:
    one = with_costs(study((0,)))
    assert all("one seed, so it may be chance" in finding.rest for finding in findings(one))
    assert "cannot say whether another seed" in limits(one)[0]
    words, command = next_command(one) or ("", "")
    # Two more seeds of two methods at two shares: 2 * 2 * (40 + 10 + 50 + 10) s.
    assert "seeds 0, 1 and 2" in words and "about 7.3 min" in words
    assert command == "gtl configure --set 'sweep.seeds=[0, 1, 2]' && dvc repro report"
    _, whole = next_command(one, repeats=[1]) or ("", "")
    assert whole == "gtl configure --set 'sweep.seeds=[0, 1, 2]' --set 'sweep.repeats=[]' && dvc repro report"
    assert "[0, 1, 7]" in (next_command([r | {"seed": 7} for r in one]) or ("", ""))[1]
    assert (limits(study()), next_command(study())) == ([], None)


def test_the_command_that_follows_is_one_that_configure_takes() -> None:
    from gtl_lightning.workspace.params import configure

    _, command = next_command(study((0,))) or ("", "")
    override = re.findall(r"--set '([^']*)'", command)
    assert configure(overrides=tuple(override)).sweep.seeds == (0, 1, 2)


def test_the_first_screen_stands_before_any_figure_with_warnings(report: Report) -> None:
    for path in (report.markdown, report.html):
        text = path.read_text()
        first = text[: text.index("<img") if path.suffix == ".html" else text.index("![")]
        assert "GTL is best" in first and "models/gtl-0.05-0: the loss reached its bound." in first
    assert report.answer == tuple(finding.sentence for finding in findings(with_costs(study())))


# Holm -----------------------------------------------------------------------------------------------------------------


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == []


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float], alpha: float) -> None:
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] * (len(p_values) - rank) > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_p_is_that_of_the_paired_t_test() -> None:
    from scipy import stats

    ours, theirs = [1.0, 2.0, 4.0], [0.5, 0.25, 3.0]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(differences) / 3
    assert p_value(mean, half_width(differences), 3) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=1e-9)
    assert p_value(half_width(differences), half_width(differences), 3) == pytest.approx(0.05)
    assert (p_value(1.0, 0.0, 3), p_value(0.0, 0.0, 3)) == (0.0, 1.0)


def test_a_verdict_may_hold_alone_and_not_beside_others() -> None:
    rows = [r | {"nelbo": r["nelbo"] + 0.3 * (r["seed"] - 1) * (r["method"] == "gtl")} for r in study(gain=0.8)]
    found = [r for r in comparisons(rows) if r["metric"] == "nelbo"]
    assert [r["verdict"] for r in found] == ["better"] * 2 and [r["verdict_holm"] for r in found] == ["open"] * 2
    table = difference_table(rows)
    assert table.columns[:3] == ("Target data", "Verdict", "Verdict after Holm")
    shown = next(line for line in table.rows if not isinstance(line, Group))
    assert shown[:3] == (ALL, "GTL better", "not distinguishable")
    assert "Verdict after Holm" not in difference_table(study((0,))).columns


# Holes ----------------------------------------------------------------------------------------------------------------


def test_every_cell_of_the_grid_is_present_or_a_hole() -> None:
    rows = [r for r in study() if not (r["method"] == "gtl" and r["seed"] == 1 and r["fraction"] == 0.05)]
    grid = {"methods": ["gtl", "finetune", "lora"], "fractions": [1.0, 0.05], "seeds": [0, 1, 2]}
    holes, cells = find_holes(rows, grid, [{"method": "gtl", "fraction": 0.05, "seed": 1, "cause": "NaN loss"}])
    assert cells == 3 * 2 * 3 + 3
    assert [h["method"] for h in holes] == ["gtl"] + ["lora"] * 6
    assert (holes[0]["cause"], holes[1]["cause"]) == ("NaN loss", "no result")


def test_a_repetition_that_was_not_asked_for_is_no_hole() -> None:
    """`sweep.repeats` by the order of the fractions; what lacks among the others is one."""
    rows = [r for r in study() if r["seed"] == 0 or r["fraction"] in (None, 0.05)]
    grid = {"methods": ["gtl", "finetune"], "fractions": [0.05, 1.0], "seeds": [0, 1, 2], "repeats": [3, 1]}
    assert find_holes(rows, grid) == ([], 3 + 2 * (3 + 1))
    holes, _ = find_holes(rows, {**grid, "repeats": [3, 2]})
    assert [(hole["method"], hole["fraction"], hole["seed"]) for hole in holes] == [
        ("finetune", 1.0, 1),
        ("gtl", 1.0, 1),
    ]
    assert len(find_holes(rows, {**grid, "repeats": []})[0]) == 4


def test_a_missing_cell_is_shown_in_table_and_page(tmp_path: Path) -> None:
    rows = [r for r in study() if not (r["method"] == "gtl" and r["fraction"] == 0.05)]
    table = result_table(rows, "nelbo", {})
    gtl = next(r for r in table.rows if not isinstance(r, Group) and isinstance(r[0], TableCell) and r[0].text == "GTL")
    assert gtl[2] == TableCell(DASH, hole=True)
    written = write(tmp_path, transfer=rows, holes=[{"method": "gtl", "fraction": 0.05, "seed": 2, "cause": "killed"}])
    assert len(written.holes) == 3
    for path in (written.markdown, written.html):
        text = path.read_text()
        assert "3 of 15 cells have no result" in text and "killed" in text and "no comparison" not in text
        assert "no pair of results" in text


# The page -------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks nesting and collects what a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_well_formed_and_needs_nothing_else(report: Report) -> None:
    text = report.html.read_text()
    page = Page(text)
    assert page.open == []
    fetched = {address for address in page.addresses if not address.startswith(("data:image/svg+xml;base64,", "#"))}
    assert fetched == {"https://arxiv.org/abs/2512.10877", RUNS}
    assert "script" not in page.tags and "link" not in page.tags and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_user_text_is_shown_and_never_interpreted(report: Report) -> None:
    assert "<script>alert" not in report.html.read_text()
    assert HOSTILE in Page(report.html.read_text()).words
    markdown = report.markdown.read_text()
    assert "<script>" not in markdown and "[a](http" not in markdown and "&lt;script&gt;" in markdown


def test_table_cells_cannot_break_a_markdown_table() -> None:
    text = to_markdown("T", [Table("c", ("a", "b"), (("x | y\nz", "<b>"),))])
    assert "| x \\| y z | &lt;b&gt; |" in text


def test_links_and_titles_are_escaped() -> None:
    text = to_html('<"T">', [Text("see", link=("a<b", 'https://e.org/"onclick="x'))])
    assert Page(text).open == [] and Page(text).words.count('<"T">') == 2


def test_generated_data_is_announced_before_any_result_and_only_then(report: Report, tmp_path: Path) -> None:
    words = Page(report.html.read_text()).words
    assert words.index("generated sample text") < words.index("Held-out target NELBO")
    assert "generated sample text" in report.markdown.read_text().split("##")[0]
    real = write(tmp_path, provenance={"kind": "import", "generated": False})
    assert "generated sample text" not in real.html.read_text().lower()


def test_both_documents_hold_all_sections_and_the_published_figures_are_marked(report: Report) -> None:
    for path in (report.markdown, report.html):
        text = path.read_text()
        for part in ("Results", "Advisor", "Samples side by side", "Cost", "1,234", "not JSON", "A note.", "Go ahead."):
            assert part in text
        assert text.index("Published, other data set and scale") < text.index("0.719")


class Tags(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_screen_reader_and_a_keyboard_reach_every_table_and_figure(report: Report) -> None:
    text = report.html.read_text()
    tags = Tags(text).found
    frames = [attributes for tag, attributes in tags if attributes.get("role") == "region"]
    assert len(frames) == text.count("<table>") == text.count("<caption>") > 5
    assert all(frame["tabindex"] == "0" and frame["aria-label"] for frame in frames)
    heads = [attributes.get("scope") for tag, attributes in tags if tag == "th"]
    assert {"col", "row", "rowgroup"} == set(heads)
    pictures = [attributes["alt"] or "" for tag, attributes in tags if tag == "img"]
    assert len(set(pictures)) == len(pictures) > 5 and all(" at " in alt for alt in pictures)
    points = [attributes for tag, attributes in tags if "data-tip" in attributes]
    assert points and all(point["aria-hidden"] == "true" for point in points)  # the table under the figure has them


def test_the_verdict_stands_beside_the_share(report: Report) -> None:
    markdown = report.markdown.read_text()
    assert (
        "| Target data | Verdict | Verdict after Holm |" in markdown and "| 5 % | GTL better | GTL better |" in markdown
    )


def test_contents_lead_to_every_section_and_say_what_it_was_made_with(report: Report) -> None:
    tags = Tags(report.html.read_text()).found
    anchors = [attributes["id"] for tag, attributes in tags if tag == "h2"]
    links = [(attributes.get("href") or "")[1:] for tag, attributes in tags if tag == "a"]
    assert len(anchors) > 8 and anchors == [link for link in links if link in anchors]
    for text in (report.markdown.read_text(), report.html.read_text()):
        for part in ("2026-01-02 03:04 UTC", "abc123", "gtl report", RUNS):
            assert part in text
    assert "[Samples side by side](#samples-side-by-side)" in report.markdown.read_text()


def test_texts_are_shown_at_every_share(report: Report) -> None:
    for path in (report.markdown, report.html):
        text = " ".join(path.read_text().split())
        for part in ("real words", "source words", "tuned on all", "tuned words", "Samples at 100 %", "Samples at 5 %"):
            assert part in text


def test_equal_input_gives_equal_bytes(report: Report, tmp_path: Path) -> None:
    again = write(tmp_path)
    for first, second in zip((report.html, *report.figures), (again.html, *again.figures), strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.md"):
        write(tmp_path)


def test_nothing_to_report_is_said_and_stale_figures_go(tmp_path: Path) -> None:
    write(tmp_path)
    empty = write(tmp_path, transfer=[], ablation=[], advisor=[], samples={}, settings={})
    assert empty.figures == () and not list((tmp_path / "figures").iterdir())
    assert "there are no rows for it" in empty.markdown.read_text()


# Figures --------------------------------------------------------------------------------------------------------------


def test_figures_exist_in_two_formats_and_two_themes(report: Report) -> None:
    names = {path.name for path in report.figures}
    expected = {
        f"{name}{end}"
        for name in ("headline", "cost", "gamma", "n_ratio", "advisor")
        for end in (".svg", ".png", "-dark.svg")
    }
    assert names == expected
    for path in report.figures:
        data = path.read_bytes()
        assert len(data) > 8000
        assert data.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
        assert path.suffix == ".png" or not re.search(rb'(?:href|src)="https?:', data)
    markdown = report.markdown.read_text()
    assert "](figures/headline.svg)" in markdown


def test_the_headline_draws_what_the_summary_says() -> None:
    nelbo, mauve = transfer_panels(study())
    gtl = nelbo.series[0]
    assert (gtl.label, gtl.strong, [point.x for point in gtl.points]) == ("GTL", False, [1.0, 0.05])
    assert gtl.points[1].y == pytest.approx(4.8 + 0.01 / 3)
    assert [reference.label for reference in nelbo.references] == ["source"]
    assert [reference.label for reference in mauve.references] == ["source", "real text"]
    assert nelbo.reverse_x and nelbo.log_x and nelbo.ticks[1][1] == "5\N{NO-BREAK SPACE}%\n50"


def test_bars_say_what_they_cover() -> None:
    assert interval_note(study()) == "Bars: 95 % t-interval over 3 seeds."
    assert "not over seeds" in interval_note(study((0,)))


def test_a_far_off_line_leaves_the_others_room_and_is_named() -> None:
    rows = study() + [row("vanilla", fraction, seed, 50.0) for fraction in (1.0, 0.05) for seed in range(3)]
    (panel,) = transfer_panels(rows, ("nelbo",))
    from gtl_lightning.report.figures import _off, _y_range

    low, high = _y_range(panel)
    assert high < 10
    assert _off("vanilla", 50.0, low, high) == "vanilla ↑ 50"


def test_no_pruning_is_the_last_tick() -> None:
    rows = [
        {"axis": "n_ratio", "method": "gtl", "fraction": 0.05, "seed": 0, "n_ratio": n, "mauve": 0.5} for n in (None, 8)
    ]
    (panel,) = ablation_panels(rows, "n_ratio")
    assert panel.ticks == ((8.0, "8"), (16.0, "all"))


@pytest.mark.parametrize("rows", [[row("gtl", 0.05, 0, 5.0)], [row("gtl", 0.05, 0, 0.0, mauve=None)]])
def test_a_single_point_can_be_drawn(rows: list[dict[str, Any]]) -> None:
    panels = [panel for panel in transfer_panels(rows) if panel.series]
    assert len(render(panels, THEMES[0], "png")) > 4000


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_labels_never_overlap_keep_their_order_and_stay_inside(wanted: list[float]) -> None:
    gap = 0.1
    placed = spread_out(wanted, gap)
    order = sorted(range(len(wanted)), key=lambda i: (placed[i], i))
    assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in pairwise(order))
    assert all(wanted[a] <= wanted[b] for a, b in pairwise(order))
    assert min(placed) >= -1e-9 and max(placed) <= 1 + 1e-9
    apart = all(abs(a - b) >= gap for i, a in enumerate(wanted) for b in wanted[:i])
    assert not apart or placed == pytest.approx(wanted)


def test_methods_differ_in_colour_and_marker() -> None:
    methods = {"gtl", "finetune", "lora", "vanilla", "source", "gtl-sequence-gkl", "gtl-sequence-bce"}
    for theme in (0, 1):
        assert len({colours[theme] for colours in method_colours(methods).values()}) == len(methods)
    assert len(set(method_markers(methods).values())) == len(methods)
    assert method_colours({"gtl"})["gtl"] == method_colours(methods)["gtl"]


def test_no_two_methods_look_the_same() -> None:
    """A figure of all of them has a point a method: colour and marker together say which."""
    methods = set(METHODS) | {"source"}
    colours, markers = method_colours(methods), method_markers(methods)
    assert len({(colours[method], markers[method]) for method in methods}) == len(methods)


@pytest.mark.parametrize("theme", [0, 1])
def test_coloured_text_is_readable_on_its_page(theme: int) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    methods = {"gtl", "finetune", "lora", "vanilla", "source", *(f"gtl-{i}" for i in range(7))}
    paper = luminance(THEMES[theme].paper)
    for colours in method_colours(methods).values():
        low, high = sorted((paper, luminance(colours[theme])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colours  # WCAG AA


def test_the_two_that_are_compared_are_bold_whichever_wins() -> None:
    more = [*study(), *(row("lora", share, seed, 7.0) for share in (1.0, 0.05) for seed in range(3))]
    for rows in (more, [r | {"nelbo": 10 - r["nelbo"]} for r in more]):
        strong = frozenset().union(*(finding.compared for finding in findings(rows)))
        panels = [*transfer_panels(rows, strong=strong), *cost_panels(with_costs(rows), strong)]
        assert len(panels) == 4
        for panel in panels:
            assert {line.label for line in panel.series if line.strong} == {"GTL", "fine-tuning"}


def test_cost_against_quality_is_a_point_a_method_and_share() -> None:
    nelbo, mauve = cost_panels(with_costs(study()))
    assert not nelbo.joined and nelbo.log_x
    for panel, low in ((nelbo, 4.803), (mauve, 0.71)):
        found = {(line.label, point.place): (point.x, point.y) for line in panel.series for point in line.points}
        assert set(found) == {(method, share) for method in ("GTL", "fine-tuning") for share in (ALL, FEW)}
        assert found["GTL", FEW] == (40.0, pytest.approx(low, abs=1e-3))
    assert cost_panels(study()) == []  # no times


def test_times_of_sampling_are_a_table_and_no_line() -> None:
    rows = [
        {
            "axis": "n_ratio",
            "method": "gtl",
            "fraction": 0.05,
            "seed": 0,
            "n_ratio": n,
            "mauve": 0.5,
            "sample_seconds": s,
        }
        for n, s in ((None, 3.0), (8, 2.0))
    ]
    assert [panel.title for panel in ablation_panels(rows, "n_ratio")] == ["MAUVE"]
    (table,) = time_tables(rows)
    assert [line[0] for line in table.rows if not isinstance(line, Group)] == ["8", "all"]
    assert time_tables([]) == []


def test_every_point_says_what_it_is_where_it_is_drawn() -> None:
    panel = transfer_panels(study())[0]
    found = spots(panel)
    points = [point for line in panel.series for point in line.points]
    assert len(found) == len(points) and all(0 < spot.left < 100 and 0 < spot.top < 100 for spot in found)
    assert found[1].text == f"GTL, {FEW}, 50: 4.803 ({number(points[1].low)} to {number(points[1].high)})"
    # The x axis runs from much to little data, the y axis upwards.
    by_place = dict(zip([(line.label, p.x) for line in panel.series for p in line.points], found, strict=True))
    assert by_place["GTL", 1.0].left < by_place["GTL", 0.05].left
    assert by_place["GTL", 0.05].top > by_place["fine-tuning", 0.05].top


def test_a_picture_in_words_and_its_numbers_as_a_table() -> None:
    panels = transfer_panels(study())
    assert f"GTL 4.803 at {ALL}, 1,000, 4.803 at {FEW}, 50" in describe(panels[0])
    assert "source 6.010 throughout" in describe(panels[0])
    table = numbers(panels, "c")
    points = sum(len(line.points) for line in panels[0].series)
    assert len(table.rows) == points and len(table.columns) == 4 and table.folded
    (timed, *_) = cost_panels(with_costs(study()))
    assert tip(timed, timed.series[0], timed.series[0].points[0]) == f"GTL, {ALL}, 40.0 s: 4.803"


# Numbers --------------------------------------------------------------------------------------------------------------


def test_numbers_as_a_reader_expects_them() -> None:
    assert [number(None), number(math.nan), number("x"), percent(None), seconds(None)] == [DASH] * 5
    assert number(-0.0001) == "0.000" and number(-1234.5, 1) == "−1,234.5" and number(0.5, 2, sign=True) == "+0.50"
    assert (percent(1.0), percent(0.05), percent(0.005), percent(0.07)) == tuple(
        f"{share}\N{NO-BREAK SPACE}%" for share in ("100", "5", "0.5", "7")
    )
    assert (seconds(3.21), seconds(600), seconds(7200)) == ("3.2 s", "10.0 min", "2.0 h")


def test_data_counts_of_any_depth_become_tables() -> None:
    summary = {"records": 9, "splits": {"a": {"cs": 1, "math": 2}, "b": {"cs": 3}}, "quarantine": {}}
    tables = {table.caption: table for table in data_tables(summary)}
    assert tables["Splits"].rows == (("a", "1", "2"), ("b", "3", DASH))
    assert tables["Quarantine"].rows == (("none", "0"),)
    assert tables["Counts"].rows == (("records", "9"),)
