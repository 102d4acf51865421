"""Texts that a frozen denoiser writes: what a reward weighs, and what target text is preferred to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gtl_lightning.methods.method import Context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from gtl_lightning.core.guidance import Guidance
    from gtl_lightning.core.protocols import Source
    from gtl_lightning.core.schedule import NoiseSchedule
    from gtl_lightning.data.dataset import TokenDataset

TOGETHER = 64
"""Texts sampled together."""


def source_samples(context: Context, lengths: Sequence[int]) -> TokenDataset:
    """One text of each length, in that order, from the joint law of the cell's source denoiser.

    What is drawn depends on the cell's seed and on how often each length is asked for.
    """
    source, schedule = context.frozen("source").to(context.device), context.scoring["schedule"]
    pad_index = context.target.pad_index
    return drawn_texts(source, lengths, context.seed, schedule, context.device, pad_index, context.progress)


def drawn_texts(
    source: Source,
    lengths: Sequence[int],
    seed: int,
    schedule: NoiseSchedule,
    device: torch.device,
    pad_index: int,
    progress: Callable[[str], Any],
    guidance: Guidance | None = None,
) -> TokenDataset:
    """One text of each length, in that order, from the *joint* law p(x_0): one position a step, in random order.

    One factorised step of the denoiser would draw the positions independently, which is another law (docs/method.md
    3.4).
    """
    import numpy as np
    import torch

    from gtl_lightning.core.sampling import sample
    from gtl_lightning.data.dataset import TokenDataset

    generator = torch.Generator(device).manual_seed(seed)
    wanted, texts = np.asarray(lengths, np.int64), [np.zeros(0, np.int64)] * len(lengths)
    with progress("sampling the source") as report:
        done = 0
        for length in np.unique(wanted):
            for rows in np.array_split(at := np.flatnonzero(wanted == length), -(-len(at) // TOGETHER)):
                drawn = sample(
                    source,
                    mask_index=source.mask_index,
                    batch=len(rows),
                    length=int(length),
                    guidance=guidance,
                    schedule=schedule,
                    generator=generator,
                    device=device,
                )
                for row, text in zip(rows, drawn.cpu().numpy(), strict=True):
                    texts[row] = text
                done += len(rows)
                report(done, len(wanted))
    return TokenDataset.from_arrays(np.concatenate(texts), np.cumsum([0, *wanted]), pad_index)
