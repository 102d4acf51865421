"""Many small networks of one shape, evaluated together: their weights are stacked and the copies run as one.

Cross-validation trains the same network on several folds. Each is far too small to keep a processor busy; together they
cost little more than one. The members never mix: gradients, clipping and optimiser states are each member's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gtl_lightning.errors import UserError


class Stack(nn.Module):
    """m networks of one class and configuration as one module with stacked weights Float[m, ...].

    Weights that do not require gradients (a frozen base under LoRA) and buffers are taken from the first member and
    shared by all. Any (x_t, t) network will do that neither looks at values of its input in Python nor samples.

    Raises:
        UserError: no members.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise UserError("a stack of no networks; give at least one member")
        first = deepcopy(members[0])
        self._shape = [first]  # in a list: its own weights are none of this module's
        self.count = len(members)
        self.weights = nn.ParameterDict()
        trained = [name for name, weight in first.named_parameters() if weight.requires_grad]
        every = [dict(member.named_parameters()) for member in members]
        for name in trained:
            self.weights[_key(name)] = nn.Parameter(torch.stack([weights[name].detach() for weights in every]))
        self._trained = trained

    @property
    def config(self) -> Any:
        """Configuration of a member."""
        return self._shape[0].config

    def member(self, index: int) -> nn.Module:
        """A plain copy of one member, in eval mode, free of the stack."""
        network = deepcopy(self._shape[0])
        own = dict(network.named_parameters())
        with torch.no_grad():
            for name in self._trained:
                own[name].copy_(self.weights[_key(name)][index])
        return network.eval()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Long[k,b,l], Float[k,b] -> Float[k,b,...]: the first k members, member i on the rows of i."""
        return self.each(lambda network, x, times: network(x, times), x_t, t)

    def each(self, function: Callable[..., Tensor], *batched: Tensor) -> Tensor:
        """What a function of one network gives for each of the first k members: Float[k,...].

        Args:
            function: (network: (x_t, t) -> Tensor, its part of each of `batched`) -> Tensor, as it is written for one.
            batched: tensors with the members, k of them, on the first axis.
        """
        network = self._shape[0].train(self.training)
        shared = {name: w.detach() for name, w in network.named_parameters() if not w.requires_grad}
        shared |= dict(network.named_buffers())

        def call(weights: dict[str, Tensor], *parts: Tensor) -> Tensor:
            return function(lambda x, times: functional_call(network, weights | shared, (x, times)), *parts)

        weights = {name: self.weights[_key(name)][: len(batched[0])] for name in self._trained}
        with sdpa_kernel(SDPBackend.MATH):  # the one attention kernel that can be stacked
            return vmap(call, randomness="different")(weights, *batched)


def _key(name: str) -> str:
    """A weight's name without the dots that a ParameterDict refuses."""
    return name.replace(".", "/")
