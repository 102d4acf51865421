"""What each figure shows, as data: series of points with intervals, reference levels, ticks. figures.py draws it."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from gtl_lightning.report.style import method_colours, method_label, method_markers, missing, order_methods, percent
from gtl_lightning.report.tables import METRICS, half_width, real_value, summarise

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One mean with its interval; `low` and `high` are NaN where no interval is known.

    Of points that are not joined, `place` says what each is, and `size` how large it is drawn.
    """

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    place: str = ""
    size: float = 1.0


@dataclass(frozen=True)
class Series:
    """One line: points by x, colours for the light and the dark page. `core` series decide the range of the y axis."""

    label: str
    points: tuple[Point, ...]
    colours: tuple[str, str]
    marker: str = "o"
    strong: bool = False
    core: bool = True


@dataclass(frozen=True)
class Reference:
    """A horizontal line, drawn where it fits the range of the lines and named at the edge where it does not."""

    label: str
    y: float
    colours: tuple[str, str]
    dashes: tuple[float, float] = (5, 3)


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its title, its lines and its ticks; points are not `joined` where order means nothing."""

    title: str
    subtitle: str
    series: tuple[Series, ...]
    references: tuple[Reference, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    x_label: str = ""
    log_x: bool = False
    reverse_x: bool = False
    y_range: tuple[float, float] | None = None
    y_ticks: tuple[tuple[float, str], ...] = ()
    joined: bool = True


def transfer_panels(
    transfer: Sequence[Row], metrics: Sequence[str] = ("nelbo", "mauve"), strong: Collection[str] = ()
) -> list[Panel]:
    """The headline: each metric against the target fraction, a line for each method, the source as a level.

    The methods in `strong` are drawn bold: those of the comparison that matters, whichever of them wins.
    """
    return [_transfer_panel(transfer, metric, strong) for metric in metrics]


def _transfer_panel(transfer: Sequence[Row], metric: str, strong: Collection[str]) -> Panel:
    about = METRICS[metric]
    methods = {str(row["method"]) for row in transfer}
    colours, markers = method_colours(methods), method_markers(methods)
    rows = [row for row in summarise(transfer) if row["metric"] == metric]
    series, references = [], []
    for method in order_methods(methods):
        points = tuple(
            Point(row["fraction"], row["mean"], _or_nan(row["low"]), _or_nan(row["high"]))
            for row in sorted(rows, key=lambda row: -(row["fraction"] or 0))
            if row["method"] == method and row["fraction"] is not None
        )
        level = [row["mean"] for row in rows if row["method"] == method and row["fraction"] is None]
        if points:
            label = method_label(method)
            core = method != "vanilla"
            series.append(Series(label, points, colours[method], markers[method], method in strong, core))
        elif level:
            references.append(Reference(method_label(method), level[0], colours[method]))
    subtitle = f"{about.unit}, {about.better} is better" if about.unit else f"{about.better} is better"
    references += _real_reference(real_value(transfer, metric))
    fractions = sorted({point.x for line in series for point in line.points}, reverse=True)
    ticks = tuple((fraction, _fraction_tick(transfer, fraction)) for fraction in fractions)
    return Panel(
        about.label, subtitle, tuple(series), tuple(references), ticks, "target data used", log_x=True, reverse_x=True
    )


def ablation_panels(ablation: Sequence[Row], axis: str, transfer: Sequence[Row] = ()) -> list[Panel]:
    """Sampling metrics against gamma or n_ratio (`axis`), a line for each method and fraction. Empty without rows.

    The value of real text comes from `transfer`'s `<metric>_real` columns, where they are given.
    """
    rows = [row for row in ablation if row["axis"] == axis]
    titles = {
        "nelbo_val": ("Guided NELBO, validation", "nats/token, lower is better"),
        "mauve": ("MAUVE", "higher is better"),
        "domain_score": ("Domain score", "by the judge; nearer to real text is better"),
        "reference_ppl": ("Reference perplexity", "nearer to real text is better"),
        "distinct_2": ("Distinct-2", "nearer to real text is better"),
    }
    # Likelihood does not see pruning; times of sampling, measured once each, are no trend: a table holds them.
    wanted = ("nelbo_val", "mauve", "domain_score") if axis == "gamma" else ("mauve", "domain_score")
    panels = []
    for metric in wanted:
        series = _ablation_series(rows, axis, metric)
        if series:
            title, subtitle = titles[metric]
            real = tuple(_real_reference(real_value(transfer, metric)))
            panels.append(_ablation_axis(Panel(title, subtitle, tuple(series), real), axis))
    return panels


def _ablation_series(rows: Sequence[Row], axis: str, metric: str) -> list[Series]:
    keys = {(str(row["method"]), row["fraction"]) for row in rows}
    methods = {method for method, _ in keys}
    colours, markers = method_colours(methods), method_markers(methods)
    series = []
    for method in order_methods(methods):
        fractions = sorted((f for m, f in keys if m == method), key=lambda f: -1.0 if missing(f) else -f)
        for rank, fraction in enumerate(fractions):
            group = [row for row in rows if row["method"] == method and row["fraction"] == fraction]
            points = _means(group, axis, metric)
            if points:
                share = rank / max(len(fractions) - 1, 1)
                shades = (_shade(colours[method][0], 0.45 * share), _shade(colours[method][1], -0.45 * share))
                label = percent(fraction) if len(methods) == 1 else f"{method_label(method)} {percent(fraction)}"
                series.append(Series(label, points, shades, markers[method], rank == 0))
    return series


def _means(rows: Sequence[Row], axis: str, metric: str) -> tuple[Point, ...]:
    by_x: dict[float, list[float]] = {}
    for row in rows:
        if not missing(row.get(metric)) and (axis == "n_ratio" or not missing(row.get(axis))):
            by_x.setdefault(math.inf if missing(row.get(axis)) else float(row[axis]), []).append(float(row[metric]))
    points = []
    for x in sorted(by_x):
        mean, half = fmean(by_x[x]), half_width(by_x[x])
        points.append(Point(x, mean, mean - half, mean + half))
    return tuple(points)


def _ablation_axis(panel: Panel, axis: str) -> Panel:
    """Ticks at the values tried; n_ratio on a log axis, with no pruning as one further step to the right."""
    values = sorted({point.x for line in panel.series for point in line.points})
    if axis == "gamma":
        shown = values if len(values) <= 7 else [v for v in values if v == round(v)] or values
        return replace(panel, ticks=tuple((v, f"{v:g}") for v in shown), x_label="gamma")
    finite = [value for value in values if math.isfinite(value)]
    end = 2 * finite[-1] if finite else 1.0
    series = tuple(
        replace(line, points=tuple(replace(p, x=p.x if math.isfinite(p.x) else end) for p in line.points))
        for line in panel.series
    )
    ticks = [(value, f"{value:g}") for value in finite] + ([(end, "all")] if math.inf in values else [])
    label = "n_ratio (candidates scored)"
    return replace(panel, series=series, ticks=tuple(ticks), x_label=label, log_x=True)


def advisor_panels(advisor: Sequence[Row]) -> list[Panel]:
    """Overlap and calibration by noise level: effective sample size as a share, and expected calibration error."""
    levels = [row for row in advisor if not missing(row.get("level"))]
    base = method_colours({"gtl"})["gtl"]
    fractions = sorted({row["fraction"] for row in levels if not missing(row["fraction"])}, reverse=True)
    panels = []
    for metric, title, subtitle, y_range in (
        ("ess_share", "Effective sample size", "share of the source sample, higher is better", (0.0, 1.0)),
        ("ece", "Calibration error", "of the domain classifier, lower is better", (0.0, math.nan)),
    ):
        series = []
        for rank, fraction in enumerate(fractions):
            share = rank / max(len(fractions) - 1, 1)
            points = _means([row for row in levels if row["fraction"] == fraction], "level", metric)
            if points:
                shades = (_shade(base[0], 0.45 * share), _shade(base[1], -0.45 * share))
                series.append(Series(percent(fraction), points, shades, "o", rank == 0))
        if series:
            xs = sorted({point.x for line in series for point in line.points})
            ticks = tuple((x, f"{x:g}") for x in xs) if len(xs) <= 7 else ()
            top = y_range[1] if math.isfinite(y_range[1]) else 1.15 * max(p.y for s in series for p in s.points) or 1.0
            axis = Panel(title, subtitle, tuple(series), (), ticks, "share masked t, from all masked to clean text")
            panels.append(replace(axis, reverse_x=True, y_range=(y_range[0], top)))
    return panels


def interval_note(transfer: Sequence[Row]) -> str:
    """What the error bars of the headline figure cover, in one sentence."""
    drawn = [row for row in summarise(transfer) if row["metric"] in ("nelbo", "mauve") and row["fraction"] is not None]
    kinds: dict[str | None, Callable[[int, int], str]] = {
        "seeds": lambda low, high: f"Bars: 95 % t-interval over {low if low == high else f'{low} to {high}'} seeds.",
        "own": lambda low, high: (
            "One seed: bars are not over seeds but MAUVE's own interval and 1.96 standard errors of the test NELBO."
        ),
        None: lambda low, high: "Without bar: one seed and no interval of its own.",
    }
    parts = []
    for kind, text in kinds.items():
        sizes = [row["n"] for row in drawn if row["interval"] == kind]
        if sizes:
            parts.append(text(min(sizes), max(sizes)))
    return " ".join(parts)


def _real_reference(value: float) -> list[Reference]:
    return [Reference("real text", value, ("#5f6368", "#a9b0b8"), (1, 2))] if math.isfinite(value) else []


def _fraction_tick(transfer: Sequence[Row], fraction: float) -> str:
    sizes = [row["examples"] for row in transfer if row["fraction"] == fraction and not missing(row.get("examples"))]
    return f"{percent(fraction)}\n{max(sizes):,.0f}" if sizes else percent(fraction)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _shade(colour: str, amount: float) -> str:
    """Lighten (amount > 0) or darken (amount < 0) a hex colour by that share of the way to white or black."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    light += amount * (1 - light) if amount > 0 else amount * light
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, light, saturation))
