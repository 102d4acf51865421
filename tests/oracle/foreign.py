"""A source that is none of this project's networks: what its owner writes so that methods take it."""

from __future__ import annotations

from copy import deepcopy
from typing import Self

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import EVERYWHERE, Look
from tests.oracle.enumeration import Enumeration, random_laws

LAWS = random_laws(vocab=3, length=3, seed=0)


class Foreign(nn.Module):
    """The exact denoiser of `LAWS.p` behind two linear layers that start as identities.

    Hidden states are log-probabilities, bounded; logits give the mask some mass, and nothing promises a law.
    """

    vocab_size = LAWS.mask_index + 1
    mask_index = LAWS.mask_index
    width = LAWS.mask_index + 1
    lora_targets = ("mixing",)

    def __init__(self, laws: Enumeration = LAWS) -> None:
        super().__init__()
        self.laws = laws
        self.mixing = nn.Linear(self.width, self.width)
        self.head = nn.Linear(self.width, self.vocab_size)
        self.drop = nn.Dropout(0.0)
        with torch.no_grad():
            for layer in (self.mixing, self.head):
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)

    @property
    def output_embedding(self) -> Tensor:
        return self.head.weight

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        return look.of(self.drop(self.mixing(self.laws.denoiser(x_t, t).float().clamp(min=-9.0))))

    def logits(self, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        logits = self.head(h).float()
        return logits if tokens is None else logits.gather(-1, tokens[..., None]).squeeze(-1)

    def decode(self, h: Tensor) -> Tensor:
        return self.logits(h)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.decode(self.encode(x_t, t))

    def fingerprint(self) -> str:
        return "someone/their-model@0123abc"

    def trainable_copy(self, dropout: float | None = None) -> Self:
        copy = deepcopy(self).requires_grad_(True)
        if dropout is not None:
            copy.drop.p = dropout
        return copy
