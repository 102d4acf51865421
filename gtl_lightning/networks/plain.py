"""Anyone's denoiser as a source: what losses and ratio networks read when all that is known of it is its output."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.callables import called
from gtl_lightning.core.guard import tensor_of, wide
from gtl_lightning.core.protocols import EVERYWHERE, Denoiser, Look, untouched
from gtl_lightning.errors import UserError
from gtl_lightning.networks.source import Ids, weights_hash

LOWEST = -1e4
"""What stands for -inf in `logits`: two denoisers that exclude a token then differ by 0 there, not by NaN."""


class Plain(nn.Module):
    """A callable (x_t, t) -> Float[b,l,v] as a `protocols.Source`: its hidden states are what it gives, d = v.

    Args:
        network: a module, of which all weights are this one's too, or any function.
        ids: of the mask, and of the padding (NO_PAD: none).
        vocab_size: v.
    """

    lora_targets = ()

    def __init__(self, network: Denoiser, ids: Ids, vocab_size: int) -> None:
        super().__init__()
        self.network = network
        self.mask_index, self.pad_index = ids
        self.vocab_size = self.width = vocab_size
        self.normalised = getattr(network, "normalised", False) is True

    @property
    def output_embedding(self) -> Tensor:
        """Float[v,v], sparse: the identity."""
        ids = torch.arange(self.vocab_size)
        return torch.sparse_coo_tensor(torch.stack([ids, ids]), torch.ones(self.vocab_size), check_invariants=False)

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,n,v], as the callable gave it, in fp32 at least; it reads no `features`.

        Raises:
            UserError: it gives no tensor, or one of another shape, or writes into its inputs.
        """
        output = untouched(cast(Callable[..., Tensor], self.network), x_t, t)
        return look.of(wide(tensor_of(output, (*x_t.shape, self.vocab_size), self.network, "denoiser")))

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,v] -> itself."""
        return h

    def logits(self, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Float[...,v] -> itself, finite; with `tokens` Long[...] theirs alone, Float[...]."""
        finite = h.clamp(min=LOWEST)
        return finite if tokens is None else finite.gather(-1, tokens[..., None]).squeeze(-1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]."""
        return self.encode(x_t, t)

    def fingerprint(self) -> str:
        """Short hash of a module's weights; a function has none, and its name says which it is."""
        return weights_hash(self.network) if isinstance(self.network, nn.Module) else called(self.network, "function")

    def trainable_copy(self, dropout: float | None = None) -> Plain:
        """A copy whose every weight trains, in training mode: by its own `trainable_copy`, else by `copy.deepcopy`.

        `dropout` is then set in all of its `nn.Dropout`; None keeps what they have.

        Raises:
            UserError: a function, a module without weights or one that cannot be copied.
        """
        original: object = self.network
        if not isinstance(original, nn.Module) or not any(True for _ in original.parameters()):
            raise UserError(
                f"the {called(original, 'denoiser')} has no weights of its own, so that no copy of it can be trained; "
                "give the nn.Module itself, or choose method='gtl'"
            )
        if callable(own := getattr(original, "trainable_copy", None)):
            copy = own(dropout)
        else:
            try:
                copy = deepcopy(original).requires_grad_(True)
            except (RuntimeError, TypeError, AttributeError) as error:
                raise UserError(
                    f"the {called(original, 'denoiser')} cannot be copied ({str(error).splitlines()[0]}); "
                    "give it a method trainable_copy(dropout), or choose method='gtl'"
                ) from error
            for layer in copy.modules():
                if dropout is not None and isinstance(layer, nn.Dropout):
                    layer.p = dropout
        return Plain(copy, Ids(self.mask_index, self.pad_index), self.vocab_size).train()
