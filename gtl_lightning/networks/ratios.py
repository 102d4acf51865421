"""Token-level log-ratios g(x_t)[l, v] ~ log r(x_t + {l: v}): all candidates in one pass (docs/method.md 2.2).

Three ways to parameterise g: here a small network of its own, in `on_denoiser` two that read the frozen denoiser; in
`ensemble` the mean of several. All are factored into `encode` (passes of the backbones) and `decode` (projections to
the vocabulary), and all start at g = 0: no guidance.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.core.protocols import EVERYWHERE, Look
from gtl_lightning.networks.backbone import Backbone
from gtl_lightning.networks.block import BackboneConfig
from gtl_lightning.networks.heads import zeroed
from gtl_lightning.networks.store import Stored, register
from gtl_lightning.sharing.shareable import RATIO


class TokenLevel(Stored, nn.Module):
    """A token-level log-ratio in two parts: a new one owes `encode`, `decode` and `decode_at`, and has a `width`."""

    part = RATIO
    width: int
    """Size of its hidden states."""

    @property
    def hidden_size(self) -> int:
        """Size of what `encode` returns at a position."""
        return self.width

    @property
    def passes(self) -> int:
        """Encoders of its own that run where the denoiser's runs once: what a guided step costs beside it."""
        return 1

    @abstractmethod
    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,n,hidden_size], as `protocols.Encoder` has it."""

    @abstractmethod
    def decode(self, h: Tensor) -> Tensor:
        """Float[...,hidden_size] -> log r for every token at the position, Float[...,v] in fp32."""

    @abstractmethod
    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Float[...,hidden_size], Long[...] -> Float[...]: `decode(h)` at one token a position, no projection.

        The leading sizes of both are broadcast: h Float[m,1,hidden_size] is scored at n tokens, Long[m,n].
        """

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]."""
        return self.decode(self.encode(x_t, t))


@register
class TokenRatioNetwork(TokenLevel):
    """g with an encoder of its own, small beside the denoiser's (eq. 9).

    The output shares its weights with the token embedding through a learned projection, plus one bias a token, so that
    it stays small at V = 30k. Projection and bias start at zero.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.backbone = Backbone(config)
        self.project = zeroed(nn.Linear(config.width, config.width))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    @property
    def mask_index(self) -> int:
        """Id of the mask."""
        return self.config.mask_index

    @property
    def vocab_size(self) -> int:
        """v: ids, mask and padding counted."""
        return self.config.vocab_size

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> hidden states Float[b,n,d] where `look` wants them; it reads no `features`."""
        return self.backbone(x_t, t, look)

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,d] -> Float[...,v] in fp32."""
        return F.linear(self.project(h), self.backbone.embedding.weight, self.bias).float()

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Float[...,d], Long[...] -> Float[...]."""
        rows = self.backbone.embedding(tokens)
        return (self.project(h).float() * rows.float()).sum(-1) + self.bias[tokens].float()
