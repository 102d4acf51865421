"""The transformer that says what tokens it expects: what the denoiser and the causal model have in common."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.core.guard import wide
from gtl_lightning.files import digest
from gtl_lightning.networks.backbone import Backbone
from gtl_lightning.networks.block import NO_PAD, BackboneConfig
from gtl_lightning.networks.source import weights_hash
from gtl_lightning.networks.store import Stored
from gtl_lightning.sharing.shareable import DENOISER


class Decoder(Stored, nn.Module):
    """A backbone and a projection of its hidden states to the vocabulary, with the weights of the embedding or its own.

    Subclasses say what is read and what a position predicts: all that is unmasked (`MaskedDenoiser`), or all that comes
    before (`CausalLM`). Their weights have the same names, so that one can start from the other's.
    """

    part = DENOISER
    normalised = True
    lora_targets = ("qkv", "out", "up", "down")
    """The attention and MLP projections of every block."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.output = nn.Linear(config.width, config.vocab_size)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)
        if config.tied:
            self.output.weight = self.backbone.embedding.weight

    @property
    def vocab_size(self) -> int:
        """Ids, mask and pad included."""
        return self.config.vocab_size

    @property
    def mask_index(self) -> int:
        """Id of the mask."""
        return self.config.mask_index

    @property
    def pad_index(self) -> int | None:
        """Id of the padding; None where all sequences have one length."""
        return None if self.config.pad_index == NO_PAD else self.config.pad_index

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        return self.config.width

    def reads(self, length: int) -> int:
        """Positions that an attention given to it is over, for a number of tokens (`Backbone.reads`)."""
        return self.backbone.reads(length)

    @property
    def output_embedding(self) -> Tensor:
        """Float[v,d], the projection's weights."""
        return self.output.weight

    @property
    def input_embedding(self) -> Tensor:
        """Float[v,d], what is read of each token."""
        return self.backbone.embedding.weight

    def logits(self, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Float[...,d] -> Float[...,v] in fp32 at least; with `tokens` Long[...] of one each, Float[...]."""
        if tokens is None:
            return wide(self.output(h))
        return (wide(h) * wide(self.output.weight[tokens])).sum(-1) + wide(self.output.bias[tokens])

    def mean_logit(self, h: Tensor) -> Tensor:
        """Float[...,d] -> Float[...]: the mean of `logits` over all tokens but mask and pad, by one dot product."""
        specials = self.config.specials
        count = self.vocab_size - len(specials)
        weight, bias = wide(self.output.weight), wide(self.output.bias)
        # One index at a time: a list of them would travel to the device at every call.
        special, own = (torch.stack([values[index] for index in specials]).sum(0) for values in (weight, bias))
        row = (weight.sum(0) - special) / count
        return wide(h) @ row + (bias.sum() - own) / count

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,d] -> log-probabilities of the token, Float[...,v] in fp32 at least; -inf at mask and pad."""
        logits = self.logits(h)
        # One index at a time: a list of them would travel to the device at every call.
        for index in self.config.specials:
            logits[..., index] = float("-inf")
        return F.log_softmax(logits, dim=-1)

    def fingerprint(self) -> str:
        """Short hash of all weights and of how they are read: which denoiser a `FeatureTokenRatio` was trained on."""
        read = {**asdict(self.config), "dropout": 0.0}  # which only training has
        return digest([type(self).__name__, read, weights_hash(self)])

    def trainable_copy(self, dropout: float | None = None) -> Self:
        """A copy of which every weight trains, in training mode: fine-tuning starts from it, the original stays."""
        copy = deepcopy(self).requires_grad_(True).train()
        if dropout is not None:
            copy.backbone.set_dropout(dropout)
            copy.config = copy.backbone.config
        return copy
