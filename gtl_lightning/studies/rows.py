"""Means and paired differences over the repetitions of a study, from its flat rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from gtl_lightning.report.document import TableCell
from gtl_lightning.report.panels import Point
from gtl_lightning.report.style import number
from gtl_lightning.report.tables import half_width

Row = Mapping[str, Any]
Mean = tuple[float, float]
"""A mean and the half width of its 95 % t-interval, NaN where there is none."""


def fits(row: Row, where: Mapping[str, Any]) -> bool:
    """Whether a row has these values."""
    return all(row.get(key) == value for key, value in where.items())


def mean(rows: Iterable[Row], metric: str, **where: Any) -> Mean:
    """Over the rows that fit."""
    return _mean([float(row[metric]) for row in rows if fits(row, where)])


def paired(rows: Iterable[Row], metric: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Mean:
    """One less the other, seed by seed; seeds that lack either are left out."""
    rows = list(rows)
    a, b = ({row["seed"]: float(row[metric]) for row in rows if fits(row, where)} for where in (one, other))
    return _mean([a[seed] - b[seed] for seed in a if seed in b])


def cell(found: Mean, digits: int, sign: bool = False) -> TableCell:
    """A mean with its interval; `sign` writes a plus."""
    value, half = found
    plus = "+" if sign and value > 0 else ""
    return TableCell(plus + number(value, digits), f"± {number(half, digits)}" if math.isfinite(half) else "")


def point(x: float, found: Mean) -> Point:
    """A mean with its interval at x."""
    value, half = found
    return Point(x, value, value - half, value + half)


def _mean(values: list[float]) -> Mean:
    return (fmean(values), half_width(values)) if values else (math.nan, math.nan)
