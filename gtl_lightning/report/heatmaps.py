"""Transition matrices side by side: a grid of heat maps, one scale for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gtl_lightning.report.figures import rc_style, save_themes, to_bytes
from gtl_lightning.report.style import Theme

CELL = 1.25  # inches, side of a heat map
GAP = 0.14  # inches between them
LEFT, TOP, RIGHT, BOTTOM = 0.95, 0.62, 0.75, 0.34  # inches
# From paper to ink through one hue, so that a value's place on the scale is seen in grey as well.
HUES = {"light": ("#ffffff", "#a8c8e4", "#0067a5", "#06283f"), "dark": ("#14171a", "#1d4462", "#5cb8f0", "#f1f8ff")}


@dataclass(frozen=True)
class Heatmap:
    """A matrix with entries in [0, 1], and a line under it."""

    matrix: Sequence[Sequence[float]]
    note: str = ""


def save_heatmaps(
    folder: Path, name: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Heatmap | None]]]
) -> list[Path]:
    """Write `name`.svg, `name`.png and `name`-dark.svg: labelled rows of heat maps under the columns' names."""
    return save_themes(folder, name, lambda theme, kind: render_heatmaps(columns, rows, theme, kind))


def render_heatmaps(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Heatmap | None]]], theme: Theme, kind: str = "svg"
) -> bytes:
    """The grid as SVG or PNG bytes; equal data gives equal bytes."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    step_y = CELL + GAP + 0.2
    width = LEFT + len(columns) * (CELL + GAP) + RIGHT
    height = TOP + len(rows) * step_y + BOTTOM
    scale = LinearSegmentedColormap.from_list("transition", HUES[theme.name])
    with matplotlib.rc_context(rc_style(theme)):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), facecolor=theme.paper)
        image = None
        for line, (label, maps) in enumerate(rows):
            top = TOP + line * step_y
            middle = 1 - (top + CELL / 2) / height
            figure.text(0.1 / width, middle, label, fontsize=11, fontweight="bold", va="center")
            for column, entry in enumerate(maps):
                left = LEFT + column * (CELL + GAP)
                if line == 0:
                    name = columns[column]
                    figure.text((left + CELL / 2) / width, 1 - (TOP - 0.1) / height, name, fontsize=9.5, ha="center")
                if entry is None:
                    continue
                axes = figure.add_axes((left / width, 1 - (top + CELL) / height, CELL / width, CELL / height))
                image = axes.imshow(entry.matrix, cmap=scale, vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_color(theme.grid)
                under = 1 - (top + CELL + 0.16) / height
                figure.text((left + CELL / 2) / width, under, entry.note, fontsize=8.5, color=theme.muted, ha="center")
        if image is not None:
            left = LEFT + len(columns) * (CELL + GAP) + 0.08
            tall = min(2 * CELL, len(rows) * step_y - 0.3)
            bar = figure.add_axes((left / width, 1 - (TOP + tall) / height, 0.13 / width, tall / height))
            figure.colorbar(image, cax=bar).outline.set_visible(False)
            bar.tick_params(length=0, labelsize=8.5)
        foot = "Rows: this token; columns: the next. Under each: row-KL. Means over seeds."
        figure.text(0.1 / width, 0.1 / height, foot, fontsize=8.5, color=theme.muted)
        return to_bytes(figure, kind)
