"""Token-level log-ratios g(x_t)[l, v] ~ log r(x_t + {l: v}): all candidates in one pass (docs/method.md 2.2).

Three ways to parameterise g, and the mean of several. All are factored into `encode` (passes of the backbones) and
`decode` (projections to the vocabulary), and all start at g = 0: no guidance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.errors import UserError
from gtl_lightning.networks.backbone import Backbone, BackboneConfig, PaddingOnce
from gtl_lightning.networks.heads import Frozen, MaskedDenoiser, zeroed
from gtl_lightning.networks.store import build, describe, register
from gtl_lightning.protocols import Cache


class TokenLevel(PaddingOnce, ABC):
    """A token-level log-ratio in two parts."""

    config: BackboneConfig

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Size of what `encode` returns at a position."""

    @property
    @abstractmethod
    def cache_size(self) -> int:
        """Tensors that `remember` leaves behind."""

    @abstractmethod
    def encode(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> hidden states Float[b,l,hidden_size]."""

    @abstractmethod
    def remember(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Cache]:
        """`encode`, and every block's keys and values."""

    @abstractmethod
    def recompute(self, x_t: Tensor, t: Tensor, start: int, stop: int, cache: Cache) -> Tensor:
        """Float[b,stop-start,hidden_size] of a window, as `Backbone.recompute`."""

    @abstractmethod
    def decode(self, h: Tensor) -> Tensor:
        """Float[...,hidden_size] -> log r for every token at the position, Float[...,v] in fp32."""

    @abstractmethod
    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Float[...,hidden_size], Long[...] -> Float[...]: `decode(h)` at one token a position, no projection."""

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
        self.backbone = Backbone(config)
        self.project = zeroed(nn.Linear(config.width, config.width))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    @classmethod
    def from_denoiser(cls, denoiser: MaskedDenoiser, depth: int, dropout: float = 0.0) -> TokenRatioNetwork:
        """A network whose encoder starts as the first `depth` blocks of a denoiser (weights copied, then free).

        Raises:
            UserError: the denoiser has fewer blocks.
        """
        network = cls(replace(denoiser.config, depth=depth, dropout=dropout))
        network.backbone.warm_start(denoiser.backbone)
        return network

    @property
    def hidden_size(self) -> int:
        """The encoder's width."""
        return self.config.width

    @property
    def cache_size(self) -> int:
        """Keys and values of every block."""
        return 2 * self.config.depth

    def encode(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> hidden states Float[b,l,d]."""
        return self.backbone(x_t, t)

    def remember(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Cache]:
        """`encode`, and every block's keys and values."""
        return self.backbone.remember(x_t, t)

    def recompute(self, x_t: Tensor, t: Tensor, start: int, stop: int, cache: Cache) -> Tensor:
        """Float[b,stop-start,d] of a window, as `Backbone.recompute`."""
        return self.backbone.recompute(x_t, t, start, stop, cache)

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,d] -> Float[...,v] in fp32."""
        return F.linear(self.project(h), self.backbone.embedding.weight, self.bias).float()

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Float[...,d], Long[...] -> Float[...]."""
        rows = self.backbone.embedding(tokens)
        return (self.project(h).float() * rows.float()).sum(-1) + self.bias[tokens].float()


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


@register
class RatioEnsemble(PaddingOnce):
    """The mean of several members' log-ratios: one ratio again, of lower variance.

    Token-level members keep the factored protocol; sequence-level members are called. Members that read the same
    denoiser share its features.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise UserError("an ensemble of no ratio networks; give at least one member")
        self.members = nn.ModuleList(members)
        self.config = cast(BackboneConfig, self.members[0].config)

    def spec(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {"members": [describe(member) for member in self.members]}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], denoiser: nn.Module | None) -> RatioEnsemble:
        """The reverse of `spec`."""
        return cls([build(member, denoiser) for member in spec["members"]])

    @property
    def denoiser(self) -> MaskedDenoiser | None:
        """The denoiser whose features the members read, if any does."""
        return next((member.denoiser for member in self.members if isinstance(member, OnDenoiser)), None)

    def encode(self, x_t: Tensor, t: Tensor, features: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> the members' hidden states side by side, Float[b,l, sum of hidden sizes]."""
        denoiser = self.denoiser
        if features is None and denoiser is not None:
            with torch.no_grad():
                features = denoiser.encode(x_t, t)
        hidden = [
            member.encode(x_t, t, features) if isinstance(member, OnDenoiser) else member.encode(x_t, t)
            for member in self._token_level()
        ]
        return torch.cat(hidden, dim=-1)

    def remember(self, x_t: Tensor, t: Tensor, features: Tensor | None = None) -> tuple[Tensor, Cache]:
        """`encode`, and the caches of the members in turn, the denoiser's last if it had to run."""
        frozen: Cache = []
        if features is None and self.denoiser is not None:
            with torch.no_grad():
                features, frozen = self.denoiser.remember(x_t, t)
        parts = [
            member.remember(x_t, t, features) if isinstance(member, OnDenoiser) else member.remember(x_t, t)
            for member in self._token_level()
        ]
        return torch.cat([hidden for hidden, _ in parts], dim=-1), [
            kept for _, cache in parts for kept in cache
        ] + frozen

    def recompute(
        self, x_t: Tensor, t: Tensor, start: int, stop: int, cache: Cache, features: Tensor | None = None
    ) -> Tensor:
        """Float[b,stop-start, sum of hidden sizes] of a window; `features` are the window's."""
        members = self._token_level()
        sizes = [member.cache_size for member in members]
        if features is None and self.denoiser is not None:
            with torch.no_grad():
                features = self.denoiser.recompute(x_t, t, start, stop, cache[sum(sizes) :])
        hidden, done = [], 0
        for member, size in zip(members, sizes, strict=True):
            own, done = cache[done : done + size], done + size
            if isinstance(member, OnDenoiser):
                hidden.append(member.recompute(x_t, t, start, stop, own, features))
            else:
                hidden.append(member.recompute(x_t, t, start, stop, own))
        return torch.cat(hidden, dim=-1)

    def decode(self, h: Tensor) -> Tensor:
        """Float[..., sum of hidden sizes] -> mean log r, Float[...,v] in fp32."""
        members = self._token_level()
        parts = h.split([member.hidden_size for member in members], dim=-1)
        total = members[0].decode(parts[0])
        for member, part in zip(members[1:], parts[1:], strict=True):
            total = total + member.decode(part)
        return total / len(members)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v] of token-level members, Float[b] of sequence-level ones."""
        if all(isinstance(member, TokenLevel) for member in self.members):
            return self.decode(self.encode(x_t, t))
        return torch.stack([member(x_t, t) for member in self.members]).mean(dim=0)

    def _token_level(self) -> list[TokenLevel]:
        return [cast(TokenLevel, member) for member in self.members]


def _beside(features: Tensor, hidden: Tensor | None) -> Tensor:
    """Float[...,d] with another encoder's states behind them."""
    return features if hidden is None else torch.cat([features, hidden.to(features.dtype)], dim=-1)


def _logit_at(output: nn.Linear, h: Tensor, tokens: Tensor) -> Tensor:
    return (h.float() * output.weight[tokens].float()).sum(-1) + output.bias[tokens].float()
