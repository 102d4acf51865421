"""Drawing panels with matplotlib: direct labels, a light and a dark version, the same bytes for the same data."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from gtl_lightning.files import atomic_path
from gtl_lightning.report.document import Spot
from gtl_lightning.report.panels import Panel
from gtl_lightning.report.style import THEMES, Theme
from gtl_lightning.report.words import tip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_WIDTH, PANEL_HEIGHT = 4.7, 3.75  # inches
# Where the axes lie in a panel's box; the room to the right is for the labels of the lines.
LEFT, RIGHT, TOP, BOTTOM = 0.62, 1.18, 0.72, 0.72  # inches; longer labels widen the panel
EDGE = 0.06  # inches from the left edge of a panel to its title
NOTE_HEIGHT = 0.3  # inches
LABEL_SIZE = 10.0  # points
OVERSHOOT = 0.6  # how far an interval may stretch the y axis, as a share of the range of the means
CLIP = 3.0  # a line that would stretch the axis beyond this many times the others' range is shown at the edge


def save_figure(folder: Path, name: str, panels: Sequence[Panel], note: str = "") -> list[Path]:
    """Write `name`.svg, `name`.png and `name`-dark.svg: the panels side by side with a line of note under them."""
    return save_themes(folder, name, lambda theme, kind: render(panels, theme, kind, note))


def save_themes(folder: Path, name: str, draw: Callable[[Theme, str], bytes]) -> list[Path]:
    """Write what `draw`(theme, "svg" or "png") returns as `name`.svg, `name`.png and `name`-dark.svg."""
    written = []
    for theme in THEMES:
        for kind in ("svg", "png") if theme.name == "light" else ("svg",):
            path = folder / f"{name}{'' if theme.name == 'light' else '-dark'}.{kind}"
            with atomic_path(path) as temporary:
                temporary.write_bytes(draw(theme, kind))
            written.append(path)
    return written


def render(panels: Sequence[Panel], theme: Theme, kind: str = "svg", note: str = "") -> bytes:
    """The panels as SVG or PNG bytes. No dates and no random ids: equal data gives equal bytes."""
    with _style(theme):
        return to_bytes(_compose(panels, theme, note)[0], kind)


def spots(panel: Panel) -> tuple[Spot, ...]:
    """Where the points of the panel's picture lie, and what each says."""
    with _style(THEMES[0]):
        return tuple(_compose([panel], THEMES[0])[1])


def _style(theme: Theme) -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(rc_style(theme))


def _compose(panels: Sequence[Panel], theme: Theme, note: str = "") -> tuple[Figure, list[Spot]]:
    from matplotlib.figure import Figure

    foot = NOTE_HEIGHT if note else 0.0
    right = _label_room(panels)
    panel_width = PANEL_WIDTH + right - RIGHT
    width, height = panel_width * len(panels), PANEL_HEIGHT + foot
    figure, found = Figure(figsize=(width, height), facecolor=theme.paper), []
    for index, panel in enumerate(panels):
        box = (
            (index * panel_width + LEFT) / width,
            (BOTTOM + foot) / height,
            (panel_width - LEFT - right) / width,
            (PANEL_HEIGHT - TOP - BOTTOM) / height,
        )
        found += _draw(figure, figure.add_axes(box, facecolor=theme.paper), panel, theme)
    if note:
        figure.text(EDGE / width, 0.1 / height, note, fontsize=8.5, color=theme.muted, ha="left", va="bottom")
    return figure, found


def rc_style(theme: Theme) -> dict[Any, Any]:
    """Matplotlib's settings for a theme; ids in SVG files are a function of their content."""
    return {
        "font.family": "DejaVu Sans",
        "font.size": LABEL_SIZE,
        "svg.hashsalt": "gtl",
        "svg.fonttype": "path",
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
    }


def to_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as SVG or PNG, without the date."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


def _label_room(panels: Sequence[Panel]) -> float:
    labels = [line.label for panel in panels for line in panel.series]
    for panel in panels:
        low, high = _y_range(panel)
        labels += [_off(reference.label, reference.y, low, high) for reference in panel.references]
    longest = max(map(len, labels))
    return max(RIGHT, 0.35 + 0.62 * LABEL_SIZE / 72 * longest)


def _draw(figure: Figure, axes: Axes, panel: Panel, theme: Theme) -> list[Spot]:
    low, high = _y_range(panel)
    _prepare(figure, axes, panel, theme, low, high)
    labels: list[tuple[float, str, str, bool, str]] = []
    found: list[Spot] = []
    for reference in panel.references:
        colour = _pick(reference.colours, theme)
        if low <= reference.y <= high:
            axes.axhline(reference.y, color=colour, linewidth=1.3, dashes=reference.dashes, zorder=2)
        labels.append((reference.y, _off(reference.label, reference.y, low, high), colour, False, ""))
    dodge = _dodge(panel)
    for index, line in enumerate(panel.series):
        colour = _pick(line.colours, theme)
        xs = [_shift(panel, point.x, dodge * (index - (len(panel.series) - 1) / 2)) for point in line.points]
        ys = [point.y for point in line.points]
        z = 5 if line.strong else 4
        if panel.joined:
            axes.plot(xs, ys, color=colour, linewidth=2.6 if line.strong else 1.7, zorder=z, solid_capstyle="round")
        inside = [(x, point) for x, point in zip(xs, line.points, strict=True) if low <= point.y <= high]
        for size in sorted({point.size for _, point in inside}, reverse=True):
            sized = [(x, point.y) for x, point in inside if point.size == size]
            axes.plot(
                [x for x, _ in sized],
                [y for _, y in sized],
                linestyle="none",
                marker=line.marker,
                markersize=(7 if line.strong else 6) * size,
                markerfacecolor=colour,
                markeredgecolor=theme.paper,
                markeredgewidth=1.2,
                zorder=z + 1,
                clip_on=False,
            )
        for x, point in zip(xs, line.points, strict=True):
            if math.isfinite(point.low):
                axes.vlines(x, point.low, point.high, color=colour, linewidth=1.3, alpha=0.75, zorder=3)
            shown = min(max(point.y, low), high)
            if shown != point.y:
                _mark_off_scale(axes, x, point.y > high, colour)
            left, bottom = figure.transFigure.inverted().transform(axes.transData.transform((x, shown)))
            found.append(Spot(100 * float(left), 100 * (1 - float(bottom)), tip(panel, line, point)))
        end = min(line.points, key=lambda p: p.x if panel.reverse_x else -p.x).y
        labels.append((end, _off(line.label, end, low, high), colour, line.strong, "" if panel.joined else line.marker))
    _label(axes, labels, low, high)
    return found


def _prepare(figure: Figure, axes: Axes, panel: Panel, theme: Theme, low: float, high: float) -> None:
    axes.set_ylim(low, high)
    if panel.log_x:
        axes.set_xscale("log")
    xs = [point.x for line in panel.series for point in line.points]
    start, end = (_shift(panel, limit, side) for limit, side in ((min(xs), -0.06), (max(xs), 0.06)))
    axes.set_xlim((end, start) if panel.reverse_x else (start, end))
    axes.minorticks_off()
    if panel.ticks:
        axes.set_xticks([x for x, _ in panel.ticks], [text for _, text in panel.ticks])
    axes.tick_params(length=0, pad=6)
    axes.set_xlabel(panel.x_label, fontsize=9.5, labelpad=4, loc="left")
    if panel.y_ticks:
        axes.set_yticks([y for y, _ in panel.y_ticks], [text for _, text in panel.y_ticks])
    else:
        axes.locator_params(axis="y", nbins=6)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.grid)
    box, (width, height) = axes.get_position(), figure.get_size_inches()
    left = box.x0 - (LEFT - EDGE) / width
    figure.text(left, box.y1 + 0.44 / height, panel.title, fontsize=12.5, fontweight="bold", va="baseline")
    figure.text(left, box.y1 + 0.21 / height, panel.subtitle, fontsize=9.5, color=theme.muted, va="baseline")


def _y_range(panel: Panel) -> tuple[float, float]:
    """Room for all means and for intervals as far as they do not flatten the lines; far-off lines are left outside."""
    if panel.y_range is not None:
        return panel.y_range
    core = [point for line in panel.series if line.core for point in line.points]
    points = core or [point for line in panel.series for point in line.points]
    low, high = min(point.y for point in points), max(point.y for point in points)
    spread = max(high - low, 0.02 * max(abs(high), abs(low)), 1e-6)
    others = [point.y for line in panel.series if not line.core for point in line.points]
    others += [reference.y for reference in panel.references]
    for y in sorted(others, key=lambda y: abs(y - (low + high) / 2)):
        if max(high, y) - min(low, y) <= CLIP * spread:
            low, high = min(low, y), max(high, y)
    spread = max(spread, high - low)
    ends = [end for point in points for end in (point.low, point.high) if math.isfinite(end)]
    low = max(min([low, *ends]), low - OVERSHOOT * spread)
    high = min(max([high, *ends]), high + OVERSHOOT * spread)
    pad = 0.08 * max(high - low, spread)
    return low - pad, high + pad


def _dodge(panel: Panel) -> float:
    """Share of the axis by which neighbouring series step aside, so that their intervals do not hide one another."""
    return 0.014 if len(panel.series) > 1 and any(math.isfinite(p.low) for s in panel.series for p in s.points) else 0.0


def _shift(panel: Panel, x: float, share: float) -> float:
    xs = [point.x for line in panel.series for point in line.points]
    low, high = min(xs), max(xs)
    if not panel.log_x:
        return x + share * ((high - low) or 1.0)
    return x * math.exp(share * (math.log(high / low) or 1.0))


def _label(axes: Axes, labels: list[tuple[float, str, str, bool, str]], low: float, high: float) -> None:
    """Names at the right end of the lines, moved apart where they would overlap, with a hairline back to the line.

    Points that are no line have their marker in its place.
    """
    height = axes.get_window_extent().height / axes.figure.dpi * 72  # points
    gap = 1.25 * LABEL_SIZE / height
    wanted = [min(max((y - low) / (high - low), 0.0), 1.0) for y, *_ in labels]
    for (_, text, colour, strong, marker), at, y in zip(labels, spread_out(wanted, gap), wanted, strict=True):
        xs, ys = ([1.03], [at]) if marker else ([1.0, 1.045], [y, at])
        axes.plot(
            xs, ys, transform=axes.transAxes, color=colour, marker=marker, linewidth=0.8, clip_on=False, alpha=0.7
        )
        weight = "bold" if strong else "normal"
        axes.text(1.06, at, text, transform=axes.transAxes, color=colour, fontweight=weight, va="center_baseline")


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions in the order of `wanted`, at least `gap` apart, within 0 to 1 if they fit, moved as little as possible.

    Neighbours that are too close are pooled into a group, which is centred on the mean of what its members wanted.
    """

    def centre(members: list[int]) -> float:
        half = gap * (len(members) - 1) / 2
        mean = fmean(wanted[i] for i in members)
        return 0.5 if half > 0.5 else min(max(mean, half), 1 - half)

    groups: list[list[int]] = []  # members from low to high
    for index in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        members = [index]
        while groups and centre(members) - centre(groups[-1]) < gap * (len(members) + len(groups[-1])) / 2 - 1e-12:
            members = groups.pop() + members
        groups.append(members)
    placed = [0.0] * len(wanted)
    for members in groups:
        for rank, index in enumerate(members):
            placed[index] = centre(members) + gap * (rank - (len(members) - 1) / 2)
    return placed


def _off(label: str, y: float, low: float, high: float) -> str:
    return label if low <= y <= high else f"{label} {'↑' if y > high else '↓'} {y:.3g}"


def _mark_off_scale(axes: Axes, x: float, above: bool, colour: str) -> None:
    edge = 0.985 if above else 0.015
    marker = "^" if above else "v"
    axes.plot(
        [x], [edge], transform=axes.get_xaxis_transform(), marker=marker, color=colour, markersize=6, linestyle="none"
    )


def _pick(colours: tuple[str, str], theme: Theme) -> str:
    return colours[0] if theme.name == "light" else colours[1]
