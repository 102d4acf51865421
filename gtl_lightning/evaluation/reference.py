"""Perplexity of generated sequences under a causal model that was trained apart, on target text no method has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gtl_lightning.core.guard import Guard, check_ids, tensor_of
from gtl_lightning.evaluation.batches import as_sequences, batches_by_length
from gtl_lightning.evaluation.likelihood import Likelihood
from gtl_lightning.evaluation.masked_likelihood import TEXT


def reference_perplexity(
    model: Callable[[Tensor], Tensor],
    tokens: Tensor | Sequence[Tensor],
    *,
    pad_index: int,
    batch: int = 32,
    device: torch.device | str = "cpu",
) -> float:
    """Perplexity of `tokens`; arguments and errors as in `reference_likelihood`.

    Low is not good by itself: repetitive text scores low as well. Read it beside diversity and the value of real text.
    """
    return reference_likelihood(model, tokens, pad_index=pad_index, batch=batch, device=device).perplexity


def reference_likelihood(
    model: Callable[[Tensor], Tensor],
    tokens: Tensor | Sequence[Tensor],
    *,
    pad_index: int,
    batch: int = 32,
    device: torch.device | str = "cpu",
) -> Likelihood:
    """Exact negative log-likelihood of `tokens`, with its standard error.

    Args:
        model: Long[b,l] -> Float[b,l,v], position l holding log p(x^l | x^{<l}) (`networks.CausalLM`) or its logits;
            one with `normalised` True is taken at its word.
        tokens: Long[n,l] padded, or n sequences.
        pad_index: id of the padding; never counted.
        batch: sequences a pass.
        device: where the model is.

    Raises:
        UserError: no tokens, an empty sequence, batch below 1; a model that gives another shape, NaN or infinity.
    """
    sequences = as_sequences(tokens, pad_index)
    ids = torch.stack(torch.cat(sequences).aminmax())
    check_ids(ids, getattr(model, "vocab_size", None), TEXT)
    nats = torch.zeros(len(sequences), dtype=torch.float64)
    guard = Guard(None, model, "reference model")
    with torch.inference_mode(), guard.run():
        for rows, padded in batches_by_length(sequences, batch, pad_index):
            x_0 = padded.to(device)
            guard.where = f"sequence {int(rows[0])}"
            log_p = tensor_of(model(x_0), (*x_0.shape, "v"), model, "reference model")
            check_ids(ids, log_p.shape[-1], TEXT)
            log_prob = guard.law(log_p).gather(-1, x_0[..., None]).squeeze(-1).double()
            # A causal model may give the padding probability 0: drop it before it is summed.
            nats[rows] = -log_prob.masked_fill(x_0 == pad_index, 0.0).sum(dim=1).cpu()
    return Likelihood(nats, torch.tensor([len(row) for row in sequences]))
