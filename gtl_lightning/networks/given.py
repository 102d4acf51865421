"""Text behind a given prefix, which is passed over once: a denoiser's law of it, a causal model's continuation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gtl_lightning.core.protocols import EVERYWHERE, Attending, Cache, Look, PaddingOnce
from gtl_lightning.errors import UserError
from gtl_lightning.papers.ar2diff import at, causal_mask, drawn, full_mask, prefix_mask

if TYPE_CHECKING:
    from gtl_lightning.networks.heads import CausalLM

Visible = Callable[[Tensor, Tensor], Tensor]


def apart(network: Attending) -> Visible:
    """`prefix_mask` as `ContinuationModule` takes it: no state of a given token depends on the targets.

    Where a state predicts the token after the one it stands at, the one at the last given token is the first target's,
    and reads the targets.
    """
    # A start is read where a state predicts the token after its own.
    start = network.reads(1) - 1
    return lambda attention, given: prefix_mask(attention, given - start)


class Following:
    """A denoiser of the tokens behind a prefix, Long[b,t], as samplers and `papers.ar2diff.decode` take it.

    The prefix does not depend on them (`apart`), so that its keys and values are computed once and read at every step;
    of weights that have changed since, make another.

    Args:
        network: trained with `apart`.
        prefix: Long[b,p], padded on the left; p = 0 gives nothing.
    """

    normalised = True
    fixed_rows = True

    def __init__(self, network: Attending, prefix: Tensor) -> None:
        self.network, self.prefix = network, prefix
        self.mask_index, self.vocab_size = network.mask_index, network.vocab_size
        self._cache: Cache = {}
        self._read = 0

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        """Long[b,t], Float[b] -> Float[b,n,d]; it reads no `features`.

        Raises:
            ValueError: another number of rows than the prefix has.
        """
        if len(x_t) != len(self.prefix):
            raise ValueError(f"{len(x_t)} rows behind {len(self.prefix)} prefixes")
        whole, given = torch.cat([self.prefix, x_t], dim=1), self.prefix.shape[1]
        attention = prefix_mask(
            full_mask(self.network.reads(whole.shape[1]), x_t.device), torch.tensor([given], device=x_t.device)
        )
        if self._read != whole.shape[1]:
            self._cache, self._read = {}, whole.shape[1]
        window = (given, whole.shape[1]) if self._cache else None
        h = self.network.encode(whole, t, Look(window=window, cache=self._cache), None, attention)
        return look.of(h[:, -x_t.shape[1] :])

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,d] -> Float[...,v]."""
        return self.network.decode(h)

    def __call__(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """Long[b,t] -> Float[b,t,v]: log-probabilities of the clean token at every position, whatever stands there."""
        return self.decode(self.encode(x_t, torch.ones(len(x_t), device=x_t.device) if t is None else t))


@torch.no_grad()
def continued(
    model: CausalLM,
    prefix: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    end_index: int | None = None,
    visible: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Continue each row from left to right; keys and values of what was read are kept, each token is one position.

    Args:
        model: in eval mode.
        prefix: Long[b,p], padded on the left; p = 0 begins a text.
        length: tokens that are wanted.
        temperature: of the draw; 0 takes the most likely token.
        end_index: once every row has it, the rest is filled with it.
        visible: whether the model reads the prefix from both sides (prefix-LM).
        generator: source of randomness.

    Returns:
        Long[b,length], and Float[b,length] log p of each token as the model, at temperature 1, has it; 0 where it was
        filled.

    Raises:
        UserError: no token is wanted, or the prefix leaves no room for them.
    """
    given = prefix.shape[1]
    if length < 1 or given + length > model.config.length:
        raise UserError(
            f"{length} tokens behind a prefix of {given}; this model was made for length = {model.config.length}"
        )
    # What is not written yet is read by no position before it; any token that is no padding will do.
    x = torch.cat([prefix, prefix.new_full((len(prefix), length), model.mask_index)], dim=1)
    attention = causal_mask(x.shape[1], x.device)
    if visible:
        attention = prefix_mask(attention, torch.tensor([given + 1], device=x.device))
    cache: Cache = {}
    padding, log_p = PaddingOnce(x), torch.zeros(len(x), length, device=x.device)
    ended = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for place in range(given, given + length):
        window = (place, place + 1) if cache else None
        h = model.backbone(x, None, Look(window=window, cache=cache, padding=padding), attention)
        law = model.decode(h[:, 0] if window else h[:, place])
        token = drawn(law, generator, temperature)
        x[:, place], log_p[:, place - given] = token, at(law, token)
        if end_index is not None:
            ended |= token == end_index
            if ended.all():
                x[:, place + 1 :] = end_index
                break
    return x[:, given:], log_p
