"""The transformer that every network here is built on: embedding, blocks, last norm."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import EVERYWHERE, Look, PaddingOnce
from gtl_lightning.errors import UserError
from gtl_lightning.networks.block import NO_PAD, BackboneConfig, Block, Modulation, TimeEmbedding, View, rotary_table
from gtl_lightning.papers.ar2diff import begun, causal_mask, starts


class Backbone(nn.Module):
    """Token ids and noise level to hidden states."""

    rotary: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        # Rotary positions are relative: without a mark at the first token, all positions of an all-masked sequence
        # would look alike and get the same prediction. Padding before that token therefore changes nothing.
        self.start = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.time = TimeEmbedding(config.cond_dim) if config.cond_dim else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=config.cond_dim == 0)
        self.modulation = Modulation(config, parts=2) if config.cond_dim else None
        self.register_buffer(
            "rotary", rotary_table(config.length + config.shift, config.width // config.heads), persistent=False
        )

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        return self.config.width

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        """As `protocols.Encoder` has it; it reads no `features`."""
        return self(x_t, t, look)

    def reads(self, length: int) -> int:
        """Positions passed over for `length` tokens: where it is shifted, a start too, and no last token if causal."""
        return length + (self.config.shift and not self.config.causal)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | None = None,
        look: Look = EVERYWHERE,
        attention: Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last norm, at the n positions that `look` wants.

        Only single places pass the last block, whose keys and values are those of all. A window is computed alone, and
        attends to the cache: the keys and values of every block in turn, each Float[b,h,l,head], renewed in place.

        Args:
            x_t: Long[b,l], l at most `config.length`.
            t: Float[b], noise level in [0, 1]; not read when `config.cond_dim` is 0.
            look: which positions.
            attention: Bool[r,r] or Bool[b,r,r], True = attend, r = `reads(l)`, in place of the network's own, which is
                everywhere or causal; padding is not attended to in any case.
            embedded: Float[b,l,d], read in the place of the embeddings of x_t, which still says where padding is.

        Returns:
            Float[b,n,d].

        Raises:
            UserError: the sequence is longer than the network's length.
            ValueError: a network conditioned on t gets none, or attention is of another size.
        """
        cond = None
        if self.time is not None:
            if t is None:
                raise ValueError("this network is conditioned on t: pass the noise level, Float[b]")
            cond = self.time(t)
        if x_t.shape[1] > self.config.length:
            raise UserError(
                f"sequences of {x_t.shape[1]} tokens; this network was made for length = {self.config.length}"
            )
        if attention is not None and attention.shape[-2:] != 2 * (self.reads(x_t.shape[1]),):
            raise ValueError(
                f"attention of shape {list(attention.shape)}; {self.reads(x_t.shape[1])} positions are read"
            )
        beyond = 0
        if self.config.shift:
            x_t, look, beyond, embedded = self._shifted(x_t, look, embedded)
        view = self._view(x_t, look, attention)
        width = view.rotary.shape[1]
        here = slice(view.start, view.start + width)
        x = self.embedding(x_t[:, here]) if embedded is None else embedded[:, here]
        if view.first is not None:
            first = torch.arange(view.start, view.start + width, device=x.device) == view.first[:, None]
            x = torch.where(first[..., None], x + self.start, x)
        elif view.start == 0:
            x = torch.cat([x[:, :1] + self.start, x[:, 1:]], dim=1)
        before: list[Tensor] = []
        after: list[Tensor] = []
        if look.cache is not None and look.window is not None:
            before = [kept[: len(x_t)] for kept in look.cache[self]]
        for index, block in enumerate(self.blocks):
            kept = (before[2 * index], before[2 * index + 1]) if before else None
            places = look.places if index == len(self.blocks) - 1 else None
            x, kept = block(x, cond, view if places is None else view.at(places), kept, places)
            after += kept if look.cache is not None else ()
        if look.cache is not None and look.window is None:
            look.cache[self] = [part.contiguous() for part in after]
        x = self.norm(x[:, : x.shape[1] - beyond] if beyond else x)
        if self.modulation is not None and cond is not None:
            shift, scale = self.modulation(cond)
            x = x * (1 + scale) + shift
        return x

    def _shifted(self, x_t: Tensor, look: Look, embedded: Tensor | None) -> tuple[Tensor, Look, int, Tensor | None]:
        """What is read, the look at it, how many of the last states are no token's, and what is read embedded.

        The state of token l stands where token l - 1 is read, so that places stay; a window reads its last token too.
        """
        mask, pad = self.config.mask_index, self.config.pad_index
        read, beyond = begun(x_t, mask, pad), 0 if self.config.causal or look.places is not None else 1
        if embedded is not None:
            start, length = self.embedding.weight[mask], x_t.shape[1]
            before = torch.cat([start.expand_as(embedded[:, :1]), embedded], dim=1)
            first = torch.where(starts(x_t, pad)[..., None], start, before[:, :length])
            embedded = torch.cat([first, before[:, length:]], dim=1)
        if self.config.causal:
            read = read[:, :-1]
        elif look.window is not None:
            look = replace(look, window=(look.window[0], look.window[1] + 1))
        return read, look, beyond, embedded

    def _view(self, x_t: Tensor, look: Look, attention: Tensor | None = None) -> View:
        length = x_t.shape[1]
        start, stop = look.window or (0, length)
        rotary, pad = self.rotary[:, start:stop], self.config.pad_index
        causal = self.config.causal and attention is None
        padded = left = False
        if pad != NO_PAD and x_t.device.type != "meta":
            padded, left = (look.padding or PaddingOnce(x_t)).of(pad)
        valid = x_t != pad if padded else None
        first = valid.int().argmax(-1) if valid is not None and left else None
        if causal and (padded or look.places is not None or look.window is not None):
            attention, causal = causal_mask(length, x_t.device), False
        mask = None
        if attention is not None:
            mask = _square(attention, valid)[:, :, start:stop]
        elif valid is not None:
            # A row of pads alone attends everywhere: an empty softmax would be NaN.
            mask = valid[:, None, None, :] | ~valid.any(dim=-1)[:, None, None, None]
        return View(rotary, mask, causal, start, first)

    def set_dropout(self, dropout: float) -> None:
        """Another dropout from now on."""
        self.config = replace(self.config, dropout=dropout)
        for block in self.blocks:
            cast(Block, block).dropout = dropout


def _square(attention: Tensor, valid: Tensor | None) -> Tensor:
    """Bool[1 or b,1,l,l] from Bool[l,l] or Bool[b,l,l] and `valid` Bool[b,l]; pads attend to themselves at least."""
    mask = attention.view(-1, 1, *attention.shape[-2:])
    if valid is None:
        return mask
    return (mask & valid[:, None, None, :]) | torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
