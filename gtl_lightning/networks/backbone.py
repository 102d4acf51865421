"""The transformer that every network here is built on: embedding, blocks, last norm."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import EVERYWHERE, Look, PaddingOnce
from gtl_lightning.errors import UserError
from gtl_lightning.networks.block import NO_PAD, BackboneConfig, Block, Modulation, TimeEmbedding, View, rotary_table


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
        self.register_buffer("rotary", rotary_table(config.length, config.width // config.heads), persistent=False)

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        return self.config.width

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        """As `protocols.Encoder` has it; it reads no `features`."""
        return self(x_t, t, look)

    def forward(
        self, x_t: Tensor, t: Tensor | None = None, look: Look = EVERYWHERE, embedded: Tensor | None = None
    ) -> Tensor:
        """Hidden states after the last norm, at the n positions that `look` wants.

        Only single places pass the last block, whose keys and values are those of all. A window is computed alone, and
        attends to the cache: the keys and values of every block in turn, each Float[b,h,l,head], renewed in place.

        Args:
            x_t: Long[b,l], l at most `config.length`.
            t: Float[b], noise level in [0, 1]; not read when `config.cond_dim` is 0.
            look: which positions.
            embedded: Float[b,l,d], read in the place of the embeddings of x_t, which still says where padding is.

        Returns:
            Float[b,n,d].

        Raises:
            UserError: the sequence is longer than the network's length.
            ValueError: a causal network is asked for less than everything, or one conditioned on t gets none.
        """
        if self.config.causal and not (look.places is None and look.window is None):
            raise ValueError("a causal network passes over everything; ask it for no places and no window")
        cond = None
        if self.time is not None:
            if t is None:
                raise ValueError("this network is conditioned on t: pass the noise level, Float[b]")
            cond = self.time(t)
        view = self._view(x_t, look)
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
            last = index == len(self.blocks) - 1
            x, kept = block(x, cond, view, kept, look.places if last else None)
            after += kept if look.cache is not None else ()
        if look.cache is not None and look.window is None:
            look.cache[self] = [part.contiguous() for part in after]
        x = self.norm(x)
        if self.modulation is not None and cond is not None:
            shift, scale = self.modulation(cond)
            x = x * (1 + scale) + shift
        return x

    def _view(self, x_t: Tensor, look: Look) -> View:
        if x_t.shape[1] > self.config.length:
            raise UserError(
                f"sequences of {x_t.shape[1]} tokens; this network was made for length = {self.config.length}"
            )
        start, stop = look.window or (0, x_t.shape[1])
        rotary, causal, pad = self.rotary[:, start:stop], self.config.causal, self.config.pad_index
        padded = left = False
        if pad != NO_PAD and x_t.device.type != "meta":
            padded, left = (look.padding or PaddingOnce(x_t)).of(pad)
        if not padded:
            return View(rotary, None, causal, start)
        valid = x_t != pad
        mask, causal = self._attention_mask(valid)
        return View(rotary, mask, causal, start, valid.int().argmax(-1) if left else None)

    def warm_start(self, other: Backbone) -> None:
        """Copy the embedding, time embedding, first blocks and last norm of a backbone of the same width.

        Raises:
            UserError: the two do not fit.
        """
        for name in ("vocab_size", "width", "heads", "cond_dim"):
            mine, theirs = getattr(self.config, name), getattr(other.config, name)
            if mine != theirs:
                raise UserError(f"cannot warm-start a network of {name} = {mine} from one of {theirs}; make them equal")
        if self.config.depth > other.config.depth:
            raise UserError(f"cannot warm-start {self.config.depth} blocks from a network of {other.config.depth}")
        state = {name: value for name, value in other.state_dict().items() if not name.startswith("blocks.")}
        for index in range(self.config.depth):
            prefix = f"blocks.{index}."
            state |= {name: value for name, value in other.state_dict().items() if name.startswith(prefix)}
        self.load_state_dict(state)

    def set_dropout(self, dropout: float) -> None:
        """Another dropout from now on."""
        self.config = replace(self.config, dropout=dropout)
        for block in self.blocks:
            cast(Block, block).dropout = dropout

    def _attention_mask(self, valid: Tensor) -> tuple[Tensor, bool]:
        """Bool[b,1,1 or l,l] (True = attend) from Bool[b,l], no padding, and whether SDPA's own causal mask does."""
        mask = valid[:, None, None, :]
        if not self.config.causal:
            # A row of pads alone attends everywhere: an empty softmax would be NaN.
            return mask | ~valid.any(dim=-1)[:, None, None, None], False
        length = valid.shape[1]
        square = torch.ones(length, length, dtype=torch.bool, device=valid.device)
        return (mask & square.tril()) | torch.eye(length, dtype=torch.bool, device=valid.device), False
