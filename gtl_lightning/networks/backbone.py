"""The transformer that every network here is built on: embedding, blocks, last norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gtl_lightning.errors import UserError
from gtl_lightning.networks.block import NO_PAD, BackboneConfig, Block, Modulation, TimeEmbedding, View, rotary_table
from gtl_lightning.protocols import Cache


class Backbone(nn.Module):
    """Token ids and noise level to hidden states.

    Attributes:
        padded: whether inputs hold padding; None looks at each.
        padded_left: whether a row may begin with it; None looks where there is padding.
    """

    rotary: Tensor
    padded: bool | None = None
    padded_left: bool | None = None

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

    def forward(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm.

        Args:
            x_t: Long[b,l], l at most `config.length`.
            t: Float[b], noise level in [0, 1]; not read when `config.cond_dim` is 0.

        Returns:
            Float[b,l,d].

        Raises:
            UserError: the sequence is longer than the network's length.
        """
        return self._run(x_t, t, self._view(x_t, 0, x_t.shape[1]), None)[0]

    def at(self, x_t: Tensor, t: Tensor | None, places: Tensor) -> Tensor:
        """`forward` at `places` Long[b,k] alone, Float[b,k,d]: other positions pass the last block's keys and values.

        Raises:
            ValueError: a causal network, which nothing asks for single places.
        """
        if self.config.causal:
            raise ValueError("a causal network is not asked for single places")
        return self._run(x_t, t, self._view(x_t, 0, x_t.shape[1]), None, places)[0]

    def remember(self, x_t: Tensor, t: Tensor | None = None) -> tuple[Tensor, Cache]:
        """`forward`, and the keys and values of every block in turn, each Float[b,h,l,head]."""
        hidden, cache = self._run(x_t, t, self._view(x_t, 0, x_t.shape[1]), None)
        return hidden, [part.contiguous() for part in cache]

    def recompute(self, x_t: Tensor, t: Tensor | None, start: int, stop: int, cache: Cache) -> Tensor:
        """Float[b,stop-start,d] of the window alone; elsewhere keys and values stay as the cache has them.

        Args:
            x_t: Long[b,l], all positions.
            t: Float[b].
            start: first position of the window.
            stop: the position after its last.
            cache: what `remember` gave for these rows; renewed inside the window, in place.

        Raises:
            ValueError: a causal network, which nothing recomputes.
        """
        if self.config.causal:
            raise ValueError("a causal network has no window to recompute")
        return self._run(x_t, t, self._view(x_t, start, stop), cache)[0]

    def _run(
        self, x_t: Tensor, t: Tensor | None, view: View, cache: Cache | None, places: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        cond = None
        if self.time is not None:
            if t is None:
                raise ValueError("this network is conditioned on t: pass the noise level, Float[b]")
            cond = self.time(t)
        width = view.rotary.shape[1]
        x = self.embedding(x_t[:, view.start : view.start + width])
        if view.first is not None:
            here = torch.arange(view.start, view.start + width, device=x.device) == view.first[:, None]
            x = torch.where(here[..., None], x + self.start, x)
        elif view.start == 0:
            x = torch.cat([x[:, :1] + self.start, x[:, 1:]], dim=1)
        used: Cache = []
        for index, block in enumerate(self.blocks):
            kept = None if cache is None else (cache[2 * index], cache[2 * index + 1])
            last = index == len(self.blocks) - 1
            x, kept = block(x, cond, view, kept, places if last else None)
            used += kept
        x = self.norm(x)
        if self.modulation is not None and cond is not None:
            shift, scale = self.modulation(cond)
            x = x * (1 + scale) + shift
        return x, used

    def _view(self, x_t: Tensor, start: int, stop: int) -> View:
        if x_t.shape[1] > self.config.length:
            raise UserError(
                f"sequences of {x_t.shape[1]} tokens; this network was made for length = {self.config.length}"
            )
        rotary, causal = self.rotary[:, start:stop], self.config.causal
        if self.config.pad_index == NO_PAD or self.padded is False or x_t.device.type == "meta":
            return View(rotary, None, causal, start)
        valid = x_t != self.config.pad_index
        padded, left = self.padded, self.padded_left
        if padded is None or left is None:  # one look at the device for both
            padded, left = torch.stack([~valid.all(), ~valid[:, :1].all()]).tolist()
        if not padded:
            return View(rotary, None, causal, start)
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

    def _attention_mask(self, valid: Tensor) -> tuple[Tensor, bool]:
        """Bool[b,1,1 or l,l] (True = attend) from Bool[b,l], no padding, and whether SDPA's own causal mask does."""
        mask = valid[:, None, None, :]
        if not self.config.causal:
            # A row of pads alone attends everywhere: an empty softmax would be NaN.
            return mask | ~valid.any(dim=-1)[:, None, None, None], False
        length = valid.shape[1]
        square = torch.ones(length, length, dtype=torch.bool, device=valid.device)
        return (mask & square.tril()) | torch.eye(length, dtype=torch.bool, device=valid.device), False


class PaddingOnce(nn.Module):
    """A network whose backbones can be told once whether a run of inputs is padded."""

    @contextmanager
    def padding_of(self, x_t: Tensor) -> Iterator[None]:
        """As `protocols.Padded` has it."""
        backbones = [module for module in self.modules() if isinstance(module, Backbone)]
        before = [(backbone.padded, backbone.padded_left) for backbone in backbones]
        try:
            for backbone in backbones:
                pads = x_t == backbone.config.pad_index
                backbone.padded, backbone.padded_left = torch.stack([pads.any(), pads[:, :1].any()]).tolist()
            yield
        finally:
            for backbone, (padded, left) in zip(backbones, before, strict=True):
                backbone.padded, backbone.padded_left = padded, left
