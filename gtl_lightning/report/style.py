"""How things are named, coloured and written: one place, so that a method looks the same in every figure and table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gtl_lightning.methods import METHODS

DASH = "–"
LAST = 1000  # place of what is no method
MINUS = "−"
SOURCE = "source"
LABELS = {method.name: method.label for method in METHODS.values()} | {
    SOURCE: "source",
    "real": "real target text",
    # Of the study on Markov chains alone.
    "gtl-reweighted": "GTL reweighted",
    "classifier": "classifier alone",
    "vanilla-local": "vanilla, small network",
    "bigram": "bigram counts",
}
MARKERS = {method.name: method.marker for method in METHODS.values() if method.marker} | {SOURCE: "_"}
VARIANT_MARKERS = ("v", "p", "h", "<", ">", "X", "d", "P", "8")
"""No divisor in common with the number of spare hues: a pair of both comes again after 63 methods, not after 7."""

# Okabe and Ito's colour-blind-safe hues, darkened (light page) or brightened (dark page) until text in them reads well.
COLOURS = {method.name: method.colours for method in METHODS.values() if method.colours} | {
    SOURCE: ("#5f6368", "#a9b0b8")
}
VARIANTS_LIGHT = ("#7b3fa0", "#b8437f", "#3b4cc0", "#2b7a86", "#8a3b12", "#5b6b00", "#444444")
VARIANTS_DARK = ("#c79be8", "#f294c2", "#9aa8ff", "#7fd4de", "#e8a37c", "#c6d65a", "#c8c8c8")


@dataclass(frozen=True)
class Theme:
    """Colours of a page: ink, paper and what lies between."""

    name: str
    ink: str
    muted: str
    grid: str
    paper: str


THEMES = (
    Theme("light", "#1c2024", "#62686f", "#e4e7ea", "#ffffff"),
    Theme("dark", "#e8eaed", "#9aa3ad", "#2f353c", "#14171a"),
)


def method_label(method: str) -> str:
    """The name a reader sees: `gtl-sequence-gkl` becomes `GTL sequence gkl`."""
    if method in LABELS:
        return LABELS[method]
    head, _, tail = method.partition("-")
    return f"{LABELS[head]} {tail.replace('-', ' ')}" if head in LABELS and tail else method


def order_methods(methods: set[str]) -> list[str]:
    """Methods in the registry's order, then the source, then whatever else there is; a variant beside its family."""

    def key(method: str) -> tuple[int, str]:
        known = next((name for name in (method, method.partition("-")[0]) if name in METHODS), None)
        return (METHODS[known].place if known else LAST + (method != SOURCE), method)

    return sorted(methods, key=key)


def method_colours(methods: set[str]) -> dict[str, tuple[str, str]]:
    """(light, dark) colour of each method; variants take the spare hues in name order."""
    spare = [method for method in order_methods(methods) if method not in COLOURS]
    colours = {method: COLOURS[method] for method in methods if method in COLOURS}
    for index, method in enumerate(spare):
        slot = index % len(VARIANTS_LIGHT)
        colours[method] = (VARIANTS_LIGHT[slot], VARIANTS_DARK[slot])
    return colours


def method_markers(methods: set[str]) -> dict[str, str]:
    """A marker of each method: with its colour a pair of its own, so that colour is seldom the only difference."""
    spare = [method for method in order_methods(methods) if method not in MARKERS]
    markers = {method: MARKERS[method] for method in methods if method in MARKERS}
    return markers | {method: VARIANT_MARKERS[i % len(VARIANT_MARKERS)] for i, method in enumerate(spare)}


def missing(value: object) -> bool:
    """True for None and for anything that is not a finite number."""
    return not isinstance(value, int | float) or not math.isfinite(value)


def number(value: object, digits: int = 3, sign: bool = False) -> str:
    """A number with fixed decimals, thousands separated, a true minus sign; a dash when there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    rounded = round(float(value), digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    text = f"{rounded:+,.{digits}f}" if sign and rounded else f"{rounded:,.{digits}f}"
    return text.replace("-", MINUS)


def percent(fraction: object) -> str:
    """0.05 as `5 %`, which no line breaks in two; a dash for the source model, which has no fraction."""
    if not isinstance(fraction, int | float) or not math.isfinite(fraction):
        return DASH
    return f"{100 * float(fraction):.6g}\N{NO-BREAK SPACE}%"


def p_text(p: float | None) -> str:
    """A p-value with three decimals, `< 0.001` below them."""
    return DASH if p is None else "< 0.001" if p < 0.001 else number(p)


def count(value: object) -> str:
    """A whole number with thousands separated; a mean over seeds is rounded."""
    return number(value, 0)


def megabytes(value: object) -> str:
    """Bytes in units of a million, three digits at least."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{number(value / 1e6, 0 if value >= 1e8 else 1 if value >= 1e7 else 2)} MB"


def seconds(value: object) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def listing(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""
