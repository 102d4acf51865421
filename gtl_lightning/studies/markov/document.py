"""The Markov study's report: figures and reports/markov.md, from flat rows (docs/markov.md says how to read it)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from gtl_lightning.files import write_text
from gtl_lightning.report.document import Block, Figure, Group, Heading, Table, TableCell, Text, to_markdown
from gtl_lightning.report.figures import save_figure
from gtl_lightning.report.heatmaps import Heatmap, save_heatmaps
from gtl_lightning.report.style import DASH, method_label, missing, number
from gtl_lightning.studies.markov.panels import (
    FAILED,
    ORDER,
    OVERLAP_NOTE,
    Row,
    calibration_panels,
    means,
    overlap_panels,
    row_kl_panels,
    verdict,
)

FOLDER = "markov"
PUBLISHED = {"finetune": (0.481, 0.206, 0.072), "gtl": (0.244, 0.100, 0.052)}
PUBLISHED_SIZES = (20, 100, 1000)
SHOWN = ("source", "vanilla", "finetune", "lora", "gtl-sequence-gkl", "gtl-token", "bigram")


def write_markov_report(
    folder: Path,
    rows: Sequence[Row],
    calibration: Sequence[Row],
    overlap: Sequence[Row],
    repeats: Sequence[Row],
    target: Sequence[Sequence[float]],
    settings: Mapping[str, Any],
) -> list[Path]:
    """Write markov.md and the figures in markov/ below `folder`.

    Args:
        folder: reports/.
        rows: of reports/markov.json.
        calibration: of reports/markov_calibration.json.
        overlap: of reports/markov_overlap.json.
        repeats: of reports/markov_repeats.json.
        target: the true transition matrix.
        settings: the study's parameters, as plain values.
    """
    sizes = sorted({int(row["n"]) for row in rows})
    middle = sizes[len(sizes) // 2]
    figures = folder / FOLDER
    written = [
        *_heatmaps(figures, rows, sizes, target),
        *save_figure(figures, "row-kl", row_kl_panels(rows, sizes), _seeds_note(rows)),
        *save_figure(figures, "calibration", calibration_panels(calibration, middle), _seeds_note(calibration)),
        *save_figure(figures, "overlap", overlap_panels(overlap), OVERLAP_NOTE),
    ]
    blocks: list[Block] = [
        Text(_summary(rows, sizes), "lead"),
        Text(_setting(rows, sizes, settings)),
        Figure(
            f"{FOLDER}/matrices.svg",
            "Heat maps of transition matrices",
            "The true target matrix, and the bigram matrix of each method's samples.",
            (),
        ),
        Figure(
            f"{FOLDER}/row-kl.svg",
            "Row-KL against n",
            "Distance of the samples' transition matrix, and of the model itself, by target sequences.",
            (),
        ),
        _table(rows, sizes),
        Heading("How far do repetitions scatter?"),
        _quantiles(repeats),
        Heading("Against the exact ratio"),
        Figure(
            f"{FOLDER}/calibration.svg",
            "Calibration of r",
            f"Learned against exact log-ratio by share of masked tokens, n = {middle}.",
            (),
        ),
        Heading("How far can the target be?"),
        Text(_overlap_sentence(overlap)),
        Figure(
            f"{FOLDER}/overlap.svg",
            "Transfer error and overlap",
            "The target moved away from the source: transfer error, overlap, calibration; the advisor's verdicts.",
            (),
        ),
        _overlap_table(overlap),
    ]
    page = folder / "markov.md"
    write_text(page, to_markdown("Markov chains: where everything is known exactly", blocks))
    return [page, *written]


def _heatmaps(folder: Path, rows: Sequence[Row], sizes: Sequence[int], target: Sequence[Sequence[float]]) -> list[Path]:
    methods = [method for method in SHOWN if any(row["method"] == method for row in rows)]
    lines: list[tuple[str, list[Heatmap | None]]] = []
    for n in sizes:
        maps: list[Heatmap | None] = [Heatmap(target, "")]
        for method in methods:
            found = [row["transition"] for row in rows if row["method"] == method and row["n"] == n]
            note = number(means(rows, "row_kl", method=method, n=n)[0], 4)
            maps.append(Heatmap(_mean_matrix(found), note) if found else None)
        lines.append((f"n = {n}", maps))
    return save_heatmaps(folder, "matrices", ["true target", *map(method_label, methods)], lines)


def _mean_matrix(matrices: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    return [[fmean(entries) for entries in zip(*lines, strict=True)] for lines in zip(*matrices, strict=True)]


def _seeds_note(rows: Sequence[Row]) -> str:
    count = len({row["seed"] for row in rows})
    return f"Bars: 95 % t-interval over {count} seeds." if count > 1 else "One seed, no intervals."


def _summary(rows: Sequence[Row], sizes: Sequence[int]) -> str:
    def line(method: str) -> str:
        return " / ".join(number(means(rows, "row_kl", method=method, n=n)[0], 4) for n in sizes)

    ns = " / ".join(str(n) for n in sizes)
    return (
        f"Row-KL at n = {ns}: GTL token-level {line('gtl-token')}, GTL sequence-level {line('gtl-sequence-gkl')}, "
        f"fine-tuning {line('finetune')}, vanilla {line('vanilla')}; bigram counts, which know that it is a chain, "
        f"{line('bigram')}. A small network like the ratio's, trained on the target alone, gives "
        f"{line('vanilla-local')}: on these chains the source has nothing to teach, and what helps is the size and "
        "shape of the network."
    )


def _setting(rows: Sequence[Row], sizes: Sequence[int], settings: Mapping[str, Any]) -> str:
    seeds = len({row["seed"] for row in rows})
    return (
        f"{settings['states']} states, {settings['length']} tokens; P(stay) {settings['source_diagonal']} in "
        f"the source and {settings['target_diagonal']} in the target; {settings['source_sequences']:,} source "
        f"sequences; seeds: {seeds}. Steps and gamma are chosen by cross-validation on the n target sequences alone; "
        f"{settings['samples']:,} samples a cell, one position revealed at a time."
    )


def _table(rows: Sequence[Row], sizes: Sequence[int]) -> Table:
    columns = ("method", "row-KL", "diagonal", "NLL", "KL of the model", "gamma", "steps", "weights", "seconds")
    lines: list[tuple[TableCell | str, ...] | Group] = []
    for n in sizes:
        lines.append(Group(f"n = {n}"))
        for method in ORDER:
            if not means(rows, "row_kl", method=method, n=n)[2]:
                continue

            def cell(metric: str, digits: int, method: str = method, n: int = n, interval: bool = False) -> TableCell:
                mean, half, _ = means(rows, metric, method=method, n=n)
                detail = f"± {number(half, digits)}" if interval and math.isfinite(half) else ""
                return TableCell(number(mean, digits), detail)

            seconds = [means(rows, key, method=method, n=n)[0] for key in ("train_seconds", "sample_seconds")]
            lines.append(
                (
                    method_label(method),
                    cell("row_kl", 4, interval=True),
                    cell("diagonal", 3, interval=True),
                    cell("nll", 3),
                    cell("kl", 2),
                    cell("gamma", 2),
                    cell("steps", 0),
                    cell("parameters", 0),
                    f"{number(seconds[0], 1)} + {number(seconds[1], 1)}" if not any(map(missing, seconds)) else DASH,
                )
            )
        for method, values in PUBLISHED.items():
            if n in PUBLISHED_SIZES:
                value = number(values[PUBLISHED_SIZES.index(n)], 3)
                lines.append((f"published: {method_label(method)}", value, *[DASH] * (len(columns) - 2)))
    ideal = means(rows, "nll_target")[0]
    note = (
        f"Means over seeds, ± 95 % t-interval. NLL: of the samples under the exact target, nats per token; the "
        f"target's own samples have {number(ideal, 3)}. KL: upper bound from the conditionals, nats per sequence. "
        "Seconds: training (all folds) + sampling. Published: read off the paper's figure (arXiv 2512.10877)."
    )
    return Table("All methods", columns, tuple(lines), (0,), note)


def _quantiles(repeats: Sequence[Row]) -> Table:
    """Row-KL of the token-level ratio over its repetitions: what a mean hides."""
    lines = []
    for n in sorted({int(row["n"]) for row in repeats}):
        own = [row for row in repeats if row["n"] == n]
        values = [float(row["row_kl"]) for row in own]
        first, third = np.quantile(values, (0.25, 0.75)).tolist()
        shown = (min(values), first, median(values), third, max(values), fmean(values))
        moved = sum(row["gamma"] != 1 for row in own)
        lines.append((f"{n}", f"{len(own)}", *[number(value, 4) for value in shown], f"{moved}"))
    columns = ("n", "seeds", "least", "first quartile", "median", "third quartile", "worst", "mean", "gamma not 1")
    note = (
        "Row-KL of the samples, nats; quartiles are linear between neighbours. Last: seeds with another gamma than 1."
    )
    return Table("GTL token-level over repetitions", columns, tuple(lines), (), note)


def _overlap_sentence(overlap: Sequence[Row]) -> str:
    called = sorted({row["diagonal_target"] for row in overlap if row["verdict_reweighting"] == "poor overlap"})
    failed = sorted(d for d in {row["diagonal_target"] for row in overlap} if _kept(overlap, d) > FAILED)
    return (
        "The target's P(stay) moves away from the source's 0.1 in steps. At each step the advisor speaks first, from "
        "the noised classifier on held-out data; then the methods are trained and sampled. It says poor overlap "
        + (f"from a diagonal of {called[0]:g} on" if called else "nowhere")
        + "; reweighted source data alone (eq. 7b without the cycle loss) leave more than half of the source's row-KL "
        + (f"from {failed[0]:g} on. " if failed else "nowhere. ")
        + "Ratios that learn from target rows as well do not depend on the overlap."
    )


def _kept(overlap: Sequence[Row], diagonal: float) -> float:
    """Row-KL that reweighting leaves, over that of the untouched source."""
    left, whole = (
        means(overlap, "row_kl", method=method, diagonal_target=diagonal)[0] for method in ("gtl-reweighted", "source")
    )
    return left / whole


def _overlap_table(overlap: Sequence[Row]) -> Table:
    columns = (
        "diagonal",
        "verdict: reweighting",
        "verdict: others",
        "KL(q, p)",
        "ESS clean",
        "ESS half",
        "exact",
        "AUC",
        "ECE",
        "row-KL: source",
    )
    methods = [m for m in ORDER if m not in ("source",) and any(row["method"] == m for row in overlap)]
    lines = []
    for diagonal in sorted({float(row["diagonal_target"]) for row in overlap}):

        def value(key: str, digits: int, method: str = "source", diagonal: float = diagonal) -> str:
            return number(means(overlap, key, method=method, diagonal_target=diagonal)[0], digits)

        lines.append(
            (
                f"{diagonal:g}",
                verdict(overlap, diagonal),
                verdict(overlap, diagonal, "verdict"),
                value("kl_source", 2),
                value("ess_share_clean", 4),
                value("ess_share", 4),
                value("ess_share_exact", 4),
                value("auc", 3),
                value("ece", 3),
                value("row_kl", 4),
                *[value("row_kl", 4, method=method) for method in methods],
            )
        )
    names = (*columns, *map(method_label, methods))
    note = "ESS as a share of the source sample, clean and half masked; AUC and ECE half masked."
    return Table("Overlap study", names, tuple(lines), (1, 2), note)
