"""A figure in words: what a point says when it is pointed at, what a picture shows, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gtl_lightning.report.document import Table, TableCell
from gtl_lightning.report.panels import Panel, Point, Series
from gtl_lightning.report.style import DASH, number, seconds


def tip(panel: Panel, line: Series, point: Point) -> str:
    """For example `GTL, 5 %, 240: 3.121 (3.094 to 3.147)`."""
    return f"{line.label}, {place(panel, point)}: {value(point)}{_ends(point)}"


def describe(panel: Panel) -> str:
    """What a picture shows, for those who do not see it: axes, each line's ends, levels."""
    parts = []
    for line in panel.series:
        first, last = line.points[0], line.points[-1]
        ends = f"{value(first)} at {place(panel, first)}"
        if last is not first:
            ends += f", {value(last)} at {place(panel, last)}"
        parts.append(f"{line.label} {ends}")
    parts += [f"{reference.label} {number(reference.y)} throughout" for reference in panel.references]
    return f"{panel.title}, {panel.subtitle}, by {panel.x_label}: {'; '.join(parts)}."


def numbers(panels: Sequence[Panel], caption: str) -> Table:
    """Every point of the panels: a row for each line and place, a column for each panel."""
    found = {
        (panel.title, line.label, place(panel, point)): point
        for panel in panels
        for line in panel.series
        for point in line.points
    }
    rows: list[tuple[TableCell | str, ...]] = []
    for label, where in dict.fromkeys((label, where) for _, label, where in found):
        points = [found.get((panel.title, label, where)) for panel in panels]
        cells = [TableCell(value(p), _ends(p).strip(" ()")) if p else TableCell(DASH) for p in points]
        rows.append((label, where, *cells))
    columns = ("Line", panels[0].x_label, *(f"{panel.title} ({panel.subtitle})" for panel in panels))
    return Table(caption, columns, tuple(rows), (0, 1), folded=True)


def place(panel: Panel, point: Point) -> str:
    """Where a point stands on the x axis, as its tick says it; of points that are not joined, share and seconds."""
    if point.place:
        return f"{point.place}, {seconds(point.x)}"
    return dict(panel.ticks).get(point.x, f"{point.x:g}").replace("\n", ", ")


def value(point: Point) -> str:
    """A point's height."""
    return number(point.y)


def _ends(point: Point) -> str:
    return f" ({number(point.low)} to {number(point.high)})" if math.isfinite(point.low) else ""
