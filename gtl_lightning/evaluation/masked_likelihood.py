"""The estimator behind `likelihood`: noise from the seed alone, one pass of the networks, all guidance strengths.

For absorbing noise the NELBO (docs/method.md eq. 1) does not depend on the schedule. With masking probability u uniform
on (0, 1) and weight 1/u, a mask of k positions has total weight 1/k, so that eq. 1 is

    L = E_{k uniform in 1..l}  E_{M uniform, |M| = k}  (l / k) sum_{i in M} -log p(x_0^i | x_t).

This form is what is estimated: its weight does not scatter with the number of masked positions. The levels k are
stratified over the draws of a sequence and, within every draw, over the sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gtl_lightning.core.guard import Guard, check_ids, wide
from gtl_lightning.core.guidance import Guidance, SequenceRatio, guided_log_prob_true, strength_at, top_candidates
from gtl_lightning.core.protocols import Denoiser, Hidden, check_denoiser
from gtl_lightning.core.schedule import LogLinear, NoiseSchedule
from gtl_lightning.errors import UserError, check_whole
from gtl_lightning.evaluation.batches import as_sequences, batches_by_length
from gtl_lightning.fields import check_seed

MAX_ELEMENTS = 2**23  # entries of one block of vocabulary rows: 32 MB of fp32, whatever the vocabulary

TEXT = "the text to evaluate"
Strength = float | Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How held-out text is masked and read; equal values give every model the same noise.

    Attributes:
        mask_index: id of the mask; it must not occur in the text.
        pad_index: id of the padding; never counted.
        schedule: turns the masking probability into the time that networks read.
        draws: mask patterns a sequence.
        seed: of levels, masks and times.
        positions: masked positions of a draw at which a sequence ratio is evaluated.
        batch: sequences a pass; does not change the result beyond rounding.
        device: where the networks are.

    Raises:
        UserError: draws, positions or batch below 1, or no seed.
    """

    mask_index: int
    pad_index: int
    schedule: NoiseSchedule = field(default_factory=LogLinear)
    draws: int = 8
    seed: int = 0
    positions: int = 2
    batch: int = 32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        for name in ("draws", "positions", "batch"):
            check_whole(name, getattr(self, name))
        if min(self.draws, self.positions, self.batch) < 1:
            raise UserError(
                f"draws={self.draws}, positions={self.positions}, batch={self.batch}; "
                "the NELBO needs at least 1 of each"
            )
        check_seed(self.seed)


def nelbo_sums(
    denoiser: Denoiser,
    tokens: Tensor | Sequence[Tensor],
    masking: Masking,
    guidance: Guidance | None,
    strengths: Sequence[Strength],
) -> tuple[Tensor, Tensor]:
    """(NELBO in nats Float[1 + strengths, n] (double): the denoiser's own, then of every strength; lengths Long[n]).

    Arguments and errors as in `likelihood.nelbo`; strengths are constants or functions of the revealed share.
    """
    check_denoiser(denoiser)
    mask_index, pad_index, schedule, device = masking.mask_index, masking.pad_index, masking.schedule, masking.device
    sequences = as_sequences(tokens, pad_index)
    if any(bool((row == mask_index).any()) for row in sequences):
        raise UserError(f"the mask token {mask_index} occurs in the tokens to evaluate; give finished sequences")
    ids = torch.stack(torch.cat(sequences).aminmax())
    check_ids(ids, getattr(denoiser, "vocab_size", None), TEXT)
    lengths = torch.tensor([len(row) for row in sequences])
    total = torch.zeros(1 + len(strengths), len(sequences), dtype=torch.float64)
    # What fills up rows is no token of a text: as in training (`networks.log_probs`), its mass goes to the others.
    filler = pad_index if pad_index >= 0 else None
    guard = Guard(mask_index, denoiser, ratio=guidance.ratio.f if guidance else None, pad_index=filler)
    with torch.inference_mode(), guard.run():
        for draw, noise in enumerate(_noise(lengths.numpy(), masking.draws, masking.seed)):
            for rows, padded in batches_by_length(sequences, masking.batch, pad_index):
                at = rows.numpy()
                guard.where = f"draw {draw + 1}, sequence {int(at[0])}"
                order = torch.from_numpy(noise.order[at, : padded.shape[1]]).masked_fill(padded == pad_index, 2.0)
                rank = order.argsort(dim=1).argsort(dim=1)
                count = torch.from_numpy(noise.masked[at])
                share = torch.from_numpy(noise.share[at])
                step = _Step(
                    x_0=padded.to(device),
                    x_t=padded.masked_fill(rank < count[:, None], mask_index).to(device),
                    t=schedule.inverse(1 - share).float().to(device),
                    t_next=schedule.inverse(1 - share * (count - 1) / count).float().to(device),
                    rank=rank.to(device),
                    masked=count.to(device),
                    revealed=(1 - count / lengths[rows]).to(device),
                )
                sums = _log_prob_sums(denoiser, guidance, strengths, step, masking.positions, guard, ids).cpu()
                total[:, rows] -= sums * (lengths[rows] / count)
    return total / masking.draws, lengths


@dataclass(frozen=True)
class _Noise:
    """One draw for n sequences: masked counts k Long[n], masking probabilities u Float[n], reveal order Float[n,l]."""

    masked: np.ndarray
    share: np.ndarray
    order: np.ndarray


def _noise(lengths: np.ndarray, draws: int, seed: int) -> Iterator[_Noise]:
    n = len(lengths)
    generator = np.random.default_rng(seed)
    strata = np.stack([generator.permutation(draws) for _ in range(n)])
    for draw in range(draws):
        # Every sequence meets each of `draws` strata of (0, 1) once; within a stratum the sequences are spread evenly.
        within = (generator.permutation(n) + generator.random(n)) / n
        level = (strata[:, draw] + within) / draws
        masked = np.minimum((level * lengths).astype(np.int64) + 1, lengths)
        # Given k, the probability u that the k masks were drawn with is Beta(k, l - k + 1): the joint law of eq. 1.
        share = generator.beta(masked, lengths - masked + 1)
        yield _Noise(masked, share, generator.random((n, int(lengths.max())), dtype=np.float32))


@dataclass(frozen=True)
class _Step:
    """A batch under noise: x_0, x_t, rank Long[b,l] (masked where rank < masked), times Float[b], masked Long[b]."""

    x_0: Tensor
    x_t: Tensor
    t: Tensor
    t_next: Tensor
    rank: Tensor
    masked: Tensor
    revealed: Tensor


def _log_prob_sums(
    denoiser: Denoiser,
    guidance: Guidance | None,
    strengths: Sequence[Strength],
    step: _Step,
    positions: int,
    guard: Guard,
    ids: Tensor,
) -> Tensor:
    """Float[1 + strengths, b] (double): sum over masked positions of log p at the true token, then of log p r^gamma."""
    row, position = (step.rank < step.masked[:, None]).nonzero(as_tuple=True)
    true_ids = step.x_0[row, position]
    known = Hidden(step.x_t, step.t)
    log_p_at = known.reader(denoiser, row, position)
    sums = torch.zeros(1 + len(strengths), len(step.x_0), dtype=torch.float64, device=row.device)
    # The positions with the lowest ranks are a uniform choice among the masked ones.
    token_level = guidance is None or not isinstance(guidance.ratio, SequenceRatio)
    chosen = torch.ones_like(row, dtype=torch.bool) if token_level else step.rank[row, position] < positions
    scale = (step.masked / chosen.new_zeros(len(step.x_0), dtype=torch.long).index_add(0, row, chosen.long()))[row]
    score = None if guidance is None else _scorer(guidance, step, row, position, known)
    v = log_p_at(slice(0, 1)).shape[-1]
    check_ids(ids, v, TEXT)
    for part in _parts(len(row), v):
        log_p = guard.law(log_p_at(part))
        unguided = log_p.gather(-1, true_ids[part, None]).squeeze(-1).double()
        terms = [unguided]
        picked = chosen[part].nonzero().squeeze(-1)
        if score is not None and len(picked):
            at = picked + part.start
            log_p, base = log_p[picked], unguided[picked]
            log_r, candidates, fill = score(log_p, at)
            for strength in strengths:
                gamma = _strength(strength, step.revealed[row[at]], log_p.dtype)
                # gamma = 0 is the denoiser itself, free of the rounding of a second normalisation; and a token that
                # the denoiser excludes stays excluded, where the difference would be inf - inf.
                off = gamma == 0
                if off is True:
                    terms.append(unguided)
                    continue
                same = (base == -math.inf) | (off.flatten() if isinstance(off, Tensor) else off)
                guided = guided_log_prob_true(log_p, log_r, true_ids[at], gamma, candidates, fill).double()
                gain = torch.where(same, 0.0, guided - base) * scale[at]
                guard.note("ratio", gain)
                terms.append(unguided.index_add(0, picked, gain))
        else:
            terms += [unguided] * len(strengths)
        sums.index_add_(1, row[part], torch.stack(terms))
    return sums


def _scorer(
    guidance: Guidance, step: _Step, row: Tensor, position: Tensor, known: Hidden
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None, Tensor | None]]:
    """(log_p Float[m,v], slots Long[m]) -> log_r, candidates and fill as `guided_log_prob_true` takes them."""
    ratio = guidance.ratio
    if not isinstance(ratio, SequenceRatio):
        log_r_at = known.reader(ratio.f, row, position, "ratio")
        return lambda log_p, at: (wide(log_r_at(at)), None, None)
    own = ratio.of(step.x_t, step.t)

    def score(log_p: Tensor, at: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        _, ids = top_candidates(log_p, guidance.n_ratio)
        if ids is None:
            ids = torch.arange(log_p.shape[-1], device=log_p.device).expand(len(at), -1)
        log_r = ratio.log_ratio(step.x_t, step.t, step.t_next, row[at], position[at], ids, guidance.chunk)
        return log_r, ids, own[row[at]]

    return score


def _strength(strength: Strength, revealed: Tensor, dtype: torch.dtype) -> float | Tensor:
    """gamma, or Float[m,1] where it depends on the revealed share of each slot's sequence."""
    if not callable(strength):
        return strength_at(strength, 0.0)  # a number of Python's, whatever it was given as
    shares, inverse = revealed.unique(return_inverse=True)
    values = [strength_at(strength, float(share)) for share in shares]
    return torch.tensor(values, dtype=dtype, device=revealed.device)[inverse][:, None]


def _parts(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, MAX_ELEMENTS // vocabulary)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
