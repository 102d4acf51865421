"""The mean of several log-ratio networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gtl_lightning.errors import UserError
from gtl_lightning.networks.backbone import PaddingOnce
from gtl_lightning.networks.block import BackboneConfig
from gtl_lightning.networks.heads import MaskedDenoiser
from gtl_lightning.networks.on_denoiser import OnDenoiser
from gtl_lightning.networks.ratios import TokenLevel
from gtl_lightning.networks.store import build, describe, register
from gtl_lightning.protocols import Cache


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

    def encode_at(self, x_t: Tensor, t: Tensor, places: Tensor, features: Tensor | None = None) -> Tensor:
        """`encode` at `places` Long[b,k] alone, Float[b,k, sum of hidden sizes]; `features` are theirs."""
        denoiser = self.denoiser
        if features is None and denoiser is not None:
            with torch.no_grad():
                features = denoiser.encode_at(x_t, t, places)
        hidden = [
            member.encode_at(x_t, t, places, features)
            if isinstance(member, OnDenoiser)
            else member.encode_at(x_t, t, places)
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
