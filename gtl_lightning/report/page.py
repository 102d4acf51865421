"""The report: figures, report.md and report.html from the flat rows of results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtl_lightning.files import remove, write_text
from gtl_lightning.methods import ROLLS
from gtl_lightning.report import sections
from gtl_lightning.report.answer import DEMO, findings, limits, next_command
from gtl_lightning.report.costs import cost_panels, cost_tables, time_tables
from gtl_lightning.report.differences import HEADLINE, comparisons, other_methods, powers
from gtl_lightning.report.document import (
    Block,
    Bullets,
    Code,
    Contents,
    Figure,
    Heading,
    Picture,
    Samples,
    Table,
    Text,
    to_html,
    to_markdown,
)
from gtl_lightning.report.embedded import trajectory_section
from gtl_lightning.report.figures import render, save_figure, spots
from gtl_lightning.report.panels import Panel, ablation_panels, advisor_panels, interval_note, transfer_panels
from gtl_lightning.report.style import THEMES, method_colours, method_label, missing, number, order_methods, percent
from gtl_lightning.report.tables import find_holes
from gtl_lightning.report.words import describe, numbers

Row = Mapping[str, Any]
Texts = Mapping[str, Sequence[str]]
TITLE = "Guided transfer against fine-tuning"
GENERATED = "These are results on generated sample text, not on real abstracts."
LOCAL = "127.0.0.1"
FIGURES = ("headline", "cost", "gamma", "n_ratio", "advisor")
SAMPLES_SHOWN = 3
SAMPLE_CHARACTERS = 700


@dataclass(frozen=True)
class Report:
    """What was written, and what it says: `answer` a sentence for each share, `verdicts` one a metric and share."""

    markdown: Path
    html: Path
    figures: tuple[Path, ...]
    answer: tuple[str, ...]
    verdicts: tuple[str, ...]
    holes: tuple[Mapping[str, Any], ...]


def write_report(
    folder: Path | str,
    *,
    transfer: Sequence[Row],
    ablation: Sequence[Row],
    advisor: Sequence[Row],
    samples: Mapping[float | None, Texts],
    data_summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
    settings: Mapping[str, Any],
    notes: Sequence[str],
    holes: Iterable[Row] = (),
    warnings: Sequence[str] = (),
    made: Mapping[str, str] | None = None,
    after_demo: str = "",
    trajectory: str | None = None,
) -> Report:
    """Write report.md, report.html and figures/ into `folder`; equal input gives equal bytes.

    Args:
        folder: where to write; made if need be.
        transfer: rows of reports/transfer.json.
        ablation: rows of reports/ablation.json.
        advisor: rows of reports/advisor.json.
        samples: share of the data -> method -> texts; under None the untouched source's and, as `real`, target texts.
        data_summary: splits/summary.json.
        provenance: data/provenance.json; `generated: true` puts a warning over everything.
        settings: shown as a table. `methods`, `fractions`, `seeds` (or `sweep` as in params.yaml) give the grid that
            missing cells are counted against.
        notes: sentences shown under the results.
        holes: rows {method, fraction, seed, cause} that say why a cell is missing.
        warnings: what trainings warned of, shown on the first screen.
        made: how the report was made, as name -> value (commit, date, command, versions); `runs` is the address of
            the tracked runs.
        after_demo: of a demonstration, which is said over everything: the command that makes the comparison itself.
        trajectory: page (`report.trajectory`) of how a few texts came to be; None for none.

    Raises:
        UserError: two rows for one cell, or a folder that cannot be written.
    """
    folder = Path(folder)
    transfer = [row for row in transfer if row.get("method")]
    grid = _grid(settings)
    missing_cells, cells = find_holes(transfer, grid, holes)
    generated = "Generated sample text." if provenance.get("generated") else ""
    found, others = findings(transfer), other_methods(transfer)
    drawn = _panels(transfer, ablation, advisor, frozenset().union(*(finding.compared for finding in found)))
    note = " ".join(filter(None, (interval_note(transfer), generated)))
    paths = _save(folder / "figures", drawn, note, generated)
    body: list[Block] = [
        *(_section("Results")),
        *(sections.result_table(transfer, metric, grid) for metric in HEADLINE),
        *_section("GTL against fine-tuning"),
        *(Text(sentence) for sentence in sections.answer(transfer)),
        *(Text(sentence) for sentence in powers([*comparisons(transfer), *comparisons(transfer, others)])),
        sections.difference_table(transfer),
        *([sections.difference_table(transfer, others)] if others else []),
        *([Bullets(tuple(notes))] if notes else []),
        *_section("Cost"),
        *_figure("cost", drawn, "Held-out NELBO and MAUVE over what training takes", _COST),
        *cost_tables(transfer),
        *_advice(advisor, drawn),
        *_ablation(drawn, ablation),
        *_sample_blocks(samples),
        *trajectory_section(folder / "figures" / "trajectory.html", trajectory),
    ]
    quality = sections.quality_tables(transfer)
    body += [*_section("Quality of the sampled text"), Text(_QUALITY_TEXT), *quality] if quality else []
    body += [*_section("Data"), *_origin(provenance), *sections.data_tables(data_summary)]
    body += [*_section("Published figures"), *sections.published_blocks(transfer)]
    body += [*_section("Missing cells"), *sections.hole_blocks(missing_cells, cells)]
    body += _made(made or {}, settings)
    blocks: list[Block] = [
        *(Text(said, "warning") for said, holds in ((DEMO, after_demo), (GENERATED, generated)) if holds),
        *_answer(transfer, [(finding.best, finding.rest) for finding in found], after_demo, grid["repeats"] or ()),
        *(Text(warning, "warning") for warning in warnings),
    ]
    if missing_cells:
        many = f"{len(missing_cells)} of {cells} cells have no result; they are listed under missing cells."
        blocks.append(Text(many, "warning"))
    blocks += _figure("headline", drawn, "Held-out NELBO and MAUVE against the share of target data", note, table=False)
    blocks += _byline(made or {})
    blocks.append(Contents(tuple((b.text, b.anchor) for b in body if isinstance(b, Heading) and b.anchor)))
    report = Report(
        folder / "report.md",
        folder / "report.html",
        tuple(paths),
        tuple([*(finding.sentence for finding in found), *limits(transfer)]),
        tuple(row["sentence"] for row in comparisons(transfer)),
        tuple(missing_cells),
    )
    title = f"Demo: {TITLE[0].lower()}{TITLE[1:]}" if after_demo else TITLE
    write_text(report.markdown, to_markdown(title, [*blocks, *body]))
    write_text(report.html, to_html(title, [*blocks, *body]))
    return report


_COST = (
    "A point a method and share of the data, means over seeds; the larger the point, the more data. Seconds of the "
    "processor (by the clock on a GPU) of all fits, of preparing texts, and of training the networks that a method "
    "reads, on the machine that each was trained on."
)
_QUALITY_TEXT = (
    "No column here has a best value of its own: the nearer to the row of real target text, the better. A longest copy "
    "above that of real text, or a nearer neighbour in the training data than real text has, points at memorisation."
)


def _section(title: str) -> list[Block]:
    """A heading that the contents list, its anchor as GitHub makes it of the title."""
    return [Heading(title, anchor=title.lower().replace(" ", "-"))]


def _answer(
    transfer: Sequence[Row], found: Sequence[tuple[str, str]], after_demo: str, repeats: Sequence[int]
) -> list[Block]:
    if not found:
        return [Text("No result yet, so there is nothing to compare.", "lead")]
    blocks: list[Block] = [Bullets(tuple(found), lead=True), *(Text(sentence) for sentence in limits(transfer))]
    following = ("Next, the comparison itself:", after_demo) if after_demo else next_command(transfer, repeats)
    return [*blocks, Text(following[0]), Code(following[1])] if following else blocks


def _byline(made: Mapping[str, str]) -> list[Block]:
    said = " ".join(f"{word} {made[key]}" for word, key in (("on", "date"), ("at commit", "commit")) if made.get(key))
    runs = made.get("runs", "")
    link = (f"all runs in MLflow{', once make ui runs' if LOCAL in runs else ''}", runs) if runs else None
    return [Text(f"Made {said}.", "note", link)] if said else []


def _made(made: Mapping[str, str], settings: Mapping[str, Any]) -> list[Block]:
    rows = [(key, value) for key, value in made.items() if value]
    flat = [(key, value) for key, value in _flatten(settings)]
    blocks: list[Block] = [Table("How this report was made", ("What", "Value"), tuple(rows), (0, 1))] if rows else []
    blocks += [Table("Parameters", ("Key", "Value"), tuple(flat), (0, 1), folded=True)] if flat else []
    return [*_section("This report"), *blocks] if blocks else []


def _panels(
    transfer: Sequence[Row], ablation: Sequence[Row], advisor: Sequence[Row], strong: Collection[str]
) -> dict[str, list[Panel]]:
    drawn = {
        "headline": [panel for panel in transfer_panels(transfer, strong=strong) if panel.series] if transfer else [],
        "cost": cost_panels(transfer, strong),
        "gamma": ablation_panels(ablation, "gamma", transfer),
        "n_ratio": ablation_panels(ablation, "n_ratio", transfer),
        "advisor": advisor_panels(advisor),
    }
    return {name: panels for name, panels in drawn.items() if panels}


def _save(folder: Path, drawn: Mapping[str, list[Panel]], note: str, short: str) -> list[Path]:
    # A figure of an earlier run that has no data now would pass for a result of this one.
    for name in set(FIGURES) - set(drawn):
        remove(folder / f"{name}.svg", folder / f"{name}.png", folder / f"{name}-dark.svg")
    paths: list[Path] = []
    for name, panels in drawn.items():
        paths += save_figure(folder, name, panels, note if name == "headline" else short)
    return paths


def _figure(name: str, drawn: Mapping[str, list[Panel]], alt: str, caption: str, *, table: bool = True) -> list[Block]:
    if name not in drawn:
        return [Text(f"No figure ({alt}): there are no rows for it.")]
    # One picture for each panel, so that a phone can put them under one another.
    pictures = tuple(
        Picture(render([panel], THEMES[0]), render([panel], THEMES[1]), describe(panel), spots(panel))
        for panel in drawn[name]
    )
    under = numbers(drawn[name], f"Numbers of the figure: {alt}") if table else None
    return [Figure(f"figures/{name}.svg", alt, caption, pictures, under)]


def _advice(advisor: Sequence[Row], drawn: Mapping[str, list[Panel]]) -> list[Block]:
    blocks: list[Block] = _section("Advisor")
    if not advisor:
        return [*blocks, Text("The advisor gave no rows.")]
    said: dict[tuple[Any, str], Any] = {}
    for row in sorted(advisor, key=lambda row: -1.0 if missing(row["fraction"]) else -row["fraction"]):
        if row.get("sentence"):
            said.setdefault((row["fraction"], str(row["sentence"])), row.get("seed"))
    caption = (
        "Overlap of the domains as the ratio sees it, and calibration of the classifier, before anything is sampled."
    )
    sentences = tuple(f"{percent(fraction)}, seed {seed}: {text}" for (fraction, text), seed in said.items())
    blocks += _figure("advisor", drawn, "Effective sample size and calibration error by noise level", caption)
    return [*blocks, sections.advisor_table(advisor), *([Bullets(sentences)] if sentences else [])]


def _ablation(drawn: Mapping[str, list[Panel]], ablation: Sequence[Row]) -> list[Block]:
    strength = "Resampled from the same trained networks at other strengths; gamma 0 is the unguided source."
    pruning = "Resampled with only the n most likely tokens of the denoiser scored by the ratio; all: no pruning."
    return [
        *_section("Strength of guidance"),
        *_figure("gamma", drawn, "Sampling quality against gamma", strength),
        *_section("Candidates scored"),
        *_figure("n_ratio", drawn, "Sampling quality against n_ratio", pruning),
        *time_tables(ablation),
    ]


def _sample_blocks(samples: Mapping[float | None, Texts]) -> list[Block]:
    """Target texts and the untouched source's, then every method's at each share; HTML opens the smallest share."""
    shares = sorted((share for share in samples if share is not None), reverse=True)
    blocks: list[Block] = []
    for share in ([None] if samples.get(None) else []) + shares:
        methods = set(samples[share]) - {"real"}
        colours = method_colours(methods)
        order = ["real"] * ("real" in samples[share]) + order_methods(methods)
        columns = tuple(
            (method_label(m), colours.get(m), tuple(_shorten(t) for t in samples[share][m][:SAMPLES_SHOWN]))
            for m in order
        )
        caption = "" if share is None else f"Samples at {percent(share)} of the target data"
        blocks.append(Samples(columns, caption, folded=share is not None and share != shares[-1]))
    text = f"The first {SAMPLES_SHOWN} samples of each method and share, not selected."
    return [*_section("Samples side by side"), Text(text), *blocks] if blocks else []


def _origin(provenance: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = [Text(GENERATED, "warning")] if provenance.get("generated") else []
    parts = [f"Kind: {provenance.get('kind', 'unknown')}."]
    if not missing(provenance.get("records")):
        parts.append(f"Records: {number(provenance['records'], 0)}.")
    if provenance.get("sha256"):
        parts.append(f"sha256 {provenance['sha256']}.")
    return [*blocks, Text(" ".join(parts))]


def _grid(settings: Mapping[str, Any]) -> dict[str, Any]:
    sweep = settings.get("sweep") or {}
    return {
        "methods": settings.get("methods") or [name for key in ROLLS for name in sweep.get(key, ())],
        "fractions": settings.get("fractions") or sweep.get("fractions"),
        "seeds": settings.get("seeds") or sweep.get("seeds"),
        "repeats": settings.get("repeats") or sweep.get("repeats"),
    }


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{key}", ", ".join(map(str, value))))
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _shorten(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS].rstrip() + " …"
