"""Small ratio networks for short sequences: averages of the revealed neighbours, the same at every position.

A position sees, for each head, the revealed tokens averaged with weights that depend on their relative position alone
(normalised convolution of incomplete data: Knutsson and Westin, CVPR 1993). Masks weigh nothing, so a neighbour that is
masked gives way to the next revealed one, and what a full head would have weighed more is left to a sink: it says how
far away the evidence lies. A few hundred weights, shared by all positions, are learned from a handful of sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.errors import UserError

SLOPES = (1.5, 0.5)
"""Decay of a head's weights with distance, in nats per position, at the start; even heads look left, odd ones right."""
OTHER_SIDE = 6.0
"""Nats by which the far side of a head starts lighter."""
SINK = -4.0
"""Log-weight of the sink at the start: as much as a neighbour at a distance of about four or nine."""


@dataclass(frozen=True)
class LocalConfig:
    """Size of a local network.

    Attributes:
        vocab_size: every id counted, the mask included.
        length: tokens in a sequence.
        heads: averages of the neighbours a position gets.
        width: hidden units behind them.
        mask_index: id of the mask, the last one.
        dropout: on the hidden units.
    """

    vocab_size: int
    length: int
    heads: int
    width: int
    mask_index: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built.

        Raises:
            UserError: naming the value.
        """
        for name in ("length", "heads", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"local network {name} = {getattr(self, name)}; it must be at least 1")
        if self.mask_index != self.vocab_size - 1:
            raise UserError(f"local network mask_index = {self.mask_index}; the mask must be the last of the ids")


class LocalEncoder(nn.Module):
    """Long[b,l] -> Float[b,l,heads * V]: what is revealed around each position, itself left out."""

    offset: Tensor
    others: Tensor

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.tokens = config.vocab_size - 1
        distance = torch.arange(1 - config.length, config.length).float()
        rows = []
        for head in range(config.heads):
            far_side = distance > 0 if head % 2 == 0 else distance < 0
            slope = SLOPES[head // 2 % len(SLOPES)]
            rows.append(-slope * (distance.abs() - 1) - OTHER_SIDE * far_side)
        self.log_weight = nn.Parameter(torch.stack(rows))
        self.sink = nn.Parameter(torch.full((config.heads,), SINK))
        place = torch.arange(config.length)
        self.register_buffer("offset", place[None] - place[:, None] + config.length - 1, persistent=False)
        self.register_buffer("others", 1.0 - torch.eye(config.length), persistent=False)

    def forward(self, x_t: Tensor) -> Tensor:
        """Averages of the revealed tokens' indicators, one after the other by head."""
        revealed = F.one_hot(x_t, self.tokens + 1)[..., : self.tokens].to(self.sink.dtype)
        weight = self.log_weight[:, self.offset].exp() * self.others
        seen = torch.einsum("hlj,bjv->blhv", weight, revealed)
        return (seen / (seen.sum(-1, keepdim=True) + self.sink.exp()[:, None])).flatten(-2)


class LocalTokenRatio(nn.Module):
    """g(x_t)[l, v] ~ log r(x_t + {l: v}) from the neighbours of l (docs/method.md 2.2). Starts at zero: no guidance."""

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = LocalEncoder(config)
        self.hidden = nn.Linear(config.heads * (config.vocab_size - 1), config.width)
        self.out = _zero(nn.Linear(config.width, config.vocab_size - 1))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]; the ratio of absorbing noise does not depend on t. 0 at the mask."""
        h = F.dropout(F.gelu(self.hidden(self.encoder(x_t))), self.config.dropout, self.training)
        return F.pad(self.out(h), (0, 1))


class LocalSequenceRatio(nn.Module):
    """f(x_t) = log r of the sequence, a sum over its revealed tokens (docs/method.md 2.1). Starts at zero.

    The exact log-ratio of two Markov chains is such a sum, by the chain rule.
    """

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = LocalEncoder(config)
        tokens = config.vocab_size - 1
        self.own = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.own.weight, std=1 / math.sqrt(tokens))
        self.hidden = nn.Linear(config.heads * tokens, config.width)
        self.out = _zero(nn.Linear(config.width, 1))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b]."""
        h = F.gelu(self.hidden(self.encoder(x_t)) + self.own(x_t))
        h = F.dropout(h, self.config.dropout, self.training)
        revealed = (x_t != self.config.mask_index).to(h.dtype)
        return (self.out(h).squeeze(-1) * revealed).sum(-1)


class Uninformed(nn.Module):
    """A denoiser that knows nothing: all tokens are equally likely. Eq. 9' on it trains on the target alone."""

    normalised = True

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]; -inf at the mask."""
        tokens = self.config.vocab_size - 1
        return F.pad(torch.full((*x_t.shape, tokens), -math.log(tokens)), (0, 1), value=-math.inf)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
