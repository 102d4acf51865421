"""What the study's figures show, as data (docs/ar2diff-study.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gtl_lightning.report.panels import Panel, Point, Reference, Series
from gtl_lightning.studies.rows import mean, point

Row = Mapping[str, Any]
BLUE, ORANGE = ("#0067a5", "#5cb8f0"), ("#c8500a", "#ff8f52")
GREY, GREEN = ("#5f6368", "#a9b0b8"), ("#1b7f4b", "#58c98c")
STEP_COLOURS = (BLUE, ORANGE, GREEN, ("#7b4fa3", "#b78ee0"), ("#a3223c", "#ef7087"))
MARKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
LEAST = 1e-3
"""Gaps below it, which noise may take below 0, are drawn there."""


def curve_panels(text: Sequence[Row]) -> list[Panel]:
    """NELBO by steps of diffusion, and by all steps, the causal model's counted."""
    curve = [row for row in text if row["part"] == "curve"]
    causal = [row for row in text if row["part"] == "causal"]
    first = min((row["n"] for row in causal), default=0)
    panels = []
    for title, x_label, counted in (
        ("Equal steps of diffusion", "N", False),
        ("Equal compute", "all steps, the causal model's counted", True),
    ):
        series = []
        for start, colours, marker in (("AR2Diff", BLUE, "o"), ("from nothing", ORANGE, "s")):
            own = [row for row in curve if row["start"] == start and row["n"]]
            steps = sorted({(row["n"], row["causal_steps"]) for row in own})
            points = tuple(
                point(n + (before if counted else 0), mean(own, "nats", n=n, causal_steps=before))
                for n, before in steps
                if counted or n <= max(row["n"] for row in curve if row["start"] == "AR2Diff")
            )
            series.append(Series(start, points, colours, marker, start == "AR2Diff"))
        level = Reference("causal model", mean(causal, "nats", n=first)[0], GREY)
        panels.append(Panel(title, "held-out nats per token, lower is better", tuple(series), (level,), (), x_label))
    return panels


def chain_panels(chains: Sequence[Row]) -> list[Panel]:
    """The gap to the entropy by N, on a logarithmic scale."""
    panels = []
    for name, title in (("random", "A random transition matrix"), ("sticky", "Five states that stay")):
        series = []
        for start, colours, marker in (("AR2Diff", BLUE, "o"), ("from nothing", ORANGE, "s")):
            for shift in (True, False):
                own = [
                    row
                    for row in chains
                    if row["chain"] == name and row["start"] == start and row["shift"] == shift and row["n"]
                ]
                points = tuple(
                    Point(n, math.log10(max(LEAST, mean(own, "gap", n=n)[0])))
                    for n in sorted({int(row["n"]) for row in own})
                )
                label = f"{start}, {'shifted' if shift else 'not shifted'}"
                shade = colours if shift else (GREEN if start == "AR2Diff" else GREY)
                series.append(Series(label, points, shade, marker, shift and start == "AR2Diff"))
        ends = [one.y for line in series for one in line.points] or [0.0]
        marks = [(math.log10(value), f"{value:g}") for value in MARKS]
        low, high = min(ends) - 0.1, max(ends) + 0.1
        panels.append(
            Panel(
                title,
                "nats per token above the entropy, log scale",
                tuple(series),
                (),
                (),
                "N",
                y_range=(low, high),
                y_ticks=tuple(mark for mark in marks if low <= mark[0] <= high),
            )
        )
    return panels


def systems_of(text: Sequence[Row]) -> list[str]:
    """What the tasks were given to, the causal model first."""
    found = dict.fromkeys(str(row["system"]) for row in text if row["part"] == "task")
    return sorted(found, key=lambda system: system != "AR")


def task_panels(text: Sequence[Row]) -> list[Panel]:
    """chrF of each system, a panel a task, the way of writing that re-ranks."""
    own = [row for row in text if row["part"] == "task" and row["way"] != "greedy"]
    systems = systems_of(text)
    panels = []
    for task in dict.fromkeys(row["task"] for row in own):
        series = []
        for metric, label, colours, marker in (("chrf", "chrF", BLUE, "o"), ("rouge_l", "ROUGE-L", ORANGE, "s")):
            points = tuple(point(x, mean(own, metric, task=task, system=system)) for x, system in enumerate(systems))
            series.append(Series(label, points, colours, marker))
        ticks = tuple((float(x), str(x + 1)) for x in range(len(systems)))
        panels.append(Panel(str(task), "higher is better", tuple(series), (), ticks, "system", joined=False))
    return panels


def speed_panels(speed: Sequence[Row]) -> list[Panel]:
    """Milliseconds a text by length for each number of texts together; chrF by length."""
    batches = sorted({row["batch"] for row in speed if row["batch"] is not None})
    lengths = sorted({int(row["length"]) for row in speed})
    ways = list(dict.fromkeys(row["way"] for row in speed))
    ticks = tuple((float(length), str(length)) for length in lengths)

    def lines(metric: str, batch: int | None, scale: float) -> tuple[Series, ...]:
        found = []
        for way, colours in zip(ways, (GREY, *STEP_COLOURS * len(ways)), strict=False):
            own = [row for row in speed if row["way"] == way and row["batch"] == batch]
            points = tuple(Point(row["length"], scale * row[metric]) for row in own)
            found.append(Series(str(way), points, colours, "s" if way == "AR" else "o", way == "AR"))
        return tuple(found)

    panels = [
        Panel(f"{batch} together", "ms a text", lines("seconds", batch, 1000 / batch), (), ticks, "tokens")
        for batch in batches
    ]
    return [*panels, Panel("Quality", "chrF, higher is better", lines("chrf", None, 1.0), (), ticks, "tokens")]
