"""The networks: one backbone, five heads. Log-ratios are log q/p, target positive, everywhere.

`MaskedDenoiser` and the token ratios are factored into `encode` (one pass of the backbone) and `decode` (one projection
to the vocabulary), so that a sampler or a loss projects only the positions it needs. `network_store` keeps the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.backbone import Backbone, BackboneConfig, seeded
from gtl_lightning.errors import UserError
from gtl_lightning.network_store import build, describe, load_network, read_meta, register, save_network

__all__ = [
    "Backbone",
    "BackboneConfig",
    "CausalLM",
    "FeatureTokenRatio",
    "Frozen",
    "MaskedDenoiser",
    "PositionNetwork",
    "RatioEnsemble",
    "SequenceRatioNetwork",
    "TokenRatioNetwork",
    "copy_of",
    "load_network",
    "read_meta",
    "save_network",
    "seeded",
]


class Frozen:
    """A network that its owner reads but does not train, save or copy: no parameter of it shows up in the owner's."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self


@register
class MaskedDenoiser(nn.Module):
    """p_theta(x_0^l | z_t) in the SUBS parameterisation (MDLM, arXiv 2406.07524; docs/method.md section 1)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.output = nn.Linear(config.width, config.vocab_size)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)
        if config.tied:
            self.output.weight = self.backbone.embedding.weight

    def encode(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> hidden states Float[b,l,d]."""
        return self.backbone(x_t, t)

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,d] -> log-probabilities of the clean token, Float[...,v] in fp32; -inf at mask and pad."""
        logits = self.output(h).float()
        logits[..., [self.config.mask_index, self.config.pad_index]] = float("-inf")
        return F.log_softmax(logits, dim=-1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]; where x_t is no mask, all mass is on x_t (carried over)."""
        log_p = self.decode(self.encode(x_t, t))
        carried = torch.full_like(log_p, float("-inf")).scatter_(-1, x_t[..., None], 0.0)
        return torch.where((x_t == self.config.mask_index)[..., None], log_p, carried)

    def fingerprint(self) -> str:
        """Short hash of all weights: says which denoiser a `FeatureTokenRatio` was trained on."""
        sha = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            sha.update(name.encode())
            sha.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()[:16]


@register
class TokenRatioNetwork(nn.Module):
    """g(x_t)[l, v] ~ log r(x_t + {l: v}): all candidates in one pass, its own encoder (docs/method.md 2.2, eq. 9).

    The output shares its weights with the token embedding through a learned projection, plus one bias a token, so that
    it stays small at V = 30k. Projection and bias start at zero: g = 0, no guidance.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.project = _zero(nn.Linear(config.width, config.width))
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

    def encode(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> hidden states Float[b,l,d]."""
        return self.backbone(x_t, t)

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,d] -> log r for every token at the position, Float[...,v] in fp32."""
        return F.linear(self.project(h), self.backbone.embedding.weight, self.bias).float()

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """`decode(h)` at one token a position, without the projection to the vocabulary: Float[...,d], Long[...]."""
        rows = self.backbone.embedding(tokens)
        return (self.project(h).float() * rows.float()).sum(-1) + self.bias[tokens].float()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]."""
        return self.decode(self.encode(x_t, t))


@register
class FeatureTokenRatio(nn.Module):
    """A token-level log-ratio that reads the frozen denoiser: guidance then costs one projection (docs/method.md 2.2).

    g = W d(h) + bias with W the denoiser's frozen output embedding (the space of its logits), h its hidden states and
    d(h) = scale * h + up(gelu(down(h))), a map of rank `rank` plus a diagonal. An encoder of its own (`own`) may be
    summed in, d += mix(own(x_t, t)). All maps that end d start at zero: g = 0.

    `features` of the denoiser, where the caller has them, are passed to `encode`; else the denoiser is run.
    """

    def __init__(self, denoiser: MaskedDenoiser, rank: int = 64, own: BackboneConfig | None = None) -> None:
        super().__init__()
        self.config = denoiser.config
        self.rank, self.own_config = rank, own
        self._denoiser = Frozen(denoiser)
        width = self.config.width
        self.scale = nn.Parameter(torch.zeros(width))
        self.down = nn.Linear(width, rank)
        self.up = _zero(nn.Linear(rank, width))
        self.bias = nn.Parameter(torch.zeros(self.config.vocab_size))
        self.own = Backbone(own) if own else None
        self.mix = _zero(nn.Linear(own.width, width)) if own else None

    @property
    def denoiser(self) -> MaskedDenoiser:
        """The frozen denoiser that is read. A sampler guiding this very object may hand its features over."""
        return cast(MaskedDenoiser, self._denoiser.network)

    def encode(self, x_t: Tensor, t: Tensor, features: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,d (+ own width)]: the denoiser's hidden states, beside them the own ones.

        Args:
            x_t: noised tokens.
            t: noise level.
            features: `denoiser.encode(x_t, t)`, when it is at hand.
        """
        if features is None:
            with torch.no_grad():
                features = self.denoiser.encode(x_t, t)
        return features if self.own is None else torch.cat([features, self.own(x_t, t).to(features.dtype)], dim=-1)

    def decode(self, h: Tensor) -> Tensor:
        """Float[..., d (+ own width)] -> Float[...,v] in fp32."""
        return F.linear(self._delta(h), self.denoiser.output.weight.detach(), self.bias).float()

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """`decode(h)` at one token a position: Float[...,d (+ own width)], Long[...] -> Float[...]."""
        rows = self.denoiser.output.weight.detach()[tokens]
        return (self._delta(h).float() * rows.float()).sum(-1) + self.bias[tokens].float()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]."""
        return self.decode(self.encode(x_t, t))

    def spec(self) -> dict[str, Any]:
        """What a checkpoint says of it; the denoiser is named by its fingerprint, not stored."""
        own = asdict(self.own_config) if self.own_config else None
        return {"rank": self.rank, "own": own, "denoiser": self.denoiser.fingerprint()}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], denoiser: nn.Module | None) -> FeatureTokenRatio:
        """The reverse of `spec`.

        Raises:
            UserError: no denoiser, or not the one it was trained on.
        """
        if not isinstance(denoiser, MaskedDenoiser):
            raise UserError("this ratio reads a frozen denoiser; give the one it was trained on (denoiser=...)")
        if denoiser.fingerprint() != spec["denoiser"]:
            raise UserError("this ratio was trained on another denoiser than the one given; train the ratio again")
        return cls(denoiser, spec["rank"], BackboneConfig(**spec["own"]) if spec["own"] else None)

    def _delta(self, h: Tensor) -> Tensor:
        features = h[..., : self.config.width]
        delta = self.scale * features + self.up(F.gelu(self.down(features)))
        return delta if self.mix is None else delta + self.mix(h[..., self.config.width :])

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureTokenRatio:
        # `.to(device)` must take the denoiser along although it is not a submodule.
        self._denoiser.network._apply(fn, recurse)
        return super()._apply(fn, recurse)


@register
class SequenceRatioNetwork(nn.Module):
    """f(x_t, t) = log r_t of a whole sequence, or the logit of P(target | x_t): both have the target positive.

    Hidden states are pooled by learned attention over the tokens that are no padding; it starts as their plain mean,
    and the output starts at zero.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.attend = _zero(nn.Linear(config.width, 1))
        self.head = _zero(nn.Linear(config.width, 1))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b] in fp32."""
        h = self.backbone(x_t, t)
        # A finite floor: a row of pads alone gives a plain mean, not NaN.
        score = self.attend(h).float().masked_fill((x_t == self.config.pad_index)[..., None], -1e9)
        return self.head((score.softmax(dim=1) * h.float()).sum(dim=1)).float().squeeze(-1)


@register
class PositionNetwork(nn.Module):
    """rho(z_t) in R^L, the planner: how sure the denoiser's best token is at a masked position (docs/method.md 2.3)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = _zero(nn.Linear(config.width, 1))

    def forward(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """Long[b,l] -> logits Float[b,l] in fp32. Without t the masked share stands for it (log-linear: its mean)."""
        if t is None:
            valid = (x_t != self.config.pad_index).sum(-1).clamp(min=1)
            t = (x_t == self.config.mask_index).sum(-1) / valid
        return self.head(self.backbone(x_t, t)).float().squeeze(-1)


@register
class CausalLM(nn.Module):
    """An autoregressive model of text, for reference perplexities: position l holds log p(x^l | x^{<l}).

    The input is shifted right by one, with the mask token as the start; the backbone is causal and knows no t.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = replace(config, causal=True, cond_dim=0)
        self.backbone = Backbone(self.config)
        self.output = nn.Linear(config.width, config.vocab_size)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)
        if config.tied:
            self.output.weight = self.backbone.embedding.weight

    def forward(self, x_0: Tensor) -> Tensor:
        """Long[b,l] -> log-probabilities Float[b,l,v] in fp32; -inf at mask and pad."""
        start = torch.full_like(x_0[:, :1], self.config.mask_index)
        logits = self.output(self.backbone(torch.cat([start, x_0[:, :-1]], dim=1))).float()
        logits[..., [self.config.mask_index, self.config.pad_index]] = float("-inf")
        return F.log_softmax(logits, dim=-1)

    def log_prob(self, x_0: Tensor) -> Tensor:
        """Long[b,l] -> Float[b,l]: log p(x^l | x^{<l}) in nats, 0 at pads."""
        valid = x_0 != self.config.pad_index
        return self(x_0).gather(-1, x_0[..., None]).squeeze(-1).where(valid, torch.zeros((), device=x_0.device))


@register
class RatioEnsemble(nn.Module):
    """The mean of several members' log-ratios: one ratio again, of lower variance.

    Token-level members (all of them with `encode` and `decode`) keep the factored protocol; sequence-level members are
    called. Members that read the same denoiser share its features.
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
        return next((member.denoiser for member in self.members if isinstance(member, FeatureTokenRatio)), None)

    def encode(self, x_t: Tensor, t: Tensor, features: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> the members' hidden states side by side, Float[b,l, sum of d]."""
        denoiser = self.denoiser
        if features is None and denoiser is not None:
            with torch.no_grad():
                features = denoiser.encode(x_t, t)
        hidden = [
            member.encode(x_t, t, features)
            if isinstance(member, FeatureTokenRatio)
            else cast(TokenRatioNetwork, member).encode(x_t, t)
            for member in self.members
        ]
        return torch.cat(hidden, dim=-1)

    def decode(self, h: Tensor) -> Tensor:
        """Float[..., sum of d] -> mean log r, Float[...,v] in fp32."""
        parts = h.split([_hidden_size(member) for member in self.members], dim=-1)
        total = sum(
            cast(TokenRatioNetwork, member).decode(part) for member, part in zip(self.members, parts, strict=True)
        )
        return cast(Tensor, total) / len(self.members)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v] of token-level members, Float[b] of sequence-level ones."""
        if all(isinstance(member, TokenRatioNetwork | FeatureTokenRatio) for member in self.members):
            return self.decode(self.encode(x_t, t))
        return torch.stack([member(x_t, t) for member in self.members]).mean(dim=0)


def copy_of(network: nn.Module) -> nn.Module:
    """A trainable copy: fine-tuning starts from it and leaves the original as it is."""
    return deepcopy(network).requires_grad_(True)


def _hidden_size(member: nn.Module) -> int:
    if isinstance(member, FeatureTokenRatio):
        return member.config.width + (member.own_config.width if member.own_config else 0)
    return cast(TokenRatioNetwork, member).config.width


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
