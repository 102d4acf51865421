"""The report: figures, report.md and report.html from the flat rows of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtl_lightning.files import remove, write_text
from gtl_lightning.methods import ROLLS
from gtl_lightning.report import sections
from gtl_lightning.report.document import Block, Bullets, Figure, Heading, Samples, Table, Text, to_html, to_markdown
from gtl_lightning.report.figures import render, save_figure
from gtl_lightning.report.panels import Panel, ablation_panels, advisor_panels, interval_note, transfer_panels
from gtl_lightning.report.style import THEMES, method_colours, method_label, missing, number, order_methods, percent
from gtl_lightning.report.tables import BASELINE, find_holes, paired

Row = Mapping[str, Any]
TITLE = "Guided transfer against fine-tuning"
GENERATED = "These are results on generated sample text, not on real abstracts."
FIGURES = ("headline", "gamma", "n_ratio", "advisor")
SAMPLES_SHOWN = 3
SAMPLE_CHARACTERS = 700


@dataclass(frozen=True)
class Report:
    """What was written, and what it says: `answer` in two sentences, `verdicts` one for each metric and fraction."""

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
    samples: Mapping[str, Sequence[str]],
    data_summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
    settings: Mapping[str, Any],
    notes: Sequence[str],
    holes: Iterable[Row] = (),
) -> Report:
    """Write report.md, report.html and figures/ into `folder`; equal input gives equal bytes.

    Args:
        folder: where to write; made if need be.
        transfer: rows of reports/transfer.json.
        ablation: rows of reports/ablation.json.
        advisor: rows of reports/advisor.json.
        samples: method -> texts, target texts under `real`; `settings["sample_fraction"]` says at what fraction.
        data_summary: splits/summary.json.
        provenance: data/provenance.json; `generated: true` puts a warning over everything.
        settings: shown as a table. `methods`, `fractions`, `seeds` (or `sweep` as in params.yaml) give the grid that
            missing cells are counted against.
        notes: sentences shown under the results.
        holes: rows {method, fraction, seed, cause} that say why a cell is missing.

    Raises:
        UserError: two rows for one cell, or a folder that cannot be written.
    """
    folder = Path(folder)
    transfer = [row for row in transfer if row.get("method")]
    grid = _grid(settings)
    missing_cells, cells = find_holes(transfer, grid, holes)
    generated = bool(provenance.get("generated"))
    drawn = _panels(transfer, ablation, advisor)
    note = " ".join(filter(None, (interval_note(transfer), "Generated sample text." if generated else "")))
    paths = _save(folder / "figures", drawn, note, "Generated sample text." if generated else "")
    answer = sections.answer(transfer)
    pairs = [
        row
        for metric in sections.HEADLINE
        for method in sections.guided_methods(transfer)[:1]
        for row in paired(transfer, method, BASELINE, metric)
    ]
    blocks: list[Block] = []
    if generated:
        blocks.append(Text(GENERATED, "warning"))
    blocks += [Text(sentence, "lead") for sentence in answer]
    if missing_cells:
        many = f"{len(missing_cells)} of {cells} cells have no result; they are listed under missing cells."
        blocks.append(Text(many, "warning"))
    blocks += _figure("headline", drawn, "Held-out NELBO and MAUVE against the share of target data", note)
    blocks += [Heading("Results"), *(sections.result_table(transfer, m, grid) for m in sections.HEADLINE)]
    blocks += [Heading("GTL against fine-tuning"), sections.difference_table(transfer)]
    blocks += [Bullets(tuple(notes))] if notes else []
    blocks += _advice(advisor, drawn)
    blocks += _ablation(drawn)
    blocks += _sample_blocks(samples, settings.get("sample_fraction"))
    quality = sections.quality_tables(transfer)
    blocks += [Heading("Quality of the sampled text"), Text(_QUALITY_TEXT), *quality] if quality else []
    blocks += [Heading("Cost"), sections.cost_table(transfer)]
    blocks += [Heading("Data"), *_origin(provenance), *sections.data_tables(data_summary)]
    blocks += [Heading("Published figures"), *sections.published_blocks(transfer)]
    blocks += [Heading("Missing cells"), *sections.hole_blocks(missing_cells, cells)]
    flat = tuple((key, value) for key, value in _flatten(settings))
    blocks += [Heading("Settings"), Table("Parameters", ("Key", "Value"), flat, (0, 1), folded=True)] if flat else []
    report = Report(
        folder / "report.md",
        folder / "report.html",
        tuple(paths),
        tuple(answer),
        tuple(row["sentence"] for row in pairs),
        tuple(missing_cells),
    )
    write_text(report.markdown, to_markdown(TITLE, blocks))
    write_text(report.html, to_html(TITLE, blocks))
    return report


_QUALITY_TEXT = (
    "No column here has a best value of its own: the nearer to the row of real target text, the better. A longest copy "
    "above that of real text, or a nearer neighbour in the training data than real text has, points at memorisation."
)


def _panels(transfer: Sequence[Row], ablation: Sequence[Row], advisor: Sequence[Row]) -> dict[str, list[Panel]]:
    drawn = {
        "headline": [panel for panel in transfer_panels(transfer) if panel.series] if transfer else [],
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


def _figure(name: str, drawn: Mapping[str, list[Panel]], alt: str, caption: str) -> list[Block]:
    if name not in drawn:
        return [Text(f"No figure ({alt}): there are no rows for it.")]
    # One picture for each panel, so that a phone can put them under one another.
    pictures = tuple((render([panel], THEMES[0]), render([panel], THEMES[1])) for panel in drawn[name])
    return [Figure(f"figures/{name}.svg", alt, caption, pictures)]


def _advice(advisor: Sequence[Row], drawn: Mapping[str, list[Panel]]) -> list[Block]:
    blocks: list[Block] = [Heading("Advisor")]
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


def _ablation(drawn: Mapping[str, list[Panel]]) -> list[Block]:
    strength = "Resampled from the same trained networks at other strengths; gamma 0 is the unguided source."
    pruning = "Resampled with only the n most likely tokens of the denoiser scored by the ratio; all: no pruning."
    return [
        Heading("Strength of guidance"),
        *_figure("gamma", drawn, "Sampling quality against gamma", strength),
        Heading("Candidates scored"),
        *_figure("n_ratio", drawn, "Sampling quality and time against n_ratio", pruning),
    ]


def _sample_blocks(samples: Mapping[str, Sequence[str]], fraction: Any) -> list[Block]:
    if not samples:
        return []
    methods = set(samples) - {"real"}
    colours = method_colours(methods)
    order = ["real"] * ("real" in samples) + order_methods(methods)
    columns = tuple(
        (method_label(m), colours.get(m), tuple(_shorten(t) for t in samples[m][:SAMPLES_SHOWN])) for m in order
    )
    at = "" if missing(fraction) else f" at {percent(fraction)} of the target data"
    text = f"The first {SAMPLES_SHOWN} samples of each method{at}, not selected."
    return [Heading("Samples side by side"), Text(text), Samples(columns)]


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
