"""What a cell cost: quality over training time as points, and costs as a table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gtl_lightning.report.document import Group, Table, TableCell
from gtl_lightning.report.panels import Panel, Point, Series
from gtl_lightning.report.sections import axes
from gtl_lightning.report.style import (
    SOURCE,
    count,
    method_colours,
    method_label,
    method_markers,
    missing,
    number,
    percent,
    seconds,
)
from gtl_lightning.report.tables import METRICS, summarise

Row = Mapping[str, Any]
TICKS = tuple(base * 10**power for power in range(-1, 7) for base in (1, 2, 5))  # seconds


def cost_panels(transfer: Sequence[Row], strong: Collection[str] = ()) -> list[Panel]:
    """NELBO and MAUVE over the seconds of training: a point a method and share, unjoined. Empty without times."""
    summary = {(row["method"], row["fraction"], row["metric"]): row for row in summarise(transfer)}
    methods, shares = axes(transfer, [])
    colours, markers = method_colours(set(methods)), method_markers(set(methods))
    panels = []
    for metric in ("nelbo", "mauve"):
        series = []
        for method in methods:
            points = tuple(
                Point(time["mean"], row["mean"], place=percent(share), size=1.4 - 0.6 * rank / len(shares))
                for rank, share in enumerate(shares)
                if (row := summary.get((method, share, metric)))
                and (time := summary.get((method, share, "train_seconds")))
                and time["mean"] > 0
            )
            if points:
                label, bold = method_label(method), method in strong
                series.append(Series(label, points, colours[method], markers[method], bold, method != "vanilla"))
        if series:
            about = METRICS[metric]
            title = f"{about.label} over training time"
            subtitle = f"{about.unit}, {about.better} is better" if about.unit else f"{about.better} is better"
            times = [point.x for line in series for point in line.points]
            ticks = tuple((t, seconds(t).replace(".0", "")) for t in TICKS if min(times) * 0.9 <= t <= max(times) * 1.1)
            panels.append(
                Panel(title, subtitle, tuple(series), (), ticks, "time of training", log_x=True, joined=False)
            )
    return panels


def cost_table(transfer: Sequence[Row]) -> Table:
    """What each cell cost: parameters trained, steps, seconds; means over seeds."""
    summary = {(row["method"], row["fraction"], row["metric"]): row["mean"] for row in summarise(transfer)}
    methods, fractions = axes(transfer, [])
    rows: list[tuple[TableCell | str, ...] | Group] = []
    for method in methods:
        rows.append(Group(method_label(method)))
        for at in [None] if method == SOURCE else fractions:
            value = {key[2]: mean for key, mean in summary.items() if key[:2] == (method, at)}
            if value:
                steps = [count(value.get(key)) for key in ("trainable_parameters", "steps", "best_step")]
                times = [seconds(value.get(key)) for key in ("train_seconds", "sample_seconds")]
                chosen = [number(value.get(key), 2) for key in ("gamma", "sample_gamma", "temperature")]
                share = "any" if at is None else percent(at)
                rows.append((share, *steps, *times, *chosen, count(value.get("n_ratio"))))
    spent = ("Target data", "Parameters trained", "Steps", "Best step", "Training", "Sampling")
    columns = (*spent, "gamma (NELBO)", "gamma (samples)", "Temperature", "n_ratio")
    return Table("Cost of a cell and what validation chose, mean over seeds", columns, tuple(rows))


def time_tables(ablation: Sequence[Row]) -> list[Table]:
    """Seconds of each sampling along n_ratio; single measurements, so a table and no curve. None without times."""
    timed = [row for row in ablation if row["axis"] == "n_ratio" and not missing(row.get("sample_seconds"))]
    if not timed:
        return []
    timed.sort(key=lambda row: math.inf if missing(row.get("n_ratio")) else row["n_ratio"])
    rows = tuple(
        (
            "all" if missing(row.get("n_ratio")) else f"{row['n_ratio']:g}",
            f"{method_label(row['method'])} {percent(row['fraction'])}",
            seconds(row["sample_seconds"]),
        )
        for row in timed
    )
    note = "Each was timed once, beside whatever else ran: differences of some per cent mean nothing."
    return [Table("Time to sample", ("n_ratio", "Ratio", "Time"), rows, (0, 1), note)]
