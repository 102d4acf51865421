"""What is asked of a source: its special ids, its law at some positions, the vocabulary in parts; its weights' hash."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gtl_lightning.core.guard import law
from gtl_lightning.networks.block import NO_PAD
from gtl_lightning.networks.projection import in_parts


class Ids(NamedTuple):
    """Ids that are no token of a text; NO_PAD stands for the padding where there is none."""

    mask_index: int
    pad_index: int


class Predicts(Protocol):
    """What of a source says which token it expects; a causal model has it too."""

    @property
    def vocab_size(self) -> int:
        """Ids, mask and padding counted."""

    @property
    def mask_index(self) -> int:
        """Id of the mask."""

    def decode(self, h: Tensor, /) -> Tensor:
        """Float[...,d] -> Float[...,v], as `protocols.Encoder` has it."""


def ids_of(source: Predicts) -> Ids:
    """The mask of a source, and its padding if it has one."""
    pad = getattr(source, "pad_index", None)
    return Ids(source.mask_index, NO_PAD if pad is None else int(pad))


def log_probs(source: Predicts, h: Tensor) -> Tensor:
    """Float[...,d] -> log-probabilities of the clean token, Float[...,v] in fp32 at least; -inf at mask and padding."""
    output = source.decode(h)
    if getattr(source, "normalised", False) is True:
        return output
    ids = torch.arange(source.vocab_size, device=h.device)
    mask, pad = ids_of(source)
    return law(output, (ids == mask) | (ids == pad))


def log_prob_of(source: Predicts, h: Tensor, tokens: Tensor) -> Tensor:
    """Float[m,d], Long[m] -> Float[m]: `log_probs` at one token a position, the vocabulary in parts."""

    def at(h: Tensor, tokens: Tensor) -> Tensor:
        return log_probs(source, h).gather(-1, tokens[:, None]).squeeze(-1)

    return in_parts(at, source.vocab_size, h, tokens)


def likeliest(source: Predicts, h: Tensor) -> Tensor:
    """Float[m,d] -> Long[m]: the most likely tokens, the vocabulary in parts."""
    return in_parts(lambda h: log_probs(source, h).argmax(-1), source.vocab_size, h)


def carried(log_p: Tensor, x_t: Tensor, mask_index: int) -> Tensor:
    """Float[b,l,v], Long[b,l] -> Float[b,l,v]: where x_t is no mask, all mass is on x_t (MDLM, arXiv 2406.07524)."""
    masked, own = x_t == mask_index, x_t[..., None]
    kept = torch.where(masked[..., None], log_p.gather(-1, own), 0.0)
    # One pass over the vocabulary: as `where` over a law that holds all mass on x_t it would take two.
    return log_p.masked_fill(~masked[..., None], float("-inf")).scatter_(-1, own, kept)


def weights_hash(network: nn.Module) -> str:
    """Short hash of a network's weights and of their names."""
    sha = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
