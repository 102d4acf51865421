"""The study's last stage: reports/tcsm.json, tcsm.md and the figures, of what the others have left (docs/tcsm.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from gtl_lightning.files import write_json, write_text
from gtl_lightning.records import read_records
from gtl_lightning.report.document import Block, Figure, Heading, Table, TableCell, Text, to_markdown
from gtl_lightning.report.figures import save_figure
from gtl_lightning.report.panels import Panel, Point, Series
from gtl_lightning.report.style import number
from gtl_lightning.report.tables import half_width
from gtl_lightning.studies.rows import cell, mean
from gtl_lightning.studies.tcsm.settings import Tcsm
from gtl_lightning.studies.tcsm.study import CHAINS, LAW, TEXT, study
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import REPORTS, log

Row = Mapping[str, Any]
BLUE, ORANGE = ("#0067a5", "#5cb8f0"), ("#c8500a", "#ff8f52")
GREY, GREEN = ("#5f6368", "#a9b0b8"), ("#1b7f4b", "#58c98c")
SHORT = {"tcsm-score": "score", "tcsm-distribution": "distribution", "tcsm-distilled": "distilled"}
PARTS = {
    "objective": "Objective and teacher, to p(x^i | x_t)",
    "target": "Target of a reward, to p_R(x^i | x_t)",
    "preference": "Preference, two tokens, to p_R",
    "reward": "Law of the texts, to p_R",
}
TABLED = ("exact", "approximate", "untouched", "shortcut", "trained", "best of n")


def tcsm_report(settings: Tcsm, params: Params) -> None:
    """reports/tcsm.json, tcsm.md and the figures in reports/tcsm; `params` say where it is tracked.

    Raises:
        UserError: a stage has not run.
    """
    law, chains, text = (read_records(path) for path in (LAW, CHAINS, TEXT))
    write_json(REPORTS / "tcsm.json", [*law, *chains, *text])
    note = f"Bars: 95 % t-interval over {len(settings.seeds)} seeds." if len(settings.seeds) > 1 else "One seed."
    folder = REPORTS / "tcsm"
    written = [
        *save_figure(folder, "text", _text_panels(text), note),
        *save_figure(folder, "chains", [*_example_panels(chains, settings), *_gradient_panels(chains)], note),
        *save_figure(folder, "reward", _reward_panels(law), f"Means over {len(settings.seeds)} laws and rewards."),
    ]
    page = REPORTS / "tcsm.md"
    write_text(page, to_markdown("Target concrete score matching", _blocks(law, chains, text, settings)))
    with study(params).parent() as run:
        run.log_metrics(summary(law, chains, text))
        for path in (page, *written):
            run.log_file(path, "report")
    log.info("tcsm report: %s", page)


def summary(law: Sequence[Row], chains: Sequence[Row], text: Sequence[Row]) -> dict[str, float]:
    """The figures that are tracked, means over seeds."""
    found = {f"tv.{row['part']}.{row['form']}": mean(law, "tv", part=row["part"], form=row["form"])[0] for row in law}
    found |= {f"bits.{row['noise']}.{row['objective']}": mean(text, "bits", **_cell(row))[0] for row in text}
    found["share_of_examples"] = fmean(shares(chains).values())
    return {"".join(c if c.isalnum() or c in "._- " else "_" for c in key): value for key, value in found.items()}


def shares(chains: Sequence[Row]) -> dict[int, float]:
    """Seed -> examples at which distillation is where cross-entropy is at its best, over the examples that took."""
    found = {}
    for seed in dict.fromkeys(row["seed"] for row in chains):
        plain, distilled = (
            [row for row in chains if row["part"] == "examples" and row["seed"] == seed and row["objective"] == name]
            for name in ("cross-entropy", "distillation")
        )
        best = min(plain, key=lambda row: float(row["excess"]))
        reached = [row["examples"] for row in distilled if row["excess"] <= best["excess"]]
        found[seed] = min(reached, default=math.inf) / best["examples"]
    return found


def _blocks(law: Sequence[Row], chains: Sequence[Row], text: Sequence[Row], settings: Tcsm) -> list[Block]:
    share = shares(chains)
    return [
        Text(
            f"Distillation is where cross-entropy ends after {number(fmean(share.values()), 2)} of its examples "
            f"({', '.join(number(one, 2) for one in share.values())} by seed).",
            "lead",
        ),
        Heading("Objective and noise"),
        Figure("tcsm/text.svg", "NELBO by objective and noise", "Characters of abstracts, equal steps.", ()),
        _text_table(text),
        Heading("Distillation"),
        Figure("tcsm/chains.svg", "NELBO by examples, and noise of the gradient", "Markov chains.", ()),
        Heading("Forms and shortcuts"),
        *[_law_table(law, part, title) for part, title in PARTS.items()],
        Heading("Reward"),
        Figure("tcsm/reward.svg", "Reward against drift", "A listed law: every figure is exact.", ()),
        Text(
            f"Seeds {', '.join(map(str, settings.seeds))}; {settings.law.states} tokens, texts of "
            f"{settings.law.length}; a training has {settings.law.steps:,} steps of {settings.law.batch:,} fresh texts."
        ),
    ]


def _cell(row: Row) -> dict[str, Any]:
    return {"noise": row["noise"], "objective": row["objective"]}


def _text_table(text: Sequence[Row]) -> Table:
    cells = list({tuple(_cell(row).values()): row for row in text}.values())
    rows = tuple(
        (
            str(row["noise"]),
            str(row["objective"]),
            cell(mean(text, "bits", **_cell(row)), 3),
            number(mean(text, "seconds", **_cell(row))[0], 1),
        )
        for row in cells
    )
    note = "The NELBO bounds the negative log-likelihood, which the causal model has exactly."
    return Table("Bits per character, held out", ("noise", "objective", "bits", "seconds"), rows, (0, 1), note)


def _law_table(law: Sequence[Row], part: str, title: str) -> Table:
    own = [row for row in law if row["part"] == part and row["kind"] in TABLED]
    earns = part == "reward"
    rows: list[tuple[TableCell | str, ...]] = []
    for form, kind in dict.fromkeys((row["form"], row["kind"]) for row in own):
        where = {"part": part, "form": form}
        cells: list[TableCell | str] = [str(form), str(kind), cell(mean(own, "tv", **where), 4)]
        worst = max((float(row.get("worst", row["tv"])) for row in own if row["form"] == form), default=math.nan)
        cells.append(number(worst, 4))
        if earns:
            off = [row["reward"] / row["reward_wanted"] - 1 for row in own if row["form"] == form]
            cells += [cell(mean(own, "reward", **where), 3), number(100 * max(off, key=abs), 2)]
        rows.append(tuple(cells))
    columns = ("form", "kind", "total variation", "worst", *(("reward", "worst % off p_R's") if earns else ()))
    return Table(title, columns, tuple(rows), (0, 1))


def _text_panels(text: Sequence[Row]) -> list[Panel]:
    order = ("nelbo", *SHORT)
    series = []
    for noise, colours, marker in (("absorbing", BLUE, "o"), ("uniform", ORANGE, "s")):
        points = []
        for x, objective in enumerate(order):
            value, half = mean(text, "bits", noise=noise, objective=objective)
            if math.isfinite(value):
                points.append(Point(x, value, value - half, value + half))
        series.append(Series(noise, tuple(points), colours, marker))
    ticks = tuple((float(x), SHORT.get(name, name)) for x, name in enumerate(order))
    return [Panel("NELBO", "bits per character, held out, lower is better", tuple(series), (), ticks, "objective")]


def _example_panels(chains: Sequence[Row], settings: Tcsm) -> list[Panel]:
    rows = [row for row in chains if row["part"] == "examples"]
    counts = sorted({int(row["examples"]) for row in rows})
    series = []
    for objective, colours, marker in (("cross-entropy", GREY, "s"), ("distillation", BLUE, "o")):
        points = []
        for count in counts:
            value, _ = mean(rows, "excess", objective=objective, examples=count)
            if math.isfinite(value) and value > 0:
                points.append(Point(count, math.log10(value)))
        series.append(Series(objective, tuple(points), colours, marker, objective == "distillation"))
    ends = [point.y for line in series for point in line.points]
    marks = [(math.log10(value), f"{value:g}") for value in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)]
    ticks = tuple((float(count), f"{count:,}") for count in counts[:: max(1, len(counts) // 4)])
    return [
        Panel(
            f"Held-out NELBO, P(stay) {settings.chains.diagonal:g}",
            "nats per sequence above the exact one, log scale",
            tuple(series),
            (),
            ticks,
            "examples, each seen once",
            y_range=(min(ends) - 0.1, max(ends) + 0.1),
            y_ticks=tuple(mark for mark in marks if min(ends) - 0.1 <= mark[0] <= max(ends) + 0.1),
        )
    ]


def _gradient_panels(chains: Sequence[Row]) -> list[Panel]:
    rows = [row for row in chains if row["part"] == "gradients"]
    diagonals = sorted({float(row["diagonal"]) for row in rows})
    seeds = dict.fromkeys(row["seed"] for row in rows)
    points = []
    for diagonal in diagonals:
        ratios = [gradient_ratio(rows, diagonal, seed) for seed in seeds]
        half = half_width(ratios)
        points.append(Point(diagonal, fmean(ratios), fmean(ratios) - half, fmean(ratios) + half))
    ticks = tuple((diagonal, f"{diagonal:g}") for diagonal in diagonals)
    line = Series("distillation", tuple(points), BLUE, "o", True)
    return [Panel("Variance of the gradient", "over cross-entropy's, all weights", (line,), (), ticks, "P(stay)")]


def gradient_ratio(rows: Iterable[Row], diagonal: float, seed: int) -> float:
    """The variance of distillation's gradient over that of cross-entropy's."""
    at = {
        row["objective"]: float(row["variance"])
        for row in rows
        if row.get("diagonal") == diagonal and row["seed"] == seed
    }
    return at["distillation"] / at["cross-entropy"]


def _reward_panels(law: Sequence[Row]) -> list[Panel]:
    series = []
    for kind, label, by, colours, marker in (
        ("frontier", "p_R: guided or trained", "beta", BLUE, "o"),
        ("best of n", "best of n", "n", ORANGE, "s"),
    ):
        own = [row for row in law if row["kind"] == kind]
        points = [
            Point(mean(own, "drift", **{by: value})[0], mean(own, "reward", **{by: value})[0])
            for value in sorted({row[by] for row in own})
        ]
        series.append(Series(label, tuple(sorted(points, key=lambda point: point.x)), colours, marker))
    found = [row for row in law if row["kind"] == "trained"]
    trained = tuple(
        sorted(
            (
                Point(mean(found, "drift", form=form)[0], mean(found, "reward", form=form)[0])
                for form in dict.fromkeys(row["form"] for row in found)
            ),
            key=lambda point: point.x,
        )
    )
    series.append(Series("as trained", trained, GREEN, "D"))
    return [Panel("Reward against drift", "E[R] by KL from p_pre", tuple(series), (), (), "KL from p_pre, nats a text")]
