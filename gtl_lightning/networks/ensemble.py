"""The mean of several log-ratio networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import EVERYWHERE, Look, Source, call
from gtl_lightning.errors import UserError
from gtl_lightning.networks.on_denoiser import OnDenoiser
from gtl_lightning.networks.ratios import TokenLevel
from gtl_lightning.networks.store import Stored, build, describe, register
from gtl_lightning.sharing.shareable import RATIO


@register
class RatioEnsemble(Stored, nn.Module):
    """The mean of several members' log-ratios: one ratio again, of lower variance.

    Token-level members are asked in their two parts; sequence-level members are called. Members that read the same
    denoiser as the first one share its features.
    """

    part = RATIO
    takes_look = True

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise UserError("an ensemble of no ratio networks; give at least one member")
        self.members = nn.ModuleList(members)

    def spec(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {"members": [describe(member) for member in self.members]}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], denoiser: Source | None) -> RatioEnsemble:
        """The reverse of `spec`."""
        return cls([build(member, denoiser) for member in spec["members"]])

    @property
    def mask_index(self) -> int | None:
        """Id of the mask, of which the members know the same."""
        return getattr(self.members[0], "mask_index", None)

    @property
    def denoiser(self) -> Source | None:
        """The denoiser whose features the members read, if any does."""
        return next((member.denoiser for member in self.members if isinstance(member, OnDenoiser)), None)

    @property
    def passes(self) -> int:
        """All members'."""
        return sum(member.passes for member in self._token_level())

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> the members' hidden states side by side, Float[b,n, sum of hidden sizes]."""
        shared = self.denoiser
        if features is None and shared is not None:
            with torch.no_grad():
                features = shared.encode(x_t, t, look, None)
        return torch.cat(
            [
                member.encode(x_t, t, look, features if getattr(member, "denoiser", None) is shared else None)
                for member in self._token_level()
            ],
            dim=-1,
        )

    def decode(self, h: Tensor) -> Tensor:
        """Float[..., sum of hidden sizes] -> mean log r, Float[...,v] in fp32."""
        members = self._token_level()
        parts = h.split([member.hidden_size for member in members], dim=-1)
        total = members[0].decode(parts[0])
        for member, part in zip(members[1:], parts[1:], strict=True):
            total = total + member.decode(part)
        return total / len(members)

    def forward(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v] of token-level members, Float[b] of sequence-level ones."""
        if all(isinstance(member, TokenLevel) for member in self.members):
            return self.decode(self.encode(x_t, t, look))
        return torch.stack([call(member, look, x_t, t) for member in self.members]).mean(dim=0)

    def _token_level(self) -> list[TokenLevel]:
        return [cast(TokenLevel, member) for member in self.members]
