"""The report's tables as document blocks: results, paired differences, text quality, costs, data, published figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gtl_lightning.report.differences import BASELINE, HEADLINE, comparisons, guided_methods, paired
from gtl_lightning.report.document import Block, Group, Table, TableCell, Text
from gtl_lightning.report.style import (
    DASH,
    MINUS,
    count,
    listing,
    method_colours,
    method_label,
    missing,
    number,
    order_methods,
    p_text,
    percent,
)
from gtl_lightning.report.tables import METRICS, find_holes, real_value, summarise

Row = Mapping[str, Any]
QUALITY = {
    "Likeness to the target": ("domain_score", "reference_ppl", "exact_nll", "exact_known"),
    "Diversity and memorisation": ("distinct_1", "distinct_2", "distinct_3", "longest_copy", "nearest_train"),
}

# docs/method.md 2.7: MAUVE read off the figure that the authors publish, +-0.003, with the parameters they train.
PUBLISHED_FRACTIONS = (1.0, 0.3, 0.05, 0.01)
PUBLISHED = (
    ("vanilla", (0.579, 0.545, 0.505, 0.466), "59.8 M"),
    ("finetune", (0.591, 0.563, 0.519, 0.494), "59.8 M"),
    ("gtl", (0.719, 0.690, 0.695, 0.657), "4.1 M"),
)
PUBLISHED_LINK = ("arXiv 2512.10877", "https://arxiv.org/abs/2512.10877")
OWN = "*"  # marks an interval that is not over seeds


def answer(transfer: Sequence[Row]) -> list[str]:
    """What the paired intervals say of each GTL method against fine-tuning, a sentence for each headline metric."""
    methods = guided_methods(transfer)
    if not methods:
        return ["No GTL result, so nothing to compare with fine-tuning."]
    results = {
        (method, metric): paired(transfer, method, BASELINE, metric) for method in methods for metric in HEADLINE
    }
    if {row["verdict"] for rows in results.values() for row in rows} == {"one seed"}:
        names = listing([method_label(method) for method in methods])
        return [
            f"One seed proves nothing about {names} against {method_label(BASELINE)}: what follows is one run of each."
        ]
    sentences = [_sentence_of(method, metric, rows) for (method, metric), rows in results.items() if rows]
    return sentences or ["No fraction has a result, so nothing to compare with fine-tuning."]


def _sentence_of(method: str, metric: str, rows: Sequence[Row]) -> str:
    words = {
        "better": f"{method_label(method)} is better than {method_label(BASELINE)} at",
        "worse": f"{method_label(BASELINE)} is better than {method_label(method)} at",
        "open": f"{method_label(method)} and {method_label(BASELINE)} are not distinguishable at",
        "one seed": "one seed proves nothing at",
        "missing": "there is no pair to compare at",
    }
    parts = []
    for verdict, phrase in words.items():
        at = [percent(row["fraction"]) for row in rows if row["verdict"] == verdict]
        if at:
            parts.append(f"{phrase} {listing(at)}")
    return f"{METRICS[metric].label}: {'; '.join(parts)} of the target data."


def result_table(transfer: Sequence[Row], metric: str, grid: Mapping[str, Any]) -> Table:
    """Mean and interval of one metric: a row for each method, a column for each fraction; missing cells as dashes."""
    about, summary = METRICS[metric], {}
    for row in summarise(transfer):
        if row["metric"] == metric:
            summary[row["method"], row["fraction"]] = row
    holes, _ = find_holes(transfer, grid)
    methods, fractions = axes(transfer, holes)
    colours = method_colours(set(methods))
    seeds = max((row["n"] for row in summary.values()), default=0)
    rows: list[tuple[TableCell | str, ...] | Group] = []
    for method in methods:
        cells = [_mean(summary.get((method, fraction)), about.digits, seeds) for fraction in fractions]
        if method == "source":  # one model for every fraction
            cells = [_mean(summary.get((method, None)), about.digits, seeds)] * len(fractions)
        rows.append((TableCell(method_label(method), colours=colours[method]), *cells))
    real = [real_value(transfer, metric, fraction) for fraction in fractions]
    if any(map(math.isfinite, real)):
        rows.append(("real against real", *(number(value, about.digits) for value in real)))
    shown = [row["interval"] for row in summary.values()]
    note = f"Mean ± half width of the 95 % t-interval over {seeds} seeds. " if "seeds" in shown else ""
    if "own" in shown:
        own = "MAUVE's own interval" if metric == "mauve" else "1.96 standard errors of the test set"
        note += f"{OWN} One seed, so no interval over seeds exists: half width of {own}. "
    if any(row["n"] < seeds for row in summary.values()):
        note += f"(n) Only n of {seeds} seeds have a result; what ought to be there stands under missing cells. "
    if any(isinstance(cell, TableCell) and cell.hole for row in rows if not isinstance(row, Group) for cell in row):
        note += f"{DASH} No result: see missing cells."
    unit = f"{about.unit}, " if about.unit else ""
    columns = ("Method", *(_fraction_head(transfer, fraction) for fraction in fractions))
    return Table(f"{about.label} ({unit}{about.better} is better)", columns, tuple(rows), note=note.strip())


def difference_table(transfer: Sequence[Row], methods: Sequence[str] | None = None) -> Table:
    """Method - fine-tuning, paired by seed, with interval and verdict, plain and adjusted for the number of rows.

    By default the guided methods, of whom the advisor has spoken.
    """
    rows: list[tuple[TableCell | str, ...] | Group] = []
    pairs = comparisons(transfer, methods)
    several = any(row["p"] is not None for row in pairs)
    title = ""
    for row in pairs:
        about, method = METRICS[row["metric"]], row["method"]
        unit = f", {about.unit}" if about.unit else ""
        group = f"{about.label}{unit}: {method_label(method)} {MINUS} {method_label(BASELINE)}"
        if group != title:
            rows.append(Group(group))
            title = group
        after = (_verdict(row, "verdict_holm"),) if several else ()
        p = (p_text(row["p"]), p_text(row["p_holm"]), number(row["detectable"], about.digits)) if several else ()
        ends = [number(row[end], about.digits, sign=True) for end in ("low", "high")]
        interval = f"{ends[0]} to {ends[1]}" if row["n"] > 1 else DASH
        size, advised = number(row["mean"], about.digits, sign=True), _advised(transfer, method, row["fraction"])
        share = percent(row["fraction"])
        rows.append((share, _verdict(row, "verdict"), *after, size, interval, *p, str(row["n"]), advised))
    note = (
        "Each seed's pair is subtracted first, then averaged: what the two share cancels. A verdict needs the whole "
        "interval on one side of 0. "
    )
    if several:
        note += (
            f"Of twenty true zeros, one is expected to look like a difference; Holm's adjustment for all "
            f"{pairs[0]['family']} rows with a p-value keeps the chance of even one such row below 5 %. Seen at 80 %: "
            "the smallest true difference that so many pairs, scattered like these, tell from 0 with that chance, "
            "before any adjustment."
        )
    after, p = (("Verdict after Holm",), ("p", "p after Holm", "Seen at 80 %")) if several else ((), ())
    columns = ("Target data", "Verdict", *after, "Difference", "95 % interval", *p, "Seeds", "Advisor, before sampling")
    words = (0, 1, 2, len(columns) - 1) if several else (0, 1, len(columns) - 1)
    whose = "Difference to fine-tuning, paired by seed" + ("" if methods is None else ": other methods")
    return Table(whose, columns, tuple(rows), words, note)


def _verdict(row: Row, key: str) -> str:
    return {
        "better": f"{method_label(row['method'])} better",
        "worse": f"{method_label(BASELINE)} better",
        "open": "not distinguishable",
        "one seed": "one seed proves nothing",
        "missing": "no pair of results",
    }[row[key]]


def quality_tables(transfer: Sequence[Row]) -> list[Table]:
    """Everything else that is measured on the samples, by fraction, with real target text in the last row of each."""
    summary = {(row["method"], row["fraction"], row["metric"]): row for row in summarise(transfer)}
    methods, fractions = axes(transfer, [])
    colours = method_colours(set(methods))
    tables = []
    for caption, metrics in QUALITY.items():
        shown = [metric for metric in metrics if any(key[2] == metric for key in summary)]
        rows: list[tuple[TableCell | str, ...] | Group] = []
        for fraction in fractions:
            rows.append(Group(f"{percent(fraction)} of the target data"))
            for method in methods:
                at = None if method == "source" else fraction
                cells = [_mean(summary.get((method, at, metric)), METRICS[metric].digits, 0) for metric in shown]
                rows.append((TableCell(method_label(method), colours=colours[method]), *cells))
            real = [number(real_value(transfer, metric, fraction), METRICS[metric].digits) for metric in shown]
            rows.append((method_label("real"), *real))
        heads = (f"{METRICS[m].label}{f' ({METRICS[m].unit})' if METRICS[m].unit else ''}" for m in shown)
        if shown and fractions:
            tables.append(Table(caption, ("Method", *heads), tuple(rows)))
    return tables


def data_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Counts of `splits/summary.json`: one table for each mapping in it, whatever its depth."""
    tables = []
    loose = [(str(key), _scalar(value)) for key, value in summary.items() if not isinstance(value, Mapping)]
    for name, part in summary.items():
        if isinstance(part, Mapping) and not part:
            tables.append(Table(_caption(name), ("", "Records"), (("none", "0"),)))
        elif isinstance(part, Mapping):
            inner = list(dict.fromkeys(str(k) for v in part.values() if isinstance(v, Mapping) for k in v))
            columns = ("", *(inner or ["Records"]))
            rows: list[tuple[TableCell | str, ...] | Group] = []
            for key, value in part.items():
                values = [_scalar(value.get(k)) for k in inner] if isinstance(value, Mapping) else [_scalar(value)]
                rows.append((_title(str(key)), *values, *[DASH] * (len(columns) - 1 - len(values))))
            tables.append(Table(_caption(name), columns, tuple(rows)))
    if loose:
        tables.append(Table("Counts", ("", "Value"), tuple((_title(key), value) for key, value in loose)))
    return tables


def published_blocks(transfer: Sequence[Row]) -> list[Block]:
    """Published MAUVE, marked as such, above this run's."""
    summary = {(r["method"], r["fraction"]): r for r in summarise(transfer) if r["metric"] == "mauve"}
    rows: list[tuple[TableCell | str, ...] | Group] = [Group("Published, other data set and scale")]
    for method, values, parameters in PUBLISHED:
        rows.append((method_label(method), *(number(value) for value in values), parameters))
    rows.append(Group("This run"))
    for method, _, _ in PUBLISHED:
        cells = []
        for fraction in PUBLISHED_FRACTIONS:
            row = summary.get((method, fraction))
            cells.append(number(row["mean"]) if row else DASH)
        trained = [row.get("trainable_parameters") for row in transfer if row["method"] == method]
        known = [float(value) for value in trained if value is not None and not missing(value)]
        rows.append((method_label(method), *cells, f"{max(known) / 1e6:.2g} M" if known else DASH))
    columns = ("Method", *(percent(fraction) for fraction in PUBLISHED_FRACTIONS), "Parameters trained")
    text = (
        "Published, other data set and scale: arXiv abstracts, computer science and mathematics to physics, in "
        "segments of 512 tokens, other MAUVE features; read off the authors' figure, ±0.003. MAUVE depends on "
        "features and buckets, so the two halves of the table cannot be compared with one another; only the direction "
        "within each can."
    )
    return [Text(text, link=PUBLISHED_LINK), Table("MAUVE (higher is better)", columns, tuple(rows))]


def advisor_table(advisor: Sequence[Row]) -> Table:
    """The advisor by fraction: range over noise levels and seeds, with its own words."""
    rows: list[tuple[TableCell | str, ...] | Group] = []
    for fraction in sorted({row["fraction"] for row in advisor if not missing(row["fraction"])}, reverse=True):
        group = [row for row in advisor if row["fraction"] == fraction]
        said = list(dict.fromkeys(str(row["verdict"]) for row in group if row.get("verdict")))
        ranges = [_range(group, key) for key in ("auc", "ece", "ess_share", "mean_weight")]
        rows.append((percent(fraction), *ranges, listing(said) or DASH))
    columns = ("Target data", "AUC", "Calibration error", "ESS share", "Mean weight", "Verdict")
    note = "Lowest to highest over noise levels and seeds. The mean weight is 1 for a calibrated ratio."
    return Table("Advisor, before sampling", columns, tuple(rows), (0, 5), note)


def hole_blocks(holes: Sequence[Row], cells: int) -> list[Block]:
    """The cells without result, each with its cause."""
    if not holes:
        return [Text(f"None: all {cells} cells of the grid have a result.")]
    rows = tuple((method_label(h["method"]), percent(h["fraction"]), str(h["seed"]), str(h["cause"])) for h in holes)
    columns = ("Method", "Target data", "Seed", "Cause")
    return [Table(f"{len(holes)} of {cells} cells have no result", columns, rows, (0, 1, 3))]


def axes(transfer: Sequence[Row], holes: Sequence[Row]) -> tuple[list[str], list[float]]:
    """Methods in their order, and shares of the data from the largest down."""
    rows = [*transfer, *holes]
    methods = order_methods({str(row["method"]) for row in rows})
    return methods, sorted({float(r["fraction"]) for r in rows if not missing(r.get("fraction"))}, reverse=True)


def _mean(row: Row | None, digits: int, seeds: int) -> TableCell:
    if row is None:
        return TableCell(DASH, hole=True)
    half = "" if row["half_width"] is None else f"± {number(row['half_width'], digits)}"
    half += OWN if row["interval"] == "own" and seeds else ""
    return TableCell(number(row["mean"], digits), f"{half} ({row['n']})".strip() if row["n"] < seeds else half)


def _advised(transfer: Sequence[Row], method: str, fraction: float) -> str:
    rows = [row for row in transfer if row["method"] == method and row.get("fraction") == fraction]
    return listing(list(dict.fromkeys(str(row["verdict"]) for row in rows if row.get("verdict")))) or DASH


def _fraction_head(transfer: Sequence[Row], fraction: float) -> str:
    sizes = [
        row["examples"] for row in transfer if row.get("fraction") == fraction and not missing(row.get("examples"))
    ]
    return f"{percent(fraction)} ({max(sizes):,.0f})" if sizes else percent(fraction)


def _range(rows: Sequence[Row], key: str) -> str:
    values = [float(row[key]) for row in rows if not missing(row.get(key))]
    return f"{number(min(values), 2)} to {number(max(values), 2)}" if values else DASH


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DASH if value is None else listing([str(v) for v in value]) if isinstance(value, list) else str(value)
    return count(value) if float(value).is_integer() else number(value, 3)


def _title(key: str) -> str:
    return key.replace("_", " ")


def _caption(key: str) -> str:
    return _title(key)[:1].upper() + _title(key)[1:]
