"""From flat rows to numbers with intervals: means over seeds, and the cells of the grid that have none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from gtl_lightning.errors import UserError
from gtl_lightning.report.style import missing

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
LEVEL = 0.95


@dataclass(frozen=True)
class Metric:
    """A column of `reports/transfer.json`: `better` is "lower", "higher" or "real" (nearer to real text is better)."""

    label: str
    better: str
    digits: int
    unit: str = ""


METRICS = {
    "nelbo": Metric("Held-out target NELBO", "lower", 3, "nats/token"),
    "mauve": Metric("MAUVE", "higher", 3),
    "perplexity": Metric("Held-out perplexity", "lower", 1),
    "domain_score": Metric("Domain score", "real", 3),
    "reference_ppl": Metric("Reference perplexity", "real", 1),
    "exact_nll": Metric("Exact target NLL", "real", 3),
    "exact_known": Metric("Texts with an exact NLL", "real", 3),
    "distinct_1": Metric("Distinct-1", "real", 3),
    "distinct_2": Metric("Distinct-2", "real", 3),
    "distinct_3": Metric("Distinct-3", "real", 3),
    "longest_copy": Metric("Longest copy", "real", 1, "tokens"),
    "nearest_train": Metric("Nearest neighbour", "real", 3),
}
COSTS = (
    "trainable_parameters",
    "kept_bytes",
    "steps",
    "best_step",
    "train_seconds",
    "fit_seconds",
    "prepare_seconds",
    "needs_seconds",
    "cost_seconds",
    "peak_bytes",
    "denoiser_passes",
    "ratio_passes",
    "sample_seconds",
    "lr",
    "gamma",
    "sample_gamma",
    "temperature",
    "n_ratio",
)


def half_width(values: Sequence[float], level: float = LEVEL) -> float:
    """Half width of Student's t-interval of the mean, t_{(1+level)/2, n-1} s / sqrt(n); NaN below two values."""
    from scipy import stats

    n = len(values)
    return float(stats.t.ppf((1 + level) / 2, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else math.nan


def summarise(transfer: Iterable[Row]) -> list[dict[str, Any]]:
    """Mean and 95 % interval of every metric for every (method, fraction).

    Each row: method, fraction (None for source), metric, mean, half_width, low, high, n, interval; `interval` says what
    is covered: "seeds" (Student's t over n >= 2 seeds), "own" (one seed: MAUVE's own interval, or 1.96
    standard errors of the test set's NELBO) or None. Values that are absent or not finite are left out of n.

    Raises:
        UserError: two rows for one (method, fraction, seed), which would count one run twice.
    """
    rows = []
    for (method, fraction), group in _cells(transfer):
        for metric in (*METRICS, *COSTS):
            values = _values(group, metric)
            if not values:
                continue
            mean, half = fmean(values), half_width(values)
            low, high, kind = mean - half, mean + half, "seeds"
            if len(values) == 1:
                low, high = _own_interval(group, metric, mean)
                kind, half = "own", (high - low) / 2
            known = math.isfinite(half)
            rows.append(
                {
                    "method": method,
                    "fraction": fraction,
                    "metric": metric,
                    "mean": mean,
                    "half_width": half if known else None,
                    "low": low if known else None,
                    "high": high if known else None,
                    "n": len(values),
                    "interval": kind if known else None,
                }
            )
    return rows


def find_holes(
    transfer: Sequence[Row], settings: Mapping[str, Any], holes: Iterable[Row] = ()
) -> tuple[list[dict[str, Any]], int]:
    """Cells of the grid without a result, and the number of cells the grid has.

    The grid is every method by every fraction by every seed, from `settings` (`methods`, `fractions`, `seeds`) joined
    with whatever occurs in the rows, less the seeds that `repeats` leaves out at a fraction. Reasons come from
    `holes`: rows {method, fraction, seed, cause}.
    """
    methods = {row["method"] for row in transfer} | set(settings.get("methods") or ())
    holes = list(holes)
    fractions = {fraction_key(row["fraction"]) for row in [*transfer, *holes] if not missing(row.get("fraction"))}
    fractions |= {fraction_key(value) for value in settings.get("fractions") or ()}
    seeds = {row.get("seed") for row in transfer} | set(settings.get("seeds") or ())
    methods |= {row["method"] for row in holes}
    seeds |= {row.get("seed") for row in holes}
    causes = {_cell(row): str(row.get("cause") or "") for row in holes}
    # A row whose two headline metrics are both absent is a hole: the cell ran and produced nothing to compare.
    present = {_cell(row) for row in transfer if not (missing(row.get("nelbo")) and missing(row.get("mauve")))}
    fewer = _fewer(settings)
    grid = [
        (method, fraction, seed)
        for method in methods
        for fraction in ([None] if method == "source" else fractions)
        for seed in seeds
        if (fraction, seed) not in fewer
    ]
    absent = [
        {"method": cell[0], "fraction": cell[1], "seed": cell[2], "cause": causes.get(cell) or "no result"}
        for cell in grid
        if cell not in present
    ]
    return sorted(absent, key=lambda hole: (hole["method"], -(hole["fraction"] or 2), str(hole["seed"]))), len(grid)


def _fewer(settings: Mapping[str, Any]) -> set[tuple[float, Any]]:
    """(fraction, seed) that `sweep.repeats` leaves out."""
    seeds, counts = settings.get("seeds") or (), settings.get("repeats") or ()
    fractions = [fraction_key(value) for value in settings.get("fractions") or ()]
    return {(fraction, seed) for fraction, count in zip(fractions, counts, strict=False) for seed in seeds[count:]}


def real_value(transfer: Iterable[Row], metric: str, fraction: float | None = None) -> float:
    """Mean of what real text gets on `metric` (column `<metric>_real`), at one fraction or over all; NaN if none."""
    values = [
        float(row[f"{metric}_real"])
        for row in transfer
        if not missing(row.get(f"{metric}_real")) and (fraction is None or _same(row.get("fraction"), fraction))
    ]
    return fmean(values) if values else math.nan


def _cells(transfer: Iterable[Row]) -> list[tuple[tuple[str, float | None], pd.DataFrame]]:
    import pandas as pd

    frame = pd.DataFrame([dict(row) for row in transfer])
    if frame.empty:
        return []
    for column in ("fraction", "seed"):
        if column not in frame:
            frame[column] = None
    frame["fraction"] = pd.to_numeric(frame["fraction"]).round(12)
    twice = frame[frame.duplicated(["method", "fraction", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise UserError(
            f"reports/transfer.json has two rows for method {row['method']}, fraction {row['fraction']}, "
            f"seed {row['seed']}; delete it and run `dvc repro` again"
        )
    groups = frame.groupby(["method", "fraction"], dropna=False, sort=True)
    cells = []
    for key, group in groups:
        method, fraction = key if isinstance(key, tuple) else (key, None)
        cells.append(((str(method), None if missing(fraction) else float(str(fraction))), group))
    return cells


def _values(group: pd.DataFrame, column: str) -> list[float]:
    if column not in group:
        return []
    return [float(value) for value in group[column] if not missing(value)]


def _own_interval(group: pd.DataFrame, metric: str, mean: float) -> tuple[float, float]:
    if metric == "mauve":
        low, high = _values(group, "mauve_low"), _values(group, "mauve_high")
        return (low[0], high[0]) if low and high else (math.nan, math.nan)
    error = _values(group, "nelbo_se") if metric == "nelbo" else []
    return (mean - 1.96 * error[0], mean + 1.96 * error[0]) if error else (math.nan, math.nan)


def fraction_key(fraction: Any) -> float:
    """A fraction as a key, without what arithmetic leaves behind its twelfth decimal."""
    return round(float(fraction), 12)


def _same(value: Any, fraction: float) -> bool:
    return not missing(value) and fraction_key(value) == fraction_key(fraction)


def _cell(row: Row) -> tuple[str, float | None, Any]:
    return (row["method"], None if missing(row.get("fraction")) else fraction_key(row["fraction"]), row.get("seed"))
