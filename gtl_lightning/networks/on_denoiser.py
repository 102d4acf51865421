"""Token-level log-ratios that read the frozen denoiser: a head on its features, a copy of it (docs/method.md 2.2)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.core.protocols import EVERYWHERE, Look, Source
from gtl_lightning.errors import UserError
from gtl_lightning.networks.backbone import Backbone
from gtl_lightning.networks.block import BackboneConfig
from gtl_lightning.networks.heads import Frozen, zeroed
from gtl_lightning.networks.ratios import TokenLevel
from gtl_lightning.networks.store import register


class Second(Protocol):
    """An encoder: a `Backbone`, or a source's own."""

    @property
    def width(self) -> int:
        """d, size of its hidden states."""

    def encode(self, x_t: Tensor, t: Tensor, look: Look, features: Tensor | None, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b,n,d], as `protocols.Encoder` has it."""


class OnDenoiser(TokenLevel):
    """A token-level ratio that reads a frozen denoiser, which is neither trained, saved nor copied with it.

    Hidden states are the denoiser's features with the ratio's own behind them. A sampler that guides this very
    denoiser hands its features over, and the denoiser runs once. A new one owes `second`, `decode` and `decode_at`.

    Args:
        denoiser: frozen.
        settings: arguments beside it that make a network of this shape, JSON-able.
    """

    def __init__(self, denoiser: Source, **settings: Any) -> None:
        super().__init__()
        self.width = denoiser.width
        self.settings = settings
        self._denoiser = Frozen(denoiser)

    @property
    def denoiser(self) -> Source:
        """The frozen denoiser that is read."""
        return cast(Source, self._denoiser.network)

    @property
    def mask_index(self) -> int:
        """Id of the mask: the denoiser's."""
        return self.denoiser.mask_index

    @property
    def vocab_size(self) -> int:
        """v: the denoiser's."""
        return self.denoiser.vocab_size

    @property
    @abstractmethod
    def second(self) -> Second | None:
        """The encoder that runs beside the frozen one."""

    @property
    def hidden_size(self) -> int:
        """The denoiser's width, and that of the encoder beside it."""
        return self.width + (0 if self.second is None else self.second.width)

    @property
    def passes(self) -> int:
        """The denoiser's features are at hand: the encoder beside it runs."""
        return 0 if self.second is None else 1

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,n,hidden_size].

        Args:
            x_t: noised tokens.
            t: noise level.
            look: which n positions.
            features: `denoiser.encode(x_t, t, look)`, when it is at hand.
        """
        if features is None:
            with torch.no_grad():
                features = self.denoiser.encode(x_t, t, look, None)
        if self.second is None:
            return features
        return torch.cat([features, self.second.encode(x_t, t, look, None).to(features.dtype)], dim=-1)

    def spec(self) -> dict[str, Any]:
        """What a checkpoint says of it; the denoiser is named by its fingerprint, not stored."""
        return {**self.settings, "denoiser": self.denoiser.fingerprint()}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], denoiser: Source | None) -> Self:
        """The reverse of `spec`.

        Raises:
            UserError: no denoiser, or not the one it was trained on.
        """
        if not isinstance(denoiser, Source):
            raise UserError("this ratio reads a frozen denoiser; give the one it was trained on (denoiser=...)")
        if denoiser.fingerprint() != spec["denoiser"]:
            raise UserError("this ratio was trained on another denoiser than the one given; train the ratio again")
        return cls(denoiser, **{key: value for key, value in spec.items() if key not in ("class", "denoiser")})

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `.to(device)` must take the denoiser along although it is not a submodule.
        self._denoiser.network._apply(fn, recurse)
        return super()._apply(fn, recurse)


@register
class FeatureTokenRatio(OnDenoiser):
    """g = W d(h) + bias: a small head on the denoiser's hidden states h; guidance then costs one projection.

    W is the denoiser's frozen output embedding (the space of its logits) and d(h) = scale * h + up(gelu(down(h))), a
    map of rank `rank` plus a diagonal. An encoder of its own may be summed in, d += mix(own(x_t, t)). All maps that end
    d start at zero.

    Args:
        denoiser: frozen.
        rank: of the map.
        own: configuration of the encoder of its own (a BackboneConfig or its fields); None has none.
    """

    def __init__(self, denoiser: Source, rank: int = 64, own: BackboneConfig | dict[str, Any] | None = None) -> None:
        own = BackboneConfig(**own) if isinstance(own, dict) else own
        super().__init__(denoiser, rank=rank, own=asdict(own) if own else None)
        width = self.width
        self.scale = nn.Parameter(torch.zeros(width))
        self.down = nn.Linear(width, rank)
        self.up = zeroed(nn.Linear(rank, width))
        self.bias = nn.Parameter(torch.zeros(denoiser.vocab_size))
        self.own = Backbone(own) if own else None
        self.mix = zeroed(nn.Linear(own.width, width)) if own else None

    @property
    def second(self) -> Backbone | None:
        """The encoder of its own."""
        return self.own

    def decode(self, h: Tensor) -> Tensor:
        """Float[..., d (+ own width)] -> Float[...,v] in fp32."""
        weight = self.denoiser.output_embedding.detach()  # of a frozen model that may be kept in half precision
        return F.linear(self._delta(h).to(weight.dtype), weight, self.bias.to(weight.dtype)).float()

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Float[..., d (+ own width)], Long[...] -> Float[...]."""
        rows = self.denoiser.output_embedding.detach()[tokens]
        return (self._delta(h).float() * rows.float()).sum(-1) + self.bias[tokens].float()

    def tilted(self, h: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Float[m, d (+ own width)], Float[m,1] -> the denoiser's states Float[m,d] and a bias Float[v].

        W is the denoiser's own, so that log p + gamma g = W (h + gamma d(h)) + its bias + gamma `bias`, up to a number
        a row: guided and unguided meet the vocabulary once.
        """
        features = h[..., : self.width]
        return features + (gamma * self._delta(h)).to(features.dtype), self.bias

    def _delta(self, h: Tensor) -> Tensor:
        features = h[..., : self.width].to(self.scale.dtype)
        delta = self.scale * features + self.up(F.gelu(self.down(features)))
        return delta if self.mix is None else delta + self.mix(h[..., self.width :])


@register
class DifferenceTokenRatio(OnDenoiser):
    """g = logits of a second denoiser - logits of the frozen one; the second starts as a copy, so that g starts at 0.

    The guided model p * r^gamma is then softmax((1 - gamma) logits_p + gamma logits_copy): at gamma = 1 the copy
    itself, below it a geometric mean with the source, which a copy fitted to few examples needs. It costs a second pass
    of the denoiser's size where the other parameterisations cost little.

    Args:
        denoiser: frozen.
        dropout: of the copy while it is trained.
    """

    def __init__(self, denoiser: Source, dropout: float = 0.0) -> None:
        super().__init__(denoiser, dropout=dropout)
        self.shifted = cast(nn.Module, denoiser.trainable_copy(dropout)).train()

    @property
    def second(self) -> Source:
        """The copy."""
        return cast(Source, self.shifted)

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,2d] -> Float[...,v] in fp32."""
        frozen, shifted = h.chunk(2, dim=-1)
        with torch.no_grad():
            base = self.denoiser.logits(frozen)
        return self.second.logits(shifted) - base

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Float[...,2d], Long[...] -> Float[...]."""
        frozen, shifted = h.chunk(2, dim=-1)
        with torch.no_grad():
            base = self.denoiser.logits(frozen, tokens)
        return self.second.logits(shifted, tokens) - base
