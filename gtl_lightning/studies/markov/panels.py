"""What the figures of the Markov study show, as data: distance against n, calibration, overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from gtl_lightning.report.panels import Panel, Point, Reference, Series
from gtl_lightning.report.style import method_colours, method_label, method_markers, missing
from gtl_lightning.report.tables import half_width

Row = Mapping[str, Any]
ORDER = (
    "gtl-token",
    "gtl-sequence-gkl",
    "gtl-sequence-bce",
    "gtl-sequence-log-mse",
    "gtl-reweighted",
    "classifier",
    "finetune",
    "lora",
    "vanilla",
    "vanilla-local",
    "source",
    "bigram",
)
LINES = ("gtl-token", "gtl-sequence-gkl", "classifier", "finetune", "lora", "vanilla", "vanilla-local", "bigram")
CALIBRATED = ("gtl-token", "gtl-sequence-gkl", "gtl-sequence-bce", "gtl-sequence-log-mse", "classifier")
DECADES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def means(rows: Iterable[Row], metric: str, **where: Any) -> tuple[float, float, int]:
    """(mean, half width of the 95 % t-interval, count) of a metric over the rows that fit; NaN where there is none."""
    fitting = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
    values = [float(row[metric]) for row in fitting if not missing(row.get(metric))]
    if not values:
        return math.nan, math.nan, 0
    return fmean(values), half_width(values), len(values)


def _look() -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Colours and markers, the same in every figure; the token-level ratio is what reports elsewhere call GTL."""
    others = set(ORDER) - {"gtl-token"} | {"gtl"}
    colours, markers = method_colours(others), method_markers(others)
    return colours | {"gtl-token": colours["gtl"]}, markers | {"gtl-token": markers["gtl"]}


def row_kl_panels(rows: Sequence[Row], sizes: Sequence[int]) -> list[Panel]:
    """Row-KL of the samples and KL of the model against n, log scales, a line for each method."""
    methods = {method for method in LINES if any(row["method"] == method for row in rows)}
    colours, markers = _look()
    panels = []
    for metric, title, subtitle in (
        ("row_kl", "Row-KL of the samples", "nats, log scale, lower is better"),
        ("kl", "KL of the model", "nats per sequence, by its conditionals, lower is better"),
    ):
        series = [
            Series(
                method_label(method),
                tuple(_log_point(n, rows, metric, method=method, n=n) for n in sizes),
                colours[method],
                markers[method],
                method == "gtl-token",
            )
            for method in ORDER
            if method in methods
        ]
        panels.append(
            _log_axis(
                Panel(
                    title,
                    subtitle,
                    tuple(series),
                    (),
                    tuple((float(n), f"{n:,}") for n in sizes),
                    "target sequences n",
                    log_x=True,
                )
            )
        )
    return panels


def _log_point(x: float, rows: Iterable[Row], metric: str, **where: Any) -> Point:
    """Mean and interval of log10 of a metric: rates of convergence are straight lines, intervals stay positive."""
    positive = [row for row in rows if not missing(row.get(metric)) and row[metric] > 0]
    logs = [{**row, metric: math.log10(row[metric])} for row in positive]
    mean, half, _ = means(logs, metric, **where)
    return Point(x, mean, mean - half, mean + half)


def _log_axis(panel: Panel) -> Panel:
    """The panel whose y is log10 of something: ticks at 1 and 3 of each decade."""
    ends = [end for line in panel.series for p in line.points for end in (p.y, p.low, p.high) if math.isfinite(end)]
    low, high = min(p.y for line in panel.series for p in line.points), max(ends)
    low = max(min(ends), low - 0.4)
    ticks = tuple((math.log10(v), f"{v:g}") for v in (*DECADES, 10.0, 30.0, 100.0))
    kept = tuple((y, text) for y, text in ticks if low - 0.1 <= y <= high + 0.1)
    return replace(panel, y_range=(low - 0.12, high + 0.12), y_ticks=kept)


def calibration_panels(calibration: Sequence[Row], n: int) -> list[Panel]:
    """Slope and error of the learned log-ratio against the exact one, by share of masked tokens."""
    methods = {method for method in CALIBRATED if any(row["method"] == method for row in calibration)}
    colours, markers = _look()
    levels = sorted({float(row["level"]) for row in calibration})
    panels = []
    for metric, title, subtitle in (
        ("slope", "Slope on the exact log-ratio", "1 is calibrated; below, guidance is too weak at gamma = 1"),
        ("rmse", "Error of the log-ratio", "root mean square, nats, lower is better"),
    ):
        series = []
        for method in ORDER:
            points = []
            for level in levels:
                mean, half, count = means(calibration, metric, method=method, n=n, level=level)
                if count:
                    points.append(Point(level, mean, mean - half, mean + half))
            if method in methods and points:
                series.append(
                    Series(method_label(method), tuple(points), colours[method], markers[method], method == "gtl-token")
                )
        ideal = (Reference("exact", 1.0, ("#5f6368", "#a9b0b8"), (1, 2)),) if metric == "slope" else ()
        ticks = tuple((level, f"{level:g}") for level in levels)
        panels.append(Panel(title, subtitle, tuple(series), ideal, ticks, "share of masked tokens"))
    return panels


OVERLAP_NOTE = (
    "Under each diagonal the advisor's verdict on reweighting (care: caution, poor: poor overlap), given from the "
    "noised classifier before any sampling."
)
FAILED = 0.5
"""Share of the source's row-KL that a failed transfer leaves."""
SHORT = {"go": "go", "caution": "care", "poor overlap": "poor"}


def overlap_panels(overlap: Sequence[Row]) -> list[Panel]:
    """Transfer error, effective sample size and calibration error by the target's diagonal, verdicts under it."""
    diagonals = sorted({float(row["diagonal_target"]) for row in overlap})
    ticks = tuple((d, f"{d:g}\n{verdict(overlap, d)}") for d in diagonals)
    methods = {str(row["method"]) for row in overlap} - {"source"}
    colours, markers = _look()
    error = [
        Series(
            method_label(method),
            tuple(_log_point(d, overlap, "row_kl", method=method, diagonal_target=d) for d in diagonals),
            colours[method],
            markers[method],
            method == "gtl-token",
        )
        for method in ORDER
        if method in methods
    ]
    grey = ("#5f6368", "#a9b0b8")
    source = tuple(_log_point(d, overlap, "row_kl", method="source", diagonal_target=d) for d in diagonals)
    error.append(Series("source", source, grey, "_"))
    blue, orange = ("#0067a5", "#5cb8f0"), ("#c8500a", "#ff8f52")
    shares = [
        Series(
            label,
            tuple(_log_point(d, overlap, key, method="source", diagonal_target=d) for d in diagonals),
            colour,
            mark,
        )
        for label, key, colour, mark in (
            ("half masked", "ess_share", blue, "o"),
            ("half, exact", "ess_share_exact", grey, "s"),
            ("clean", "ess_share_clean", orange, "D"),
        )
    ]
    ece = tuple(Point(d, means(overlap, "ece", method="source", diagonal_target=d)[0]) for d in diagonals)
    axis = {"ticks": ticks, "x_label": "P(stay) in the target; 0.1 in the source"}
    return [
        _log_axis(Panel("Transfer error", "row-KL of the samples, log scale", tuple(error), **axis)),  # type: ignore[arg-type]
        _log_axis(
            Panel("Effective sample size", "share of the source that counts, log scale", tuple(shares), **axis)  # type: ignore[arg-type]
        ),
        Panel(
            "Calibration error",
            "of the noised classifier, half masked",
            (Series("classifier", ece, orange, "D"),),
            **axis,  # type: ignore[arg-type]
        ),
    ]


def verdict(overlap: Sequence[Row], diagonal: float, key: str = "verdict_reweighting") -> str:
    """The verdict at a diagonal; several seeds that differ are all named."""
    found = {str(row[key]) for row in overlap if row["diagonal_target"] == diagonal}
    return "/".join(sorted(SHORT.get(verdict, verdict) for verdict in found))
