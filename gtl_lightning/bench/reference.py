"""The plain reference that benchmarks are measured against: one forward pass a candidate, all positions projected.

It does what Algorithm 1 of GTL (arXiv 2512.10877) says, as directly as it can be written down. Nothing else uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gtl_lightning.core.guidance import tilt
from gtl_lightning.core.protocols import Denoiser, RatioNetwork


@torch.no_grad()
def plain_sample(
    denoiser: Denoiser,
    ratio: RatioNetwork,
    *,
    prompt: Tensor,
    mask_index: int,
    n_ratio: int,
    gamma: float,
    generator: torch.Generator,
) -> Tensor:
    """Fill the masks of Long[b,l] in random order, one a step and row, guided by a sequence-level ratio.

    Every row holds as many masks as the first; time is the masked share (log-linear noise).
    """
    x = prompt.clone()
    for _ in range(int((x[0] == mask_index).sum())):
        masked = x == mask_index
        t = masked.float().mean(-1)
        log_p = denoiser(x, t)
        for row in range(len(x)):
            free = masked[row].nonzero().squeeze(-1)
            at = free[torch.randint(len(free), (), generator=generator)]
            values, ids = log_p[row, at].topk(n_ratio)
            scores = []
            for token in ids:
                tried = x[row : row + 1].clone()
                tried[0, at] = token
                scores.append(ratio(tried, t[row : row + 1] - 1 / x.shape[1]))
            weights = tilt(values, torch.cat(scores), gamma).softmax(-1)
            x[row, at] = ids[torch.multinomial(weights, 1, generator=generator)].squeeze(0)
    return x
