"""Is a denoiser of other people read as it was trained? Its law, its padding, its shift, by its own states and by data.

NELBO and calibration by noise level say what it is worth where; a fitted temperature above 1 says that it is too sure,
as masked language models are when nearly all is masked (docs/method.md section 5).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import EVERYWHERE, Source
from gtl_lightning.networks.source import log_probs

TOLERANCE = 1e-3
"""Nats: of a sum of one, and between a row alone and the row in a batch, in single precision."""
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Ends of the bands of noise levels that are told apart."""
SLIGHT = 0.15
"""Masked share at which the shift is decided: most of the text is there to be read."""
SURE = 0.1
"""Nats a token by which one reading has to be better than the next before it is said."""
ELEMENTS = 1 << 24
"""Log-probabilities at most that a temperature is fitted on."""
STEEPEST = 8.0
FOREIGN = 0.05
"""Share of unknown tokens from which texts are not the model's."""


@dataclass(frozen=True)
class Check:
    """One thing that has to hold.

    Attributes:
        name: what it is.
        holds: whether it does; None where it was not tried.
        found: in words and numbers.
        mend: what to set where it does not hold.
    """

    name: str
    holds: bool | None
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Level:
    """A band of noise levels.

    Attributes:
        low: masked share of a text, at least.
        high: at most.
        positions: masked places that were looked at.
        nats: cross-entropy of the true token there, in nats.
        confidence: mean probability of the likeliest token.
        accuracy: share of places where it is the true one.
        temperature: T by which softmax(log p / T) is likeliest; above 1: too sure.
    """

    low: float
    high: float
    positions: int
    nats: float
    confidence: float
    accuracy: float
    temperature: float


def law_checks(source: Source, x_t: Tensor, t: Tensor, never: Tensor) -> list[Check]:
    """Of Long[b,l] that has masks: sums of one, nothing on `never` Bool[v], tokens carried over."""
    with torch.no_grad():
        h = source.encode(x_t, t, EVERYWHERE, None)
        masked = x_t == source.mask_index
        log_p = log_probs(source, h[masked])
        off = float(log_p.logsumexp(-1).abs().max())
        leaked = float(log_p[:, never].exp().sum(-1).max()) if never.any() else 0.0
        own = source(x_t, t).gather(-1, x_t[..., None]).squeeze(-1)[~masked]
    kept = bool((own == 0).all())
    return [
        Check("probabilities sum to one", off < TOLERANCE, f"off by {off:.1e} nats", "look at its weights"),
        Check(
            "mask, padding and other specials excluded",
            leaked == 0,
            f"{leaked:.1e} on {int(never.sum())} ids that no text has",
            "give the tokenizer that belongs to it: --tokenizer NAME",
        ),
        Check("tokens carried over", kept, f"{int((~masked).sum())} tokens", "look at its mask id"),
    ]


def batch_check(source: Source, rows: Sequence[Tensor], pad_index: int) -> Check:
    """A row is read alike alone and beside others, padded on either side: Long[l] of several l, masks among them."""
    longest = max(len(row) for row in rows)
    worst = 0.0
    with torch.no_grad():
        alone = [source.encode(row[None], _ones(row), EVERYWHERE, None)[0] for row in rows]
        for left in (False, True):
            pads = [longest - len(row) for row in rows]
            batch = torch.stack(
                [
                    nn.functional.pad(row, (n, 0) if left else (0, n), value=pad_index)
                    for row, n in zip(rows, pads, strict=True)
                ]
            )
            together = source.encode(batch, _ones(batch), EVERYWHERE, None)
            for index, (row, n) in enumerate(zip(rows, pads, strict=True)):
                here = together[index, n:] if left else together[index, : len(row)]
                masked = row == source.mask_index
                a, b = (log_probs(source, h[masked]) for h in (here, alone[index]))
                if masked.any():
                    # -inf on both sides is no difference; what is no number is the largest there is.
                    gap = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(math.inf, posinf=math.inf)
                    worst = max(worst, float(gap.max()))
    return Check(
        "a padded row is the row alone",
        worst < TOLERANCE,
        f"differ by {worst:.1e} nats at most",
        "batches of texts of several lengths are read otherwise than each alone: sample and train at one length",
    )


def shift_check(source: Source, rows: Sequence[Tensor], seed: int = 0) -> Check:
    """Whether the state of a place, the one before or the one behind predicts its token best, of Long[l] each."""
    generator = torch.Generator().manual_seed(seed)
    total, count = torch.zeros(3, dtype=torch.float64), 0
    with torch.no_grad():
        for row in rows:
            if len(row) < 4:
                continue
            hidden = (torch.rand(len(row), generator=generator) < SLIGHT).to(row.device)
            hidden[[0, -1]] = False  # they have no state on one side
            x_t = row.masked_fill(hidden, source.mask_index)
            h = source.encode(x_t[None], _ones(row), EVERYWHERE, None)[0]
            at = hidden.nonzero().squeeze(-1)
            for index, offset in enumerate((0, -1, 1)):
                log_p = log_probs(source, h[at + offset])
                total[index] -= float(log_p.gather(-1, row[at][:, None]).clamp(min=-100).sum())
            count += len(at)
    own, before, behind = (total / max(1, count)).tolist()
    said = f"{own:.2f} nats a token at its place, {before:.2f} from the place before, {behind:.2f} from behind"
    if count == 0 or abs(own - min(before, behind)) < SURE:
        return Check("shift", None, f"{said}: not decided")
    mend = "set --shift" if before < behind else "set --no-shift"
    return Check("shift", own < min(before, behind), said, mend)


def levels(source: Source, rows: Sequence[Tensor], seed: int = 0) -> list[Level]:
    """Cross-entropy, calibration and temperature of Long[l] each, by the masked share."""
    generator = torch.Generator().manual_seed(seed)
    most = max(16, ELEMENTS // source.vocab_size)
    found = []
    for low, high in pairwise(LEVELS):
        parts, tokens = [], []
        with torch.no_grad():
            for row in rows:
                share = low + (high - low) * float(torch.rand((), generator=generator))
                order = torch.rand(len(row), generator=generator).argsort().to(row.device)
                at = order[: max(1, round(share * len(row)))]
                x_t = row.clone()
                x_t[at] = source.mask_index
                h = source.encode(x_t[None], torch.full((1,), share, device=row.device), EVERYWHERE, None)[0]
                parts.append(log_probs(source, h[at]).float().cpu())
                tokens.append(row[at].cpu())
                if sum(map(len, tokens)) >= most:
                    break
        log_p, true = torch.cat(parts)[:most], torch.cat(tokens)[:most]
        top = log_p.max(-1)
        found.append(
            Level(
                low,
                high,
                len(true),
                float(-log_p.gather(-1, true[:, None]).mean()),
                float(top.values.exp().mean()),
                float((top.indices == true).float().mean()),
                fitted_temperature(log_p, true),
            )
        )
    return found


def fitted_temperature(log_p: Tensor, true: Tensor) -> float:
    """T of least mean -log softmax(log p / T) at the true tokens, Float[m,v] and Long[m]; convex in 1 / T."""
    possible = log_p.gather(-1, true[:, None]).squeeze(-1).isfinite()
    log_p, true = log_p[possible], true[possible]
    if not len(true):
        return 1.0
    at = log_p.gather(-1, true[:, None]).squeeze(-1)

    def cost(scale: float) -> float:
        return float(((log_p * scale).logsumexp(-1) - at * scale).mean())

    return 1.0 / lowest(cost, 1 / STEEPEST, STEEPEST)


def lowest(cost: Callable[[float], float], low: float, high: float, rounds: int = 40) -> float:
    """Where a convex function is least, by golden section."""
    ratio = (5**0.5 - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = cost(a), cost(b)
    for _ in range(rounds):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = cost(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = cost(b)
    return (low + high) / 2


def known_check(rows: Sequence[Tensor], unknown: int | None) -> Check:
    """Whether the texts, Long[l] each, are in the model's tokens: few are the `unknown` one."""
    share = 0.0 if unknown is None else float((torch.cat(list(rows)) == unknown).float().mean())
    mend = "give texts of the kind that it was trained on, or its own tokenizer: --tokenizer NAME"
    return Check("texts are in its tokens", share < FOREIGN, f"{share:.1%} unknown", mend)


def tokens_per_second(source: Source, batch: Tensor, rounds: int = 5) -> float:
    """Tokens of Long[b,l] that are read a second, one place of each row meeting the vocabulary, as in sampling."""
    t = _ones(batch)
    with torch.no_grad():
        source.decode(source.encode(batch, t, EVERYWHERE, None)[:, 0])
        start = time.perf_counter()
        for _ in range(rounds):
            source.decode(source.encode(batch, t, EVERYWHERE, None)[:, 0])
        if batch.is_cuda:
            torch.cuda.synchronize()
    return rounds * batch.numel() / (time.perf_counter() - start)


def _ones(x: Tensor) -> Tensor:
    return torch.ones(len(x) if x.dim() > 1 else 1, device=x.device)
