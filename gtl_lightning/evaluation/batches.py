"""Ragged token sequences to padded batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gtl_lightning.errors import UserError


def as_sequences(tokens: Tensor | Sequence[Tensor], pad_index: int) -> list[Tensor]:
    """Sequences without padding, Long[l_i] each, from padded Long[n,l] or from a list of such.

    Raises:
        UserError: there is no sequence, or one without any token.
    """
    if isinstance(tokens, Tensor) and tokens.ndim != 2:
        raise UserError(f"tokens have shape {tuple(tokens.shape)}; give Long[n,l] or a list of sequences")
    # As Long at once: among ids of 8 bits a padding beyond them would be another id.
    sequences = [row[row != pad_index].cpu() for row in (each.long() for each in tokens)]
    if not sequences:
        raise UserError("no token sequence to evaluate; give at least one")
    for at, row in enumerate(sequences):
        if not len(row):
            raise UserError(f"token sequence {at} is empty; leave out texts without tokens")
    return sequences


def batches_by_length(sequences: Sequence[Tensor], batch: int, pad_index: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (rows Long[b], padded Long[b,l]), shortest first, so that little padding is computed.

    Raises:
        UserError: batch is below 1.
    """
    if batch < 1:
        raise UserError(f"evaluation batch={batch}; give at least 1")
    order = torch.argsort(torch.tensor([len(row) for row in sequences]), stable=True)
    for rows in order.split(batch):
        chunk = [sequences[int(row)] for row in rows]
        yield rows, torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True, padding_value=pad_index)
