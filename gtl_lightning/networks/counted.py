"""The token-level log-ratio of counts: tables in the place of an encoder (docs/method.md 2.2)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import EVERYWHERE, Look, Source
from gtl_lightning.networks.ratios import TokenLevel
from gtl_lightning.networks.store import register

NOTHING = -1
"""In the place of a neighbour that is masked, padding, or beyond the end."""


@register
class CountTokenRatio(TokenLevel):
    """g(v) = s_0 log r(v) + sum_d s_d log r_d(v | u_d), u_d the visible tokens up to `reach` places away.

    The tables are counted (`core.counts`), the strengths s are all that is trained; a product over neighbours counts
    what they share more than once, which strengths below 1 make up for. `encode` says who the neighbours are. On a GPU
    `decode` waits for the device once: it asks how many pairs the neighbours have.

    Args:
        vocab_size: v, mask and padding counted.
        mask_index: of the mask.
        pad_index: of the padding.
        reach: farthest place away.
        pairs: entries of the tables of pairs, all places together.
    """

    tokens: Tensor
    keys: Tensor
    values: Tensor

    def __init__(self, vocab_size: int, mask_index: int, pad_index: int, reach: int, pairs: int) -> None:
        super().__init__()
        self.vocab_size, self.mask_index, self.pad_index, self.reach = vocab_size, mask_index, pad_index, reach
        self.register_buffer("tokens", torch.zeros(vocab_size))
        # One row more than there are pairs, of no neighbour: whatever is looked up, there is a place to look.
        self.register_buffer("keys", torch.full((pairs + 1,), len(self.places) * vocab_size**2))
        self.register_buffer("values", torch.zeros(pairs + 1))
        near = torch.tensor([1.0 / abs(place) for place in self.places])
        self.strengths = nn.Parameter(torch.cat([torch.ones(1), 0.3 * near]))

    @property
    def places(self) -> list[int]:
        """Where a neighbour stands, from its token: -reach..-1, 1..reach."""
        return [place for place in range(-self.reach, self.reach + 1) if place]

    @property
    def width(self) -> int:  # type: ignore[override]
        """Neighbours of a position."""
        return len(self.places)

    @property
    def passes(self) -> int:
        """It has no encoder."""
        return 0

    @property
    def counted(self) -> tuple[Tensor, ...]:
        """What is counted of the target's texts, and kept with the weights."""
        return self.tokens, self.keys, self.values

    def fill(self, tokens: Tensor, tables: dict[int, tuple[Tensor, Tensor]]) -> Self:
        """Take tables: Float[v], and for each of `places` the keys Long[n] of `Pairs` and Float[n] log r."""
        slots = [(slot, *tables[place]) for slot, place in enumerate(self.places)]
        keys = [slot * self.vocab_size**2 + keys for slot, keys, _ in slots]
        self.tokens.copy_(tokens)
        self.keys[:-1], self.values[:-1] = torch.cat(keys), torch.cat([values for _, _, values in slots])
        return self

    def spec(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        names = ("vocab_size", "mask_index", "pad_index", "reach")
        return {**{name: getattr(self, name) for name in names}, "pairs": len(self.values) - 1}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], denoiser: Source | None) -> Self:
        """The reverse of `spec`; it reads no denoiser."""
        return cls(**{key: value for key, value in spec.items() if key != "class"})

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        """Long[b,l] -> Float[b,n,width]: the ids of the visible neighbours, `NOTHING` where there is none."""
        seen = x_t.masked_fill((x_t == self.mask_index) | (x_t == self.pad_index), NOTHING)
        padded = nn.functional.pad(seen, (self.reach, self.reach), value=NOTHING)
        length = x_t.shape[1]
        found = [padded[:, self.reach + place : self.reach + place + length] for place in self.places]
        return look.of(torch.stack(found, dim=-1).float())

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,width] -> log r for every token at the position, Float[...,v] in fp32."""
        v, rows = self.vocab_size, h.reshape(-1, self.width)
        first = self._first(rows)
        start, end = torch.searchsorted(self.keys, first), torch.searchsorted(self.keys, first + v)
        count = torch.where(rows == NOTHING, 0, end - start).flatten()
        total = (self.strengths[0] * self.tokens).repeat(len(rows), 1).flatten()
        # Entry i of the ones of a (row, neighbour) lies i after its first.
        own = torch.arange(len(count), device=h.device).repeat_interleave(count)
        entry = start.flatten()[own] + torch.arange(len(own), device=h.device) - (count.cumsum(0) - count)[own]
        where = (own // self.width) * v + self.keys[entry] % v
        total = total.index_add(0, where, self.values[entry] * self.strengths[1:][own % self.width])
        return total.view(*h.shape[:-1], v)

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Float[...,width], Long[...] -> Float[...]."""
        key = self._first(h) + tokens[..., None]
        entry = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        known = (self.keys[entry] == key) & (h != NOTHING)
        beside = torch.where(known, self.values[entry], 0.0) * self.strengths[1:]
        return self.strengths[0] * self.tokens[tokens] + beside.sum(-1)

    def _first(self, h: Tensor) -> Tensor:
        """Long[...,width]: the key of id 0 beside each neighbour."""
        slot = torch.arange(self.width, device=h.device) * self.vocab_size
        return ((slot + h.long().clamp(min=0)) * self.vocab_size).contiguous()
