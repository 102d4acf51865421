"""`gtl sample`: text from a trained cell, or from a model of the registry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.files import write_text
from gtl_lightning.records import read_list
from gtl_lightning.workspace.bundle import LENGTHS, open_bundle
from gtl_lightning.workspace.options import SampleRequest
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import SAMPLES, Cell
from gtl_lightning.workspace.progress import progress_bar
from gtl_lightning.workspace.registry import fetched
from gtl_lightning.workspace.sampler import Sampler, at_gamma, draw_lengths
from gtl_lightning.workspace.selection import Setting, chosen_setting
from gtl_lightning.workspace.text import decode_all, encode_prompt


def sample_model(name: str, asked: SampleRequest) -> list[str]:
    """Draw texts from NAME@ALIAS of the registry, with the sampler settings that it was registered with.

    Args:
        name: of the registered model and its alias.
        asked: what to draw.

    Raises:
        UserError: as `sample_cell`; no such model or alias, an unreachable tracker, a damaged artifact.
    """
    with fetched(name) as folder:
        params, cell = open_bundle(folder)
        return sample_cell(params, cell, asked, root=folder)


def sample_cell(params: Params, cell: Cell, asked: SampleRequest, *, root: Path = Path()) -> list[str]:
    """Draw texts and write out/samples.txt and out/samples.jsonl, with the seed and the versions of the models.

    The cell is the repository's, or that of the bundle at `root`.

    Raises:
        UserError: an option that does not apply to the method, no such cell, a length above the model's, an n_ratio
            above the vocabulary, an unwritable folder.
    """
    rows = draw_rows(params, Sampler.open(params, cell, root), cell, asked)
    texts = [str(row["text"]) for row in rows]
    write_text(asked.out / "samples.txt", "\n".join(texts) + "\n")
    write_text(asked.out / SAMPLES, "".join(json.dumps(row) + "\n" for row in rows))
    return texts


def draw_rows(params: Params, sampler: Sampler, cell: Cell, asked: SampleRequest) -> list[dict[str, Any]]:
    """Draw texts, each with the seed and the versions of the models; nothing is written.

    Raises:
        UserError: as `sample_cell`, the folder excepted.
    """
    asked.check_applies(cell.method)
    root = sampler.root
    count, length, seed, n_ratio = asked.count, asked.length, asked.seed, asked.n_ratio
    if n_ratio is not None and n_ratio > sampler.corpus.vocab_size:
        raise UserError(f"--n-ratio {n_ratio} exceeds the vocabulary of {sampler.corpus.vocab_size}; use at most that")
    setting = chosen_setting(params, cell, root)
    setting = Setting(
        setting.temperature if asked.temperature is None else asked.temperature,
        setting.gamma if asked.gamma is None else asked.gamma,
    )
    params = setting.applied(params)
    guidance = at_gamma(params, sampler.guidance, setting.gamma)
    if guidance is not None:
        guidance = replace(guidance, n_ratio=n_ratio or guidance.n_ratio)  # n_ratio is at least 1 where it is given
    start = encode_prompt(asked.prompt, sampler.corpus, root) if asked.prompt is not None else None
    lengths = [length] * count if length else draw_lengths(_real_lengths(params, sampler, cell.fraction), count, seed)
    if start is not None and not length:
        lengths = [min(max(value, len(start)), sampler.corpus.length) for value in lengths]
    with progress_bar("sampling") as progress:
        drawn = sampler.draw(params, lengths, guidance=guidance, seed=seed, prompt=start, progress=progress)
    texts = decode_all(drawn, root)
    return [
        {
            "text": text,
            "index": index,
            "seed": seed,
            "method": cell.method,
            "fraction": cell.fraction,
            "gamma": setting.gamma,
            "temperature": setting.temperature,
            "models": sampler.versions,
        }
        for index, text in enumerate(texts)
    ]


def _real_lengths(params: Params, sampler: Sampler, fraction: float | None) -> Any:
    """Lengths of real target texts; a bundle has a list of them in place of the texts."""
    kept = sampler.root / LENGTHS
    if kept.exists():
        return read_list(kept, int)
    train, _ = sampler.corpus.target(fraction or 1.0, params.data.min_examples)
    return train.lengths
