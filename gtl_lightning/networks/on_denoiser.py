"""Token-level log-ratios that read the frozen denoiser: a head on its features, a copy of it (docs/method.md 2.2)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.errors import UserError
from gtl_lightning.networks.backbone import Backbone
from gtl_lightning.networks.block import BackboneConfig
from gtl_lightning.networks.heads import Frozen, MaskedDenoiser, zeroed
from gtl_lightning.networks.ratios import TokenLevel
from gtl_lightning.networks.store import register
from gtl_lightning.protocols import Cache


class OnDenoiser(TokenLevel):
    """A token-level ratio that reads a frozen denoiser, which is neither trained, saved nor copied with it.

    Hidden states are the denoiser's features with the ratio's own behind them. A sampler that guides this very
    denoiser hands its features over, and the denoiser runs once.
    """

    def __init__(self, denoiser: MaskedDenoiser) -> None:
        super().__init__()
        self.config = denoiser.config
        self._denoiser = Frozen(denoiser)

    @property
    def denoiser(self) -> MaskedDenoiser:
        """The frozen denoiser that is read."""
        return cast(MaskedDenoiser, self._denoiser.network)

    @property
    @abstractmethod
    def second(self) -> Backbone | None:
        """The encoder that runs beside the frozen one."""

    @property
    def cache_size(self) -> int:
        """Tensors that `remember` leaves behind when the features are at hand."""
        return 2 * self.second.config.depth if self.second is not None else 0

    def encode(self, x_t: Tensor, t: Tensor, features: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,hidden_size].

        Args:
            x_t: noised tokens.
            t: noise level.
            features: `denoiser.encode(x_t, t)`, when it is at hand.
        """
        features = self._features(x_t, t, features)
        return _beside(features, None if self.second is None else self.second(x_t, t))

    def encode_at(self, x_t: Tensor, t: Tensor, places: Tensor, features: Tensor | None = None) -> Tensor:
        """`encode` at `places` Long[b,k] alone, Float[b,k,hidden_size]; `features` are theirs."""
        if features is None:
            with torch.no_grad():
                features = self.denoiser.encode_at(x_t, t, places)
        return _beside(features, None if self.second is None else self.second.at(x_t, t, places))

    def remember(self, x_t: Tensor, t: Tensor, features: Tensor | None = None) -> tuple[Tensor, Cache]:
        """`encode`, and the keys and values of what was run: the second encoder's, then the frozen one's."""
        hidden, cache = (None, []) if self.second is None else self.second.remember(x_t, t)
        if features is None:
            with torch.no_grad():
                features, frozen = self.denoiser.remember(x_t, t)
            cache = cache + frozen
        return _beside(features, hidden), cache

    def recompute(
        self, x_t: Tensor, t: Tensor, start: int, stop: int, cache: Cache, features: Tensor | None = None
    ) -> Tensor:
        """Float[b,stop-start,hidden_size] of a window, as `Backbone.recompute`; `features` are the window's."""
        size = self.cache_size
        if features is None:
            with torch.no_grad():
                features = self.denoiser.recompute(x_t, t, start, stop, cache[size:])
        second = self.second
        return _beside(features, None if second is None else second.recompute(x_t, t, start, stop, cache[:size]))

    def settings(self) -> dict[str, Any]:
        """Arguments beside the denoiser that make a network of this shape, JSON-able."""
        return {}

    def spec(self) -> dict[str, Any]:
        """What a checkpoint says of it; the denoiser is named by its fingerprint, not stored."""
        return {**self.settings(), "denoiser": self.denoiser.fingerprint()}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], denoiser: nn.Module | None) -> Self:
        """The reverse of `spec`.

        Raises:
            UserError: no denoiser, or not the one it was trained on.
        """
        if not isinstance(denoiser, MaskedDenoiser):
            raise UserError("this ratio reads a frozen denoiser; give the one it was trained on (denoiser=...)")
        if denoiser.fingerprint() != spec["denoiser"]:
            raise UserError("this ratio was trained on another denoiser than the one given; train the ratio again")
        return cls(denoiser, **{key: value for key, value in spec.items() if key not in ("class", "denoiser")})

    def _features(self, x_t: Tensor, t: Tensor, features: Tensor | None) -> Tensor:
        if features is not None:
            return features
        with torch.no_grad():
            return self.denoiser.encode(x_t, t)

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

    def __init__(
        self, denoiser: MaskedDenoiser, rank: int = 64, own: BackboneConfig | dict[str, Any] | None = None
    ) -> None:
        super().__init__(denoiser)
        width = self.config.width
        self.rank = rank
        self.own_config = BackboneConfig(**own) if isinstance(own, dict) else own
        self.scale = nn.Parameter(torch.zeros(width))
        self.down = nn.Linear(width, rank)
        self.up = zeroed(nn.Linear(rank, width))
        self.bias = nn.Parameter(torch.zeros(self.config.vocab_size))
        self.own = Backbone(self.own_config) if self.own_config else None
        self.mix = zeroed(nn.Linear(self.own_config.width, width)) if self.own_config else None

    @property
    def hidden_size(self) -> int:
        """The denoiser's width, and the own encoder's."""
        return self.config.width + (self.own_config.width if self.own_config else 0)

    @property
    def second(self) -> Backbone | None:
        """The encoder of its own."""
        return self.own

    def decode(self, h: Tensor) -> Tensor:
        """Float[..., d (+ own width)] -> Float[...,v] in fp32."""
        return F.linear(self._delta(h), self.denoiser.output.weight.detach(), self.bias).float()

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Float[..., d (+ own width)], Long[...] -> Float[...]."""
        rows = self.denoiser.output.weight.detach()[tokens]
        return (self._delta(h).float() * rows.float()).sum(-1) + self.bias[tokens].float()

    def settings(self) -> dict[str, Any]:
        """Rank, and the own encoder's configuration."""
        return {"rank": self.rank, "own": asdict(self.own_config) if self.own_config else None}

    def _delta(self, h: Tensor) -> Tensor:
        features = h[..., : self.config.width]
        delta = self.scale * features + self.up(F.gelu(self.down(features)))
        return delta if self.mix is None else delta + self.mix(h[..., self.config.width :])


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

    def __init__(self, denoiser: MaskedDenoiser, dropout: float = 0.0) -> None:
        super().__init__(denoiser)
        self.dropout = dropout
        self.shifted = MaskedDenoiser(replace(self.config, dropout=dropout))
        self.shifted.load_state_dict(denoiser.state_dict())

    @property
    def hidden_size(self) -> int:
        """Twice the denoiser's width."""
        return 2 * self.config.width

    @property
    def second(self) -> Backbone:
        """The copy's encoder."""
        return self.shifted.backbone

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,2d] -> Float[...,v] in fp32."""
        frozen, shifted = h.chunk(2, dim=-1)
        with torch.no_grad():
            base = self.denoiser.output(frozen).float()
        return self.shifted.output(shifted).float() - base

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Float[...,2d], Long[...] -> Float[...]."""
        frozen, shifted = h.chunk(2, dim=-1)
        with torch.no_grad():
            base = _logit_at(self.denoiser.output, frozen, tokens)
        return _logit_at(self.shifted.output, shifted, tokens) - base

    def settings(self) -> dict[str, Any]:
        """Dropout."""
        return {"dropout": self.dropout}


def _beside(features: Tensor, hidden: Tensor | None) -> Tensor:
    """Float[...,d] with another encoder's states behind them."""
    return features if hidden is None else torch.cat([features, hidden.to(features.dtype)], dim=-1)


def _logit_at(output: nn.Linear, h: Tensor, tokens: Tensor) -> Tensor:
    return (h.float() * output.weight[tokens].float()).sum(-1) + output.bias[tokens].float()
