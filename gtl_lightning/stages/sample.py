"""`gtl sample`: text from a trained cell, or from a model of the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.files import write_text
from gtl_lightning.stages.trace import Record, live, other_cell, trace_page
from gtl_lightning.workspace.options import SampleRequest
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import SAMPLES, Cell, log
from gtl_lightning.workspace.plan import Plan, plan
from gtl_lightning.workspace.progress import progress_bar
from gtl_lightning.workspace.registry import opened
from gtl_lightning.workspace.sampler import Sampler
from gtl_lightning.workspace.text import decode_all

if TYPE_CHECKING:
    from torch import Tensor


def sample_model(name: str, asked: SampleRequest) -> list[str]:
    """Draw texts from NAME@ALIAS of the registry, a folder or a hub, with the sampler settings that it came with.

    Args:
        name: as `load_model` takes it.
        asked: what to draw.

    Raises:
        UserError: as `sample_cell`; no such model or alias, an unreachable tracker, a damaged artifact.
    """
    with opened(name) as (params, cell, folder):
        return sample_cell(params, cell, asked, root=folder)


def sample_cell(params: Params, cell: Cell, asked: SampleRequest, *, root: Path = Path()) -> list[str]:
    """Draw texts and write out/samples.txt and out/samples.jsonl, with the seed and the versions of the models.

    The cell is the repository's, or that of the bundle at `root`.

    Raises:
        UserError: an option that does not apply to the method, no such cell, a length above the model's, an n_ratio
            above the vocabulary, an unwritable folder, a run to show beside it that cannot be.
    """
    if asked.beside is not None:
        other_cell(cell, asked.beside)  # what cannot be shown is refused before anything is drawn
    planned = plan(params, Sampler.open(params, cell, root), cell, asked)
    record = Record(planned) if asked.trace is not None else None
    if asked.watch:
        with live(planned) as watch:
            drawn = planned.draw(watch=watch)
    else:
        with progress_bar("sampling") as progress:
            drawn = planned.draw(progress, record.watch if record else None)
    rows = _rows(planned, cell, drawn)
    texts = [str(row["text"]) for row in rows]
    write_text(asked.out / "samples.txt", "\n".join(texts) + "\n")
    write_text(asked.out / SAMPLES, "".join(json.dumps(row) + "\n" for row in rows))
    if asked.trace is not None and record is not None:
        write_text(asked.trace, trace_page(params, cell, asked, record))
        log.info("how they came about: %s", asked.trace)
    return texts


def draw_rows(params: Params, sampler: Sampler, cell: Cell, asked: SampleRequest) -> list[dict[str, Any]]:
    """Draw texts, each with the seed and the versions of the models; nothing is written.

    Raises:
        UserError: as `sample_cell`, the folder excepted.
    """
    planned = plan(params, sampler, cell, asked)
    with progress_bar("sampling") as progress:
        return _rows(planned, cell, planned.draw(progress))


def _rows(planned: Plan, cell: Cell, drawn: list[Tensor]) -> list[dict[str, Any]]:
    return [
        {
            "text": text,
            "index": index,
            "seed": planned.seed,
            "method": cell.method,
            "fraction": cell.fraction,
            "gamma": planned.setting.gamma,
            "temperature": planned.setting.temperature,
            "models": planned.sampler.versions,
        }
        for index, text in enumerate(decode_all(drawn, planned.sampler.root))
    ]
