"""What a result was made with: versions, device, precision, threads; and whether one table mixes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

MADE_WITH = ("made_with", "trained_with")
MEASURED_ON = {"samples": "number of samples", "mauve_real": "MAUVE of real against real text"}
"""What is one value for all cells that were measured with the same settings."""
SET_BY = {
    "settings": "sampled and measured with the same settings",
    "guidance_settings": "guided with the same settings",
}
"""Hashes of what params.yaml said; the second is of cells with a ratio alone."""


def made_with(device: str, precision: str, parts: int = 1) -> str:
    """For example `gtl-lightning 0.1.0, torch 2.13.0+cpu, cpu, 32-true, 1 thread`.

    Args:
        device: "cuda" or what torch calls another.
        precision: Lightning's name of it.
        parts: that each training batch came in, which have noise of their own.

    DVC knows none of it: it takes a result made with other versions or on another device for the same result.
    """
    import torch

    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name() if device == "cuda" else device
    count = f"{threads} thread{'' if threads == 1 else 's'}"
    facts = [f"gtl-lightning {version('gtl-lightning')}", f"torch {torch.__version__}", where, precision, count]
    return ", ".join([*facts, f"batches in {parts} parts"] if parts > 1 else facts)


def mixtures(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each way in which the rows of one table were not made alike; none if they were.

    Stages that were run by hand may leave cells of an earlier source denoiser beside those of the present one.
    """
    found = list(rows)
    sentences = []
    for key, what in zip(MADE_WITH, ("evaluated", "trained"), strict=True):
        kinds = Counter(row[key] for row in found if row.get(key))
        if len(kinds) > 1:
            listed = "; ".join(f"{count} with {kind}" for kind, count in kinds.most_common())
            sentences.append(f"Not all of these cells were {what} alike: {listed}.")
    sources = Counter(row["source"] for row in found if row.get("source"))
    if len(sources) > 1:
        listed = ", ".join(f"{count} of {source}" for source, count in sources.most_common())
        sentences.append(
            f"Not all of these cells come from the same source denoiser: {listed}; `dvc repro` mends the stale ones."
        )
    for key, what in SET_BY.items():
        values = Counter(row[key] for row in found if row.get(key))
        if len(values) > 1:
            listed = ", ".join(f"{count} with {value}" for value, count in values.most_common())
            sentences.append(
                f"Not all of these cells were {what} of params.yaml: {listed} (hashes of schedule, sampling and "
                "evaluation there); `dvc repro` mends the stale ones."
            )
    for key, what in MEASURED_ON.items():
        values = Counter(row[key] for row in found if row.get(key) is not None)
        if len(values) > 1:
            listed = "; ".join(f"{count} with {value:g}" for value, count in values.most_common())
            sentences.append(f"Not all of these cells were measured alike, by the {what}: {listed}.")
    return sentences
