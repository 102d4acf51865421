"""The page of `gtl reward`: what each way of asking for more of a reward gains, and how far it drifts."""

from __future__ import annotations

from typing import Any

from gtl_lightning.report.document import Block, Figure, Table, Text
from gtl_lightning.report.panels import Panel, Point, Series
from gtl_lightning.report.style import number

Row = dict[str, Any]
WAYS = {"guided": ("#0067a5", "#5cb8f0"), "trained": ("#1b7f4b", "#58c98c"), "best of n": ("#c8500a", "#ff8f52")}


def frontier(rows: list[Row], name: str) -> Panel:
    """Mean reward over drift, a line a way through the untouched denoiser."""
    untouched = rows[0]
    series = []
    for (way, colours), marker in zip(WAYS.items(), ("o", "D", "s"), strict=True):
        own = [row for row in rows if row["way"] in (way, "untouched")]
        points = [
            Point(
                row["drift"],
                row["reward"],
                row["reward"] - 2 * row["reward_error"],
                row["reward"] + 2 * row["reward_error"],
            )
            for row in sorted(own, key=lambda row: float(row["drift"]))
        ]
        series.append(Series(way, tuple(points), colours, marker))
    subtitle = f"{name}, mean of {untouched['texts']} texts; bars: 2 standard errors"
    return Panel(
        "Reward against drift", subtitle, tuple(series), (), (), "NELBO under the frozen denoiser, less its own texts'"
    )


def reward_blocks(rows: list[Row], warnings: list[str], samples: int) -> list[Block]:
    """The page: warnings, the figure, the table; `samples` is what all ways had."""
    table = tuple(
        (
            str(row["way"]),
            number(row["strength"], 2),
            f"{number(row['reward'], 4)} ± {number(2 * row['reward_error'], 4)}",
            number(row["drift"], 3, sign=True),
            number(row.get("effective_samples"), 0),
            str(row["texts"]),
        )
        for row in rows
    )
    note = (
        "Strength: beta in standard deviations of the reward, or n. Drift: nats per token. The best of n reads n texts "
        f"for each that it keeps, out of the {samples:,} that the others learn from."
    )
    columns = ("way", "strength", "reward", "drift", "effective", "texts")
    return [
        *[Text(f"Warning: {warning}.") for warning in warnings],
        Figure("reward.svg", "Reward against drift", "Each way at several strengths.", ()),
        Table("Reward and drift", columns, table, (0,), note),
    ]
