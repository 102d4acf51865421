"""How a cell's texts come about: a page to read afterwards, another run beside it, or the texts in the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from gtl_lightning.core.recorder import Choice, Recorder
from gtl_lightning.core.trace import Observer, Step
from gtl_lightning.errors import UserError
from gtl_lightning.report.style import method_label, percent
from gtl_lightning.report.trajectory import Trajectory, trajectory_page
from gtl_lightning.workspace.options import SOURCE_METHOD, SampleRequest
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import Cell
from gtl_lightning.workspace.plan import Plan, plan
from gtl_lightning.workspace.sampler import Sampler, Watch
from gtl_lightning.workspace.text import tokenizer

UNGUIDED = "Unguided: the denoiser alone"
PAUSE_SECONDS = 0.05
"""Between two steps in the terminal, or nobody could read along."""


class Record:
    """How the texts of a plan came about; `watch` is given to `Plan.draw`."""

    def __init__(self, planned: Plan) -> None:
        self.planned = planned
        self._batches: list[tuple[list[int], Recorder]] = []

    def watch(self, places: list[int]) -> Observer:
        """An observer of the batch of these texts."""
        self._batches.append((places, Recorder()))
        return self._batches[-1][1]

    @property
    def texts(self) -> list[list[Choice]]:
        """The choices of every text, in the plan's order."""
        found: list[list[Choice]] = [[] for _ in self.planned.lengths]
        for places, recorder in self._batches:
            for place, choices in zip(places, recorder.texts, strict=False):
                found[place] = choices
        return found

    def trajectory(self, name: str) -> Trajectory:
        """What the page shows of it."""
        planned = self.planned
        starts = [planned.sampler.start(length, planned.prompt).tolist() for length in planned.lengths]
        return Trajectory(name, settings_of(planned), starts, self.texts)


def settings_of(planned: Plan) -> str:
    """Strength, temperature and seed in a line."""
    strength = "" if planned.guidance is None else f"gamma {planned.setting.gamma:g}, "
    return f"{strength}temperature {planned.setting.temperature:g}, seed {planned.seed}"


def traced(params: Params, cell: Cell, asked: SampleRequest, sampler: Sampler, beside: Sampler | None = None) -> str:
    """`trace_page` of texts that are drawn for it alone.

    Raises:
        UserError: as `plan`, and `trace_page`.
    """
    record = Record(plan(params, sampler, cell, asked))
    record.planned.draw(watch=record.watch)
    return trace_page(params, cell, asked, record, beside)


def trace_page(params: Params, cell: Cell, asked: SampleRequest, record: Record, beside: Sampler | None = None) -> str:
    """HTML of what was recorded, beside another run of the same lengths, prompt and seed.

    The other is `plan_beside`'s. A cell that is not guided stands alone, if nothing is asked for beside it.

    Raises:
        UserError: the other cell is not there.
    """
    planned, runs = record.planned, [record.trajectory(run_name(cell))]
    other = plan_beside(params, cell, asked, planned, beside)
    if other is not None:
        drawn = Record(other[1])
        other[1].draw(watch=drawn.watch)
        runs.insert(0, drawn.trajectory(other[0]))
    tokens = tokenizer(planned.sampler.root)
    note = (
        f"{len(planned.lengths)} texts, drawn token by token under one seed. The denoiser's column is its law before "
        "guidance; log r is what the ratio says of the text with that token; tilted is the law that guidance makes of "
        "both, before temperature."
    )
    return trajectory_page(
        f"How {run_name(cell)} writes",
        note,
        runs,
        lambda token: str(tokens.convert_ids_to_tokens(token)),
        planned.sampler.corpus.mask_index,
    )


def plan_beside(
    params: Params, cell: Cell, asked: SampleRequest, planned: Plan, sampler: Sampler | None = None
) -> tuple[str, Plan] | None:
    """What is shown beside a cell's texts, by name: the same lengths, prompt and seed.

    It is `asked.beside`, a cell of the same share and repetition; by default what a guided cell draws without its
    ratio, and nothing for another.

    Args:
        params: sampler settings.
        cell: whose texts they are.
        asked: for the cell.
        planned: of the cell.
        sampler: of the cell beside it, where it is open.

    Raises:
        UserError: the other cell is not there.
    """
    if asked.beside is not None:
        other = other_cell(cell, asked.beside)
        sampler = sampler or Sampler.open(params, other, planned.sampler.root)
        return run_name(other), replace(plan(params, sampler, other, asked.unguided), lengths=planned.lengths)
    return None if planned.guidance is None else (UNGUIDED, planned.unguided)


def other_cell(cell: Cell, method: str) -> Cell:
    """The cell of that method at the same share and repetition.

    Raises:
        UserError: the cell has no share, as the source, and the method needs one.
    """
    if cell.fraction is None and method != SOURCE_METHOD:
        raise UserError(
            f"--beside {method} is of the same share of the target data, and {cell.method} has none; ask for {method} "
            f"and show {cell.method} beside it: `gtl explore {method}-SHARE-{cell.seed} --beside {cell.method}`, or "
            f"`gtl sample --method {method} --fraction SHARE --beside {cell.method} --trace FILE`"
        )
    return Cell(method, None if method == SOURCE_METHOD else cell.fraction, cell.seed)


@contextmanager
def live(planned: Plan) -> Iterator[Watch]:
    """Yield what shows a plan's texts in the terminal while they are drawn.

    Raises:
        UserError: stderr is no terminal.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        raise UserError("--watch draws in a terminal, and the error output is none; leave it out, or use --trace FILE")
    mask = planned.sampler.corpus.mask_index
    tokens = tokenizer(planned.sampler.root)
    state = [planned.sampler.start(length, planned.prompt).tolist() for length in planned.lengths]

    def written(fresh: set[tuple[int, int]]) -> Text:
        page = Text()
        for place, ids in enumerate(state):
            for position, token in enumerate(ids):
                piece = "\N{MIDDLE DOT}" if token == mask else str(tokens.convert_ids_to_tokens(token))
                style = "dim" if token == mask else "bold underline" if (place, position) in fresh else ""
                # A piece that goes on with a word has no blank before it.
                page.append(" " if position and not piece.startswith("##") else "")
                page.append(piece.removeprefix("##"), style=style)
            page.append("\n")
        return page

    with Live(written(set()), console=console, transient=True, auto_refresh=False) as view:

        def watch(places: list[int]) -> Observer:
            def show(step: Step) -> None:
                found = list(zip(step.rows.tolist(), step.positions.tolist(), step.tokens.tolist(), strict=True))
                for row, position, token in found:
                    state[places[row]][position] = token
                view.update(written({(places[row], position) for row, position, _ in found}), refresh=True)
                time.sleep(PAUSE_SECONDS)

            return show

        yield watch


def run_name(cell: Cell) -> str:
    """For people: `GTL, 5 % of the target`."""
    label = method_label(cell.method)
    return label if cell.fraction is None else f"{label}, {percent(cell.fraction)} of the target"
