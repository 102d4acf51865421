"""One page, whole in itself, that shows how texts came about, reveal by reveal; two runs side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from gtl_lightning.core.recorder import Choice
from gtl_lightning.report.document import PAGES


@dataclass(frozen=True)
class Trajectory:
    """What one run left of some texts.

    Attributes:
        name: of the run, as a heading.
        note: one line below it.
        starts: token ids of each text before the run, mask_index where nothing stood.
        texts: the choices of each.
    """

    name: str
    note: str
    starts: Sequence[Sequence[int]]
    texts: Sequence[Sequence[Choice]]


def trajectory_page(
    title: str, note: str, runs: Sequence[Trajectory], piece: Callable[[int], str], mask_index: int
) -> str:
    """HTML that needs no network: a slider over the steps, and at each token its step and its candidates.

    Args:
        title: of the page.
        note: one line below it.
        runs: one or two, of the same texts.
        piece: token id -> how it is written.
        mask_index: id of what is not there yet.
    """
    used = {mask_index}
    for run in runs:
        used |= {token for start in run.starts for token in start}
        used |= {one.token for text in run.texts for choice in text for one in choice.candidates}
        used |= {token for text in run.texts for choice in text for token in (choice.token, choice.replaced)}
    data = {
        "mask": mask_index,
        "pieces": {token: piece(token) for token in sorted(used)},
        "runs": [
            {
                "name": run.name,
                "texts": [
                    {"start": list(start), "choices": [_choice(choice) for choice in choices]}
                    for start, choices in zip(run.starts, run.texts, strict=True)
                ],
            }
            for run in runs
        ],
    }
    template = PAGES.get_template("trajectory.html")
    # In a script element only "</" and "<!--" end or hide what follows.
    written = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return template.render(title=title, note=note, runs=runs, count=len(runs[0].texts), data=Markup(written))


def _choice(choice: Choice) -> list[Any]:
    return [
        choice.step,
        choice.position,
        choice.token,
        None if choice.gamma is None else round(choice.gamma, 4),
        [
            [one.token, _number(math.exp(one.log_p)), _log(one.log_r), _number(math.exp(one.log_tilted))]
            for one in choice.candidates
        ],
        choice.replaced,
    ]


def _number(value: float) -> float:
    return float(f"{value:.3g}")


def _log(value: float | None) -> float | str | None:
    """JSON knows no infinity."""
    if value is None:
        return None
    return round(value, 3) if math.isfinite(value) else "−∞"
