"""The study's last stage: reports/ar2diff.json, ar2diff.md and the figures, of what the others have left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gtl_lightning.files import write_json, write_text
from gtl_lightning.records import read_records
from gtl_lightning.report.document import Block, Figure, Heading, Table, TableCell, Text, to_markdown
from gtl_lightning.report.figures import save_figure
from gtl_lightning.report.style import number
from gtl_lightning.studies.ar2diff.panels import chain_panels, curve_panels, speed_panels, systems_of, task_panels
from gtl_lightning.studies.ar2diff.settings import AR2Diff
from gtl_lightning.studies.ar2diff.study import CHAINS, SPEED, TEXT, study
from gtl_lightning.studies.rows import Mean, cell, mean, paired
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import REPORTS, log

Row = Mapping[str, Any]
FROM_CAUSAL, FROM_NOTHING, SHIFTED = "AR2Diff", "from nothing", "from nothing, shifted"
FINAL = "AR2Diff, to the end"
METRICS = {"rouge_l": "ROUGE-L", "chrf": "chrF", "exact": "exact, %"}


def ar2diff_report(settings: AR2Diff, params: Params) -> None:
    """reports/ar2diff.json, ar2diff.md and the figures in reports/ar2diff; `params` say where it is tracked.

    Raises:
        UserError: a stage has not run.
    """
    chains, text, speed = (read_records(path) for path in (CHAINS, TEXT, SPEED))
    write_json(REPORTS / "ar2diff.json", [*chains, *text, *speed])
    seeds = len(settings.seeds)
    note = f"Bars: 95 % t-interval over {seeds} seeds." if seeds > 1 else "One seed."
    folder = REPORTS / "ar2diff"
    written = [
        *save_figure(folder, "chains", chain_panels(chains), f"Means over {seeds} seeds." if seeds > 1 else note),
        *save_figure(folder, "text", curve_panels(text), note),
        *save_figure(folder, "tasks", task_panels(text), note),
        *save_figure(folder, "speed", speed_panels(speed), "One seed."),
    ]
    page = REPORTS / "ar2diff.md"
    write_text(page, to_markdown("AR2Diff: a causal model, continued as a denoiser", _blocks(chains, text, speed)))
    with study(params).parent() as run:
        run.log_metrics(summary(chains, text))
        for path in (page, *written):
            run.log_file(path, "report")
    log.info("ar2diff report: %s", page)


def summary(chains: Sequence[Row], text: Sequence[Row]) -> dict[str, float]:
    """The figures that are tracked, means over seeds at the last N."""
    found = {}
    for name in dict.fromkeys(row["chain"] for row in chains):
        last = max(row["n"] for row in chains if row["start"] == FROM_CAUSAL)
        for start in (FROM_CAUSAL, FROM_NOTHING):
            found[f"gap.{name}.{start}"] = mean(chains, "gap", chain=name, start=start, shift=True, n=last)[0]
        found[f"gap.{name}.final"] = mean(chains, "gap", chain=name, start=FINAL)[0]
    for n, differences in text_differences(text).items():
        found |= {f"difference.{name}.{n}": value for name, (value, _) in differences.items()}
    return {"".join(c if c.isalnum() or c in "._- " else "_" for c in key): value for key, value in found.items()}


def text_differences(text: Sequence[Row]) -> dict[int, dict[str, Mean]]:
    """N -> AR2Diff's nats per token less those from nothing, at equal steps of diffusion and at equal compute."""
    curve = [row for row in text if row["part"] == "curve"]
    found: dict[int, dict[str, Mean]] = {}
    for n, before in dict.fromkeys((row["n"], row["causal_steps"]) for row in curve if row["start"] == FROM_CAUSAL):
        own = {"start": FROM_CAUSAL, "n": n}
        found[n] = {
            "equal steps": paired(curve, "nats", own, {"start": FROM_NOTHING, "n": n}),
            "equal steps, shifted": paired(curve, "nats", own, {"start": SHIFTED, "n": n}),
            "equal compute": paired(curve, "nats", own, {"start": FROM_NOTHING, "n": n + before}),
        }
    return found


def chain_wins(chains: Sequence[Row], name: str) -> dict[int, Mean]:
    """N -> the better way to continue a causal model less the better way from nothing, of means over seeds, by seed."""
    own = [row for row in chains if row["chain"] == name]
    found = {}
    for n in sorted({int(row["n"]) for row in own if row["start"] == FROM_CAUSAL}):
        best = [
            min((True, False), key=lambda shift: mean(own, "gap", start=start, shift=shift, n=n)[0])
            for start in (FROM_CAUSAL, FROM_NOTHING)
        ]
        one, other = (
            {"start": start, "shift": shift, "n": n}
            for start, shift in zip((FROM_CAUSAL, FROM_NOTHING), best, strict=True)
        )
        found[n] = paired(own, "gap", one, other)
    return found


def _blocks(chains: Sequence[Row], text: Sequence[Row], speed: Sequence[Row]) -> list[Block]:
    named = ", ".join(f"{place} {system}" for place, system in enumerate(systems_of(text), start=1))
    return [
        Text(_lead(text), "lead"),
        Heading("Text"),
        Figure("ar2diff/text.svg", "NELBO by steps of diffusion", "Held-out nats per token; steps of 16 texts.", ()),
        _difference_table(text),
        _crossed_table(text),
        _drawn_table(text),
        Heading("Prefix to target"),
        Figure("ar2diff/tasks.svg", "chrF and ROUGE-L by system", f"Fine-tuned alike: {named}.", ()),
        *_task_tables(text),
        Heading("Time against length"),
        Figure("ar2diff/speed.svg", "Seconds by length, quality by length", "Processor time of one thread.", ()),
        _speed_table(speed),
        Heading("Markov chains"),
        Figure("ar2diff/chains.svg", "Gap to the entropy by steps", "Nats per token.", ()),
        _chain_table(chains),
        _final_table(chains),
    ]


def _lead(text: Sequence[Row]) -> str:
    differences = text_differences(text)
    said = []
    for name in ("equal steps", "equal compute"):
        wins = [n for n, found in differences.items() if found[name][0] + found[name][1] < 0]
        losses = [n for n, found in differences.items() if found[name][0] - found[name][1] > 0]
        said.append(
            f"at {name} AR2Diff is clear of it at {len(wins)} of {len(differences)} N, clearly behind at {len(losses)}"
        )
    line = "; ".join(said)
    return f"Held-out NELBO against diffusion from nothing: {line}."


def _difference_table(text: Sequence[Row]) -> Table:
    curve = [row for row in text if row["part"] == "curve"]
    causal = [row for row in text if row["part"] == "causal"]
    rows: list[tuple[TableCell | str, ...]] = []
    for n, found in text_differences(text).items():
        rows.append(
            (
                str(n),
                *(cell(mean(curve, "nats", start=start, n=n), 3) for start in (FROM_CAUSAL, FROM_NOTHING, SHIFTED)),
                *(cell(value, 3, sign=True) for value in found.values()),
            )
        )
    ends = ", ".join(
        f"{number(mean(causal, 'nats', n=n)[0], 3)} after {n} steps" for n in dict.fromkeys(row["n"] for row in causal)
    )
    note = f"Differences are AR2Diff's less the other's, paired by seed: below 0 it is ahead. The causal model: {ends}."
    columns = ("N", FROM_CAUSAL, FROM_NOTHING, "shifted", "equal steps", "shifted", "equal compute")
    return Table("NELBO, nats per token, held out", columns, tuple(rows), (0,), note)


def _crossed_table(text: Sequence[Row]) -> Table:
    own = [row for row in text if row["part"] == "crossed"]
    rows: list[tuple[TableCell | str, ...]] = []
    for loss, shift, anneal in dict.fromkeys((row["loss"], row["shift"], row["anneal"]) for row in own):
        where = {"loss": loss, "shift": shift, "anneal": anneal}
        base = {"loss": loss, "shift": True, "anneal": 0.0}
        rows.append(
            (
                str(loss),
                "yes" if shift else "no",
                "yes" if anneal else "no",
                cell(mean(own, "nats", **where), 3),
                "" if where == base else cell(paired(own, "nats", where, base), 3, sign=True),
            )
        )
    note = "SUNDAE is scored by the bound of uniform noise, whose level it is not told; the others by that of masks."
    n = own[0]["n"] if own else 0
    columns = ("loss", "shift", "annealed", "nats per token", "less shifted, not annealed")
    return Table(f"From the causal model, N = {n}", columns, tuple(rows), (0, 1, 2), note)


def _drawn_table(text: Sequence[Row]) -> Table:
    own = [row for row in text if row["part"] == "drawn"]
    systems = dict.fromkeys(str(row["system"]) for row in own)
    rows = tuple((name, cell(mean(own, "mauve", system=name), 3)) for name in systems)
    count = own[0]["texts"] if own else 0
    note = f"{count} texts each at temperature 1, one token a step, beside as many held-out examples; higher is better."
    return Table("Drawn with nothing given", ("system", "MAUVE"), rows, (0,), note)


def _task_tables(text: Sequence[Row]) -> list[Table]:
    own = [row for row in text if row["part"] == "task"]
    tables = []
    for task in dict.fromkeys(row["task"] for row in own):
        rows: list[tuple[TableCell | str, ...]] = []
        found = dict.fromkeys((row["system"], row["way"]) for row in own if row["task"] == task)
        for system, way in sorted(found, key=lambda pair: systems_of(own).index(pair[0])):
            where = {"task": task, "system": system, "way": way}
            (causal_steps, n, more), *_ = {
                (row["causal_steps"], row["n"], row["task_steps"]) for row in own if row["system"] == system
            }
            rows.append(
                (
                    str(system),
                    str(way),
                    f"{causal_steps} + {n} + {more}",
                    cell(mean(own, "nats", **where), 3),
                    *(cell(mean(own, metric, **where), 2) for metric in METRICS),
                )
            )
        note = "Steps: causal, diffusion, on the task. Nats are the likelihood's of AR, a bound of all else."
        columns = ("system", "written", "steps", "nats per token", *METRICS.values())
        tables.append(Table(task, columns, tuple(rows), (0, 1, 2), note))
    return tables


def _speed_table(speed: Sequence[Row]) -> Table:
    batches = sorted({row["batch"] for row in speed if row["batch"] is not None})
    rows: list[tuple[TableCell | str, ...]] = []
    for way, length in dict.fromkeys((row["way"], row["length"]) for row in speed):
        where = {"way": way, "length": length}
        rows.append(
            (
                str(way),
                str(length),
                *(number(1000 * mean(speed, "seconds", batch=batch, **where)[0] / batch, 2) for batch in batches),
                *(number(mean(speed, metric, batch=None, **where)[0], 2) for metric in ("rouge_l", "chrf")),
            )
        )
    columns = ("written", "tokens", *(f"ms a text, {batch} together" for batch in batches), "ROUGE-L", "chrF")
    return Table("One draft each", columns, tuple(rows), (0,))


def _chain_table(chains: Sequence[Row]) -> Table:
    rows: list[tuple[TableCell | str, ...]] = []
    for name in dict.fromkeys(row["chain"] for row in chains):
        for n, difference in chain_wins(chains, name).items():
            gaps = [
                cell(mean(chains, "gap", chain=name, start=start, shift=shift, n=n), 3)
                for start in (FROM_CAUSAL, FROM_NOTHING)
                for shift in (True, False)
            ]
            rows.append((str(name), str(n), *gaps, cell(difference, 3, sign=True)))
    columns = ("chain", "N", "AR2Diff, shifted", "not", "from nothing, shifted", "not", "best less best")
    return Table("Nats per token above the entropy", columns, tuple(rows), (0,))


def _final_table(chains: Sequence[Row]) -> Table:
    own = {str(row["chain"]): row["n"] for row in chains if row["start"] == FINAL}
    rows: list[tuple[TableCell | str, ...]] = []
    for name, n in own.items():
        gaps = [cell(mean(chains, "gap", chain=name, start=start), 3) for start in ("causal model", FINAL)]
        rows.append((name, *gaps, str(n)))
    note = "The shifted continuation with chains.final, its rate let down; the exact posterior, same masks, is 0."
    return Table("To the end", ("chain", "causal model", "AR2Diff", "steps"), tuple(rows), (0,), note)
