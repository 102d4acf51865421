"""What a cell cost: quality over what training takes as points, and costs as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from gtl_lightning.report.document import Group, Table, TableCell
from gtl_lightning.report.panels import Panel, Point, Series
from gtl_lightning.report.sections import axes
from gtl_lightning.report.style import (
    DASH,
    SOURCE,
    count,
    megabytes,
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
Shown = Callable[[Mapping[str, float]], str]
"""Means of a cell, by metric -> a column."""
TICKS = tuple(base * 10**power for power in range(-1, 7) for base in (1, 2, 5))  # seconds


def cost_panels(transfer: Sequence[Row], strong: Collection[str] = ()) -> list[Panel]:
    """NELBO and MAUVE over `cost_seconds`: a point a method and share, unjoined. Empty without times."""
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
                and (time := summary.get((method, share, "cost_seconds")))
                and time["mean"] > 0
            )
            if points:
                label, bold = method_label(method), method in strong
                series.append(Series(label, points, colours[method], markers[method], bold, method != "vanilla"))
        if series:
            about = METRICS[metric]
            title = f"{about.label} over what training takes"
            subtitle = f"{about.unit}, {about.better} is better" if about.unit else f"{about.better} is better"
            times = [point.x for line in series for point in line.points]
            ticks = tuple((t, seconds(t).replace(".0", "")) for t in TICKS if min(times) * 0.9 <= t <= max(times) * 1.1)
            panels.append(
                Panel(
                    title,
                    subtitle,
                    tuple(series),
                    (),
                    ticks,
                    "training, with what it needs",
                    log_x=True,
                    joined=False,
                )
            )
    return panels


def cost_tables(transfer: Sequence[Row]) -> list[Table]:
    """What each cell cost, and what validation chose for it; means over seeds."""
    taken = {
        "Parameters trained": lambda value: count(value.get("trainable_parameters")),
        "Kept per domain": lambda value: megabytes(value.get("kept_bytes")),
        "Training": lambda value: seconds(value.get("cost_seconds")),
        "of it fits": lambda value: seconds(value.get("fit_seconds")),
        "preparing texts": lambda value: seconds(value.get("prepare_seconds")),
        "networks it reads": lambda value: seconds(value.get("needs_seconds")),
        "Peak memory": lambda value: megabytes(value.get("peak_bytes")),
        "Passes a text": lambda value: number(value.get("denoiser_passes"), 1),
        "of the ratio": lambda value: number(value.get("ratio_passes"), 1),
        "Training, by the clock": lambda value: seconds(value.get("train_seconds")),
        "Sampling, by the clock": lambda value: seconds(value.get("sample_seconds")),
    }
    note = (
        "Kept per domain: the trained weights, which have to be stored beside the source. Training: seconds of the "
        "processor, all threads (by the clock on a GPU); all learning rates, members and variants that were tried "
        "count. Networks it reads: a classifier for borrowed texts, a fine-tuned denoiser to be guided. Such a network "
        "is trained once for a share and a seed, and every method that reads it is charged for it whole. Peak memory: "
        "by how much the fits raised the memory in use. Passes: of the denoiser and, beside them, of the ratio's own "
        "encoder, for one text of mean length."
    )
    chosen = {
        "Learning rate": lambda value: DASH if missing(value.get("lr")) else f"{float(value['lr']):g}",
        "Steps": lambda value: count(value.get("steps")),
        "Best step": lambda value: count(value.get("best_step")),
        "gamma (NELBO)": lambda value: number(value.get("gamma"), 2),
        "gamma (samples)": lambda value: number(value.get("sample_gamma"), 2),
        "Temperature": lambda value: number(value.get("temperature"), 2),
        "n_ratio": lambda value: count(value.get("n_ratio")),
    }
    return [
        _of_cells(transfer, "Cost of a cell, mean over seeds", taken, note),
        _of_cells(transfer, "What validation chose, mean over seeds", chosen, "Steps are those of all fits."),
    ]


def _of_cells(transfer: Sequence[Row], caption: str, columns: Mapping[str, Shown], note: str) -> Table:
    """A row for every method and share, under the method's name."""
    summary = {(row["method"], row["fraction"], row["metric"]): row["mean"] for row in summarise(transfer)}
    methods, fractions = axes(transfer, [])
    rows: list[tuple[TableCell | str, ...] | Group] = []
    for method in methods:
        rows.append(Group(method_label(method)))
        for at in [None] if method == SOURCE else fractions:
            value = {key[2]: mean for key, mean in summary.items() if key[:2] == (method, at)}
            if value:
                share = "any" if at is None else percent(at)
                rows.append((share, *(shown(value) for shown in columns.values())))
    return Table(caption, ("Target data", *columns), tuple(rows), note=note)


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
