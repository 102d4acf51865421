"""The page of benchmarks: what must hold, one table for everything that was varied, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gtl_lightning.report.document import Block, Figure, Group, Heading, Table, Text, to_markdown
from gtl_lightning.report.panels import Panel, Point, Series
from gtl_lightning.report.style import COLOURS, DASH, VARIANTS_DARK, VARIANTS_LIGHT, missing, number, percent

Row = Mapping[str, Any]

PUBLISHED = "paper"
"""The profile of the published sizes, for which operations and k have limits too."""
MOST_OVER_UNGUIDED = 1.15
MOST_GFLOP = 32.0
_GROUPS = {
    "batch": "sequences at once",
    "length": "length",
    "n_ratio": "candidates scored",
    "k": "positions a step",
    "planner": "reveal order",
    "block": "block-wise decoding, keys and values kept outside of the block",
    "guidance": "kind of token-level ratio",
    "candidates": "one candidate a pass",
    "counted": "the plain reference at the full n_ratio, counted only",
}
_FIGURES = {
    "benchmarks": "Time of a step by batch and by length.",
    "speed-quality": "Speed against quality: positions a step along each line, one line for each way to reuse.",
}
_NAMES = {
    "none": "unguided",
    "token": "token ratio",
    "head": "token ratio, head",
    "warm": "token ratio, copy",
    "counts": "token ratio, counts",
    "sequence": "sequence ratio",
    "plain": "plain reference",
}
_PRECISIONS = {"32-true": "fp32", "bf16-mixed": "sampled with products in bf16"}
_COLOURS = {
    "none": COLOURS["source"],
    "token": COLOURS["gtl"],
    "sequence": (VARIANTS_LIGHT[0], VARIANTS_DARK[0]),
}


def benchmark_page(rows: Sequence[Row], figures: Sequence[str] = ()) -> str:
    """docs/benchmarks.md: a section for every profile that was measured; `figures` are those that were drawn."""
    blocks: list[Block] = [
        Text(
            "Written by make bench (make bench PROFILE=paper for the published sizes) and gtl tradeoff. A step is "
            "timed through the public sampler. Cases of a group are timed in turn, A B A B; a ratio is the median of "
            "the ratios within a round, with its quartiles. Operations are those of matrix products, counted by torch; "
            "a share is counted operations per second over those of a square matrix product timed in the same round. "
            "Beside a limit stands the same ratio of counted operations: what the two networks' sizes alone come to."
        )
    ]
    blocks += [Figure(f"figures/{name}.svg", _FIGURES[name], _FIGURES[name], ()) for name in figures]
    for profile in dict.fromkeys(str(row["profile"]) for row in rows):
        own = [row for row in rows if row["profile"] == profile]
        if any(row["part"] == "machine" for row in own):
            blocks += _section(profile, own)
        quality = [row for row in own if row["part"] == "quality"]
        if quality:
            blocks += _quality_section(profile, quality)
    return to_markdown("Benchmarks", blocks)


def _quality_section(profile: str, rows: list[Row]) -> list[Block]:
    first = rows[0]
    facts = (
        f"{first['samples']} texts of the trained cell {first['method']} at {percent(first['fraction'])} of the "
        f"target, gamma {first['gamma']}, one seed. MAUVE of real against real text is "
        f"{number(first['mauve_real'])}; real text costs the reference model {number(first['reference_nats_real'])} "
        "nats a token. NELBO is that of the samples under the model that drew them. Tokens per second are of processor "
        "time, of the clock on a GPU."
    )
    columns = ("block", "k", "tokens/s", "times the first", "MAUVE", "reference nats/token", "NELBO", "domain score")
    lines = tuple(
        (
            str(row["block"]) if row["block"] else DASH,
            str(row["k"]),
            number(row["tokens_per_second"], 0),
            number(row["tokens_per_second"] / first["tokens_per_second"], 2),
            f"{number(row['mauve'])} ({number(row['mauve_low'])} to {number(row['mauve_high'])})",
            number(row["reference_nats"]),
            number(row["nelbo"]),
            number(row["domain_score"]),
        )
        for row in rows
    )
    return [
        Heading(f"Speed against quality, profile {profile}"),
        Text(facts),
        Table("Positions a step, and blocks with kept keys and values", columns, lines),
    ]


def quality_panels(rows: Sequence[Row]) -> list[Panel]:
    """MAUVE and NELBO of samples over tokens per second, a line for each block size, a point for each k."""
    quality = [row for row in rows if row["part"] == "quality"]
    own = [row for row in quality if row["profile"] == quality[-1]["profile"]]
    blocks = sorted({row["block"] for row in own})
    panels = []
    for metric, title, subtitle in (
        ("mauve", "MAUVE", "of samples, higher is better"),
        ("nelbo", "NELBO of samples", "nats a token, under the model itself"),
    ):
        series = []
        for index, block in enumerate(blocks):
            chosen = sorted((r for r in own if r["block"] == block), key=lambda r: float(r["tokens_per_second"]))
            points = tuple(
                Point(
                    float(row["tokens_per_second"]),
                    float(row[metric]),
                    *((row["mauve_low"], row["mauve_high"]) if metric == "mauve" else ()),
                )
                for row in chosen
            )
            colours = (VARIANTS_LIGHT[index - 1], VARIANTS_DARK[index - 1]) if block else _COLOURS["token"]
            label = f"blocks of {block}" if block else "whole passes"
            series.append(Series(label, points, colours, "osD^v"[index % 5], strong=not block))
        if series:
            xs = [point.x for line in series for point in line.points]
            ticks = tuple((x, f"{x:g}") for x in _decades(min(xs), max(xs)))
            label = "tokens per second; k = " + ", ".join(map(str, sorted({row["k"] for row in own})))
            panels.append(Panel(title, subtitle, tuple(series), (), ticks, label, log_x=True))
    return panels


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two numbers."""
    steps = [factor * 10.0**power for power in range(-3, 9) for factor in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]


def _section(profile: str, rows: list[Row]) -> list[Block]:
    machine = next(row for row in rows if row["part"] == "machine")
    sampling = [row for row in rows if row["part"] == "sampling"]
    days = sorted({str(row.get("date") or machine["date"]) for row in rows if row["part"] != "quality"})
    facts = (
        f"{machine['hardware']}; torch {machine['torch']}; {' to '.join(dict.fromkeys((days[0], days[-1])))}; "
        f"{machine['command']}. Matrix product: "
        f"{number(machine['gflops_fp32'], 0)} GFLOP/s in fp32, {number(machine['gflops_bf16'], 0)} in bf16. Denoiser "
        f"{number(machine['denoiser_parameters'] / 1e6, 2)}M and ratio network "
        f"{number(machine['ratio_parameters'] / 1e6, 2)}M parameters, {number(machine['vocab_size'], 0)} ids, "
        f"{_PRECISIONS[machine['sampling_precision']]}."
    )
    tables = (
        _limits(sampling, published=profile == PUBLISHED),
        _sampling_table(sampling),
        _growth_table([row for row in rows if row["part"] == "growth"]),
        _training_table([row for row in rows if row["part"] == "training"]),
    )
    return [Heading(f"Profile {profile}"), Text(facts), *(table for table in tables if table.rows)]


def _limits(rows: list[Row], published: bool) -> Table:
    """What must hold, and beside it what the networks' sizes alone come to: the ratio of counted operations."""
    token = [row for row in rows if row["guidance"] == "token"]
    counted = {
        (row["group"], row["batch"], row["length"], row["k"]): row["gflop_per_step"]
        for row in rows
        if row["guidance"] == "none" and row["planner"] == "random" and not row["block"]
    }
    main = [row for row in token if row["group"] == "batch"]
    lines: list[tuple[str, ...]] = []
    for row in (*main, *(row for row in token if row["group"] == "n_ratio")):
        value, processor = row["guided_over_unguided"], row["processor_over_unguided"]
        aside = "" if missing(processor) else f"; {number(processor)} in processor time"
        twin = counted.get((row["group"], row["batch"], row["length"], row["k"]))
        aside += f"; {number(row['gflop_per_step'] / twin)} counted" if twin else ""
        name, wanted = f"guided over unguided, {row['group']} {row[row['group']]}", f"{MOST_OVER_UNGUIDED}"
        lines.append((name, wanted, f"{number(value)} ({_range(row)}){aside}", _verdict(value <= MOST_OVER_UNGUIDED)))
    if main and published:
        gflop = main[0]["gflop_per_step"]
        name = f"GFLOP a step and sequence, n_ratio = {main[0]['n_ratio']}"
        lines.append((name, f"{MOST_GFLOP:g}", number(gflop, 2), _verdict(gflop <= MOST_GFLOP)))
    by_k = {row["k"]: row for row in token if row["group"] == "k"}
    if 1 in by_k and published:
        for k in sorted(set(by_k) - {1}):
            saved = by_k[1]["gflop_per_token"] / by_k[k]["gflop_per_token"]
            timed = by_k[1]["seconds_per_step"] * k / by_k[k]["seconds_per_step"]
            value = f"{number(saved, 2)} counted, {number(timed, 2)} timed"
            lines.append((f"cost of a token at k = 1 over k = {k}", f"about {k}", value, _verdict(saved > 0.98 * k)))
    return Table("Limits", ("what", "wanted", "measured", ""), tuple(lines), words=(0, 1, 2, 3))


def _sampling_table(rows: list[Row]) -> Table:
    what = ("guidance", "batch", "length", "n_ratio", "k", "order", "block")
    columns = (*what, "ms a step", "± %", "guided / unguided", "GFLOP a step", "share", "texts/s", "peak MB")
    lines: list[tuple[str, ...] | Group] = []
    for group, title in _GROUPS.items():
        chosen = [row for row in rows if row["group"] == group]
        if chosen:
            lines.append(Group(title))
        lines += [_sampling_line(row) for row in chosen]
    return Table("Steps of the sampler", columns, tuple(lines), words=(0, 5))


def _sampling_line(row: Row) -> tuple[str, ...]:
    ratio = row.get("guided_over_unguided")
    seconds = row.get("seconds_per_step")
    return (
        _NAMES[row["guidance"]],
        str(row["batch"]),
        str(row["length"]),
        DASH if row["guidance"] == "none" else str(row["n_ratio"]),
        str(row["k"]),
        str(row["planner"]),
        str(row["block"]) if row["block"] else DASH,
        DASH if missing(seconds) else number(1000 * float(row["seconds_per_step"]), 2),
        number(100 * row["spread"] if "spread" in row else None, 0),
        DASH if missing(ratio) else f"{number(ratio)} ({_range(row)})",
        number(row["gflop_per_step"], 3),
        _share(row.get("share_of_rate")),
        number(row.get("samples_per_second"), 3),
        number(row.get("peak_mb"), 0),
    )


def _growth_table(rows: list[Row]) -> Table:
    lines = tuple(
        (
            row["axis"],
            _NAMES[row["guidance"]],
            number(row["exponent_seconds"], 2),
            number(row["exponent_flops"], 2),
        )
        for row in rows
    )
    return Table("Growth, fitted exponents", ("with", "guidance", "of time", "of operations"), lines, words=(0, 1))


def _training_table(rows: list[Row]) -> Table:
    what = ("module", "precision", "batch", "length", "ms a step", "± %", "/ NELBO's")
    columns = (*what, "tokens/s", "GFLOP a step", "share", "loading / step", "peak MB")
    lines = tuple(
        (
            row["module"],
            row["precision"],
            str(row["batch"]),
            str(row["length"]),
            number(1000 * row["seconds_per_step"], 1),
            number(100 * row["spread"], 0),
            number(row.get("over_nelbo"), 2),
            number(row["tokens_per_second"], 0),
            number(row["gflop_per_step"], 2),
            _share(row["share_of_rate"]),
            f"{number(100 * row['loading_share'], 2)} %",
            number(row["peak_mb"], 0),
        )
        for row in rows
    )
    return Table("Steps of training", columns, lines, words=(0, 1))


def benchmark_panels(rows: Sequence[Row]) -> list[Panel]:
    """Step time by batch and length, unguided and guided: the published sizes, else the profile measured last."""
    timed = [row for row in rows if row["part"] == "machine"]
    names = [str(row["profile"]) for row in timed]
    profile = PUBLISHED if PUBLISHED in names else names[-1] if names else ""
    own = [row for row in rows if row["profile"] == profile and row["part"] == "sampling" and "spread" in row]
    panels = []
    for axis, groups, title in (
        ("batch", {"batch"}, "A step by batch"),
        ("length", {"batch", "length"}, "A step by length"),
    ):
        series = []
        for guidance in ("none", "token"):
            chosen = [row for row in own if row["group"] in groups and row["guidance"] == guidance]
            if axis == "length" and chosen:
                chosen = [row for row in chosen if row["batch"] == min(row["batch"] for row in chosen)]
            points = tuple(
                Point(float(x), 1000 * next(row["seconds_per_step"] for row in chosen if row[axis] == x))
                for x in sorted({row[axis] for row in chosen})
            )
            if len(points) > 1:  # of one size there is nothing to see over the sizes
                label = _NAMES[guidance]
                series.append(Series(label, points, _COLOURS[guidance], "o" if guidance == "token" else "s"))
        if series:
            ticks = tuple((point.x, f"{point.x:g}") for point in series[0].points)
            panels.append(Panel(title, f"ms, profile {profile}", tuple(series), (), ticks, axis, log_x=True))
    return panels


def _range(row: Row) -> str:
    return f"{number(row['guided_over_unguided_low'])} to {number(row['guided_over_unguided_high'])}"


def _share(value: object) -> str:
    return percent(round(value, 3)) if isinstance(value, float) and not missing(value) else DASH


def _verdict(holds: bool) -> str:
    return "holds" if holds else "missed"
