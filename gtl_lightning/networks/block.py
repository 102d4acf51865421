"""One block of the transformer here: rotary, pre-norm, adaLN-zero, on torch's scaled dot product.

The layout follows DiT (arXiv 2212.09748) as used by MDLM (arXiv 2406.07524): one block is attention and a GELU MLP,
each behind a LayerNorm whose scale, shift and output gate are read from an embedding of the noise level t. The gates
start at zero, so that a new block is the identity and depth costs nothing at the start of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.errors import UserError

Kept = tuple[Tensor, Tensor]
"""Keys, rotated, and values of one block: Float[b,h,l,head] each."""
FREQUENCIES = 256
"""Sinusoids in the embedding of t."""
NO_PAD = -1
"""No id: what stands for the padding where there is none."""


@dataclass(frozen=True)
class BackboneConfig:
    """Size of a transformer and the meaning of its special ids.

    Attributes:
        vocab_size: every id counted, mask and pad included.
        length: longest sequence it takes.
        width: size of the hidden states.
        depth: number of blocks.
        heads: attention heads; `width / heads` must be even (rotary positions rotate pairs).
        mask_index: id of the mask token.
        pad_index: id of the padding; pads are never attended to. NO_PAD: all sequences have one length.
        cond_dim: size of the embedding of t; 0 switches time conditioning off.
        dropout: on the output of every attention and MLP.
        tied: the output projection is the token embedding.
        causal: position i attends to positions up to i only.
        shift: a start is read before the text, and the state that has read what comes before a token is the token's;
            unshifted, it is the state of the token's own position.
    """

    vocab_size: int
    length: int
    width: int
    depth: int
    heads: int
    mask_index: int
    pad_index: int
    cond_dim: int = 128
    dropout: float = 0.0
    tied: bool = False
    causal: bool = False
    shift: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built.

        Raises:
            UserError: naming the value.
        """
        for name in ("vocab_size", "length", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"network {name} = {getattr(self, name)}; it must be at least 1")
        if self.width % (2 * self.heads):
            raise UserError(f"network width = {self.width} with heads = {self.heads}; width / heads must be even")
        for name in ("mask_index", "pad_index"):
            value = getattr(self, name)
            if not 0 <= value < self.vocab_size and (name, value) != ("pad_index", NO_PAD):
                raise UserError(f"network {name} = {value}; it must be an id below {self.vocab_size}")
        if self.cond_dim < 0 or not 0 <= self.dropout < 1:
            raise UserError(f"network cond_dim = {self.cond_dim}, dropout = {self.dropout}; want >= 0 and in [0, 1)")

    @property
    def specials(self) -> list[int]:
        """Ids that are no token of a text: the mask, and the padding if there is one."""
        return [self.mask_index] + ([] if self.pad_index == NO_PAD else [self.pad_index])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generators start from `seed`; outside they are untouched. For initialising weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class TimeEmbedding(nn.Module):
    """Noise level t in [0, 1] as sinusoids, then a small MLP."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        """Float[b] -> Float[b, cond_dim]."""
        half = FREQUENCIES // 2
        # Wavelengths from 2 pi / 1000 up to about 60: noise levels that differ by a thousandth are told apart.
        rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000.0) / half))
        angles = 1000.0 * t.float()[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Modulation(nn.Module):
    """LayerNorm's companions read from the time embedding: `parts` vectors of the width, zero at the start."""

    def __init__(self, config: BackboneConfig, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.project = nn.Linear(config.cond_dim, parts * config.width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        """Float[b, cond_dim] -> `parts` tensors Float[b, 1, width]."""
        return self.project(cond)[:, None].chunk(self.parts, dim=-1)


@dataclass(frozen=True)
class View:
    """What attention is told of the positions it is given.

    Attributes:
        rotary: Float[2,w,head], their rows of `rotary_table`.
        mask: Bool, broadcastable to [b,1,w,l], True = attend; None attends everywhere.
        causal: a position attends to those up to itself.
        start: the first of them.
        first: Long[b], the first position of each row that is no padding; None where that is 0.
    """

    rotary: Tensor
    mask: Tensor | None
    causal: bool
    start: int
    first: Tensor | None = None

    def at(self, places: Tensor) -> View:
        """The same, for queries at `places` Long[b,k] alone."""
        if self.mask is None or self.mask.shape[2] == 1:
            return self
        rows = self.mask.expand(len(places), -1, -1, -1).take_along_dim(places[:, None, :, None], 2)
        return replace(self, mask=rows)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, view: View, kept: Kept | None = None, places: Tensor | None = None
    ) -> tuple[Tensor, Kept]:
        """Float[b,w,d] -> Float[b,w,d], or Float[b,k,d] at `places` Long[b,k], and the keys and values attended to.

        Without `kept` these are x's own; with it x renews its part of them, in place, and attends to the whole.
        """
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        v = qkv[2]
        if places is None:
            q, k = rotate(qkv[:2], view.rotary)
        else:
            q = rotate(qkv[0].take_along_dim(places[:, None, :, None], 2), view.rotary[:, places][:, :, None])
            k = rotate(qkv[1], view.rotary)
            length = places.shape[1]
        if kept is not None:
            for whole, part in zip(kept, (k, v), strict=True):
                whole[:, :, view.start : view.start + part.shape[2]] = part
            k, v = kept
        h = attend(q, k, v, view)
        return self.out(h.transpose(1, 2).reshape(batch, length, width)), (k, v)


def attend(q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
    """Float[b,h,w,head], twice Float[b,h,l,head] -> Float[b,h,w,head]: what each position reads."""
    if not (q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=view.mask, is_causal=view.causal)
    # On a CPU the gradient of attention in bf16 takes six times as long as in fp32.
    with torch.autocast("cpu", enabled=False):
        h = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=view.mask, is_causal=view.causal)
    return h.to(q.dtype)


class Block(nn.Module):
    """x + gate * attention(norm(x)), then x + gate * MLP(norm(x)); norms and gates modulated by t."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        plain = config.cond_dim == 0
        self.attention_norm = nn.LayerNorm(config.width, elementwise_affine=plain)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width, elementwise_affine=plain)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)
        self.modulation = None if plain else Modulation(config, parts=6)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, cond: Tensor | None, view: View, kept: Kept | None = None, places: Tensor | None = None
    ) -> tuple[Tensor, Kept]:
        """Float[b,w,d] -> Float[b,w,d], or Float[b,k,d] at `places`, and the attention's keys and values."""
        own = x if places is None else x.take_along_dim(places[..., None], 1)
        if self.modulation is None or cond is None:
            h, kept = self.attention(self.attention_norm(x), view, kept, places)
            x = own + self._drop(h)
            return x + self._drop(self._mlp(self.mlp_norm(x))), kept
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(cond)
        h, kept = self.attention(self.attention_norm(x) * (1 + scale) + shift, view, kept, places)
        x = own + gate * self._drop(h)
        return x + mlp_gate * self._drop(self._mlp(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift)), kept

    def _mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def rotary_table(length: int, head: int) -> Tensor:
    """What `rotate` multiplies by, Float[2, length, head]: cosines, and sines with the signs of a rotation."""
    rates = 10_000.0 ** (-torch.arange(0, head, 2).float() / head)
    angles = torch.arange(length).float()[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn the pairs (i, i + head/2) of Float[...,l,head] by the position's angles; the dtype of x is kept."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)
