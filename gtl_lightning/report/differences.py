"""Differences of two methods, paired by seed: intervals, p-values, Holm's adjustment, power, and what they say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from gtl_lightning.methods import is_guidance
from gtl_lightning.report.power import detectable
from gtl_lightning.report.style import SOURCE, method_label, missing, number, order_methods, percent
from gtl_lightning.report.tables import LEVEL, METRICS, fraction_key, half_width

Row = Mapping[str, Any]
BASELINE = "finetune"
HEADLINE = ("nelbo", "mauve")


def guided_methods(transfer: Sequence[Row]) -> list[str]:
    """The methods that the fine-tuned baseline is compared with: `gtl` first, then its variants."""
    return [method for method in order_methods({str(row["method"]) for row in transfer}) if is_guidance(method)]


def other_methods(transfer: Sequence[Row]) -> list[str]:
    """What else was trained on the same texts: other denoisers, other ways of fine-tuning."""
    methods = order_methods({str(row["method"]) for row in transfer})
    return [method for method in methods if not is_guidance(method) and method not in (BASELINE, SOURCE)]


def comparisons(transfer: Sequence[Row], methods: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Methods against fine-tuning, by headline metric and share: rows of `paired`, adjusted as one family.

    By default the guided methods, whose comparison is what the report is about; others are a family of their own.
    Further columns: p_holm, verdict_holm (the verdict, "open" where p_holm does not stay below 0.05), family (rows
    with a p-value).
    """
    rows = [
        row
        for metric in HEADLINE
        for method in (guided_methods(transfer) if methods is None else methods)
        for row in paired(transfer, method, BASELINE, metric)
    ]
    tested = [row for row in rows if row["p"] is not None]
    adjusted = dict(zip(map(id, tested), holm([row["p"] for row in tested]), strict=True))
    for row in rows:
        p = adjusted.get(id(row))
        row["p_holm"], row["family"] = p, len(tested)
        row["verdict_holm"] = row["verdict"] if p is None or p < 1 - LEVEL else "open"
    return rows


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: p_(i) times the number not yet rejected, never falling, at most 1.

    Rejecting those below alpha keeps the chance of any false rejection below alpha, however the tests depend on one
    another (Holm 1979, A simple sequentially rejective multiple test procedure).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def p_value(mean: float, half: float, n: int) -> float:
    """Two-sided p of the t-test that `mean` +- `half`, the 95 % interval over n >= 2 values, belongs to."""
    from scipy import stats

    if half == 0:  # no spread at all
        return 1.0 if mean == 0 else 0.0
    t = mean / half * float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    return float(2 * stats.t.sf(abs(t), n - 1))


def paired(
    transfer: Iterable[Row], method: str = "gtl", baseline: str = BASELINE, metric: str = "nelbo"
) -> list[dict[str, Any]]:
    """Difference method - baseline at each fraction, paired by seed, with its 95 % t-interval and a plain verdict.

    Each row: method, baseline, metric, fraction, mean, half_width, low, high, p, detectable, n, verdict, sentence. The
    verdict is "better" or "worse" only when the interval excludes 0 strictly, else "open"; "one seed" and "missing" say
    why there is no interval. p is that of the paired t-test, two-sided: below 0.05 exactly where the interval excludes
    0; detectable is the smallest true difference that it would have told from 0 with a chance of 80 %
    (`power.detectable`).
    """
    table: dict[tuple[float, str], dict[Any, float]] = {}
    for row in transfer:
        if row["method"] in (method, baseline) and not missing(row.get("fraction")):
            by_seed = table.setdefault((fraction_key(row["fraction"]), row["method"]), {})
            if not missing(row.get(metric)):
                by_seed[row.get("seed")] = float(row[metric])
    rows = []
    for fraction in sorted({key[0] for key in table}, reverse=True):
        ours, theirs = table.get((fraction, method), {}), table.get((fraction, baseline), {})
        differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        n = len(differences)
        mean = fmean(differences) if n else math.nan
        half = half_width(differences)
        row = {
            "method": method,
            "baseline": baseline,
            "metric": metric,
            "fraction": fraction,
            "mean": mean if n else None,
            "half_width": half if n > 1 else None,
            "low": mean - half if n > 1 else None,
            "high": mean + half if n > 1 else None,
            "p": p_value(mean, half, n) if n > 1 else None,
            "detectable": detectable(half, n) if n > 1 else None,
            "n": n,
        }
        row["verdict"] = verdict(row)
        rows.append(row | {"sentence": sentence(row)})
    return rows


def verdict(row: Row) -> str:
    """What the interval of a paired difference allows: better, worse, open, one seed or missing."""
    if row["n"] < 2:
        return "one seed" if row["n"] == 1 else "missing"
    if row["low"] <= 0 <= row["high"]:
        return "open"
    return "better" if (row["high"] < 0) == (METRICS[row["metric"]].better == "lower") else "worse"


def sentence(row: Row) -> str:
    """The verdict of a paired difference as one plain sentence, with the numbers it rests on."""
    metric = METRICS[row["metric"]]
    ours, theirs = method_label(row["method"]), method_label(row["baseline"])
    at, unit = percent(row["fraction"]), f" {metric.unit}" if metric.unit else ""
    if row["n"] == 0:
        return f"At {at}: no comparison, no seed has both {ours} and {theirs}."
    size = number(row["mean"], metric.digits, sign=True)
    if row["n"] == 1:
        return f"At {at}: one seed proves nothing; in it {ours} differs from {theirs} by {size}{unit}."
    low, high = (number(row[end], metric.digits, sign=True) for end in ("low", "high"))
    basis = f"{size}{unit}, 95 % interval {low} to {high}, {row['n']} seeds"
    winner = {"better": f"{ours} better", "worse": f"{theirs} better", "open": "not distinguishable"}[row["verdict"]]
    return f"At {at}: {winner} ({basis})."


def powers(rows: Sequence[Row]) -> list[str]:
    """What a sweep could have seen, a sentence a metric: of the rows of `comparisons`, from the surest to the least."""
    said = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        sizes = sorted(row["detectable"] for row in rows if row["metric"] == metric and row["detectable"] is not None)
        if sizes:
            about = METRICS[metric]
            least, most = (number(size, about.digits) for size in (sizes[0], sizes[-1]))
            span = least if least == most else f"{least} to {most}, by method and share"
            unit = f" {about.unit}" if about.unit else ""
            said.append(f"{about.label}: with a chance of 80 % this sweep sees a true difference of {span}{unit}.")
    return said
