"""What the samplers and losses expect of a network: any callable that fits will do, no base class is needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor

from gtl_lightning.errors import UserError
from gtl_lightning.guard import Role, called, tensor_of


class Denoiser(Protocol):
    """Predicts the clean token at every position (SUBS parameterisation, MDLM, arXiv 2406.07524).

    Its output is made a law by `guard.Guard.law`: logits will do, and mass on the mask is shared by the others. Three
    attributes are read where it has them:

    - `normalised`: True promises log-probabilities in fp32 at least, of sum one and -inf at the mask, that are NaN or
      infinite nowhere; they are then used to the last bit.
    - `mask_index`: its mask; a sampler that is told another one refuses.
    - `pad_index`: its padding; padded rows of a prompt are sampled as if they stood alone.
    """

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b,l,v] log-probabilities or logits; read at masked positions only."""


class RatioNetwork(Protocol):
    """log r = log q/p of a partly masked sequence; also a domain classifier's logit, target positive."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b]."""


class TokenLogRatio(Protocol):
    """log r of every sequence that is one reveal away (docs/method.md section 2.2); -inf where r is 0."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b,l,v]: entry [l, v] is log r after masked position l is set to v."""


class Planner(Protocol):
    """Scores positions; higher is revealed sooner. Scores of unmasked positions are ignored, -inf comes last."""

    def __call__(self, x_t: Tensor, /) -> Tensor:
        """Long[b,l] -> Float[b,l]."""


@runtime_checkable
class Factored(Protocol):
    """A denoiser or token ratio in two parts, so that only the positions that are needed meet the vocabulary."""

    def encode(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b,l,d] hidden states."""

    def decode(self, h: Tensor, /) -> Tensor:
        """Float[...,d] -> Float[...,v]; log-probabilities or logits of a denoiser, log r of a token ratio."""


@runtime_checkable
class Placed(Factored, Protocol):
    """A factored network that can leave out what only the hidden states of other positions need."""

    def encode_at(self, x_t: Tensor, t: Tensor, places: Tensor, /) -> Tensor:
        """`encode` at `places` Long[b,k] alone, Float[b,k,d]."""


@runtime_checkable
class Padded(Protocol):
    """A network that looks for padding in its input; on a GPU that makes the host wait."""

    def padding_of(self, x_t: Tensor, /) -> AbstractContextManager[None]:
        """Within it, inputs have padding only if Long[b,l] x_t has, and no pass looks for itself."""


Cache = list[Tensor]
"""What a pass leaves behind for later ones; every tensor has the batch in front."""


@runtime_checkable
class Windowed(Factored, Protocol):
    """A factored network that can recompute a window of positions and take the rest as an earlier pass left it."""

    def remember(self, x_t: Tensor, t: Tensor, /) -> tuple[Tensor, Cache]:
        """`encode` of all positions, Float[b,l,d], and what `recompute` needs of it."""

    def recompute(self, x_t: Tensor, t: Tensor, start: int, stop: int, cache: Cache, /) -> Tensor:
        """Float[b,stop-start,d] at the positions of the window, with which the cache is brought up to date."""


class Hidden:
    """What the networks make of one (x_t, t), each asked once, when it is first needed.

    A ratio that reads a frozen denoiser (it has the attribute `denoiser`, and `encode` takes `features`) gets that
    denoiser's hidden states where they are at hand, so that the denoiser runs once.

    Attributes:
        start: the position that the first hidden state belongs to.
    """

    start = 0

    def __init__(self, x_t: Tensor, t: Tensor) -> None:
        self.x_t, self.t = x_t, t
        self._states: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}
        self._places: Tensor | None = None
        self._placed: dict[int, Tensor] = {}
        self._vocabulary: int | str = "v"

    def only(self, places: Tensor) -> None:
        """Networks that were not asked yet will be asked at `places` Long[b,k] alone, the same from now on."""
        self._places = places

    def of(self, network: Factored) -> Tensor:
        """Hidden states, Float[b,l,d] from position `start` on, or Float[b,k,d] at the `only` places."""
        key = id(network)
        if key in self._states:
            return self._states[key]
        if key in self._placed:
            return self._placed[key]
        frozen = id(getattr(network, "denoiser", None))
        # A ratio follows the denoiser that it reads: whole features go with a whole pass.
        if self._places is not None and frozen not in self._states and isinstance(network, Placed):
            hidden = network.encode_at(self.x_t, self.t, self._places, **_features(self._placed.get(frozen)))
            self._placed[key] = tensor_of(hidden, (*self._places.shape, "d"), network, "encoder")
            return self._placed[key]
        hidden = self._encode(network, _features(self._states.get(frozen)))
        self._states[key] = tensor_of(hidden, (len(self.x_t), "l", "d"), network, "encoder")
        return self._states[key]

    def at(self, network: Denoiser | TokenLogRatio, row: Tensor, position: Tensor, role: Role = "denoiser") -> Tensor:
        """Float[m,v]: the output at m (row, position) pairs; only they meet the vocabulary if the network is Factored.

        The positions must lie within the hidden states.

        Raises:
            UserError: as `reader`.
        """
        return self.reader(network, row, position, role)(slice(None))

    def reader(
        self, network: Denoiser | TokenLogRatio, row: Tensor, position: Tensor, role: Role = "denoiser"
    ) -> Callable[[slice | Tensor], Tensor]:
        """`at`, as a function from a part of the m pairs to their rows.

        Raises:
            UserError: the network gives no tensor, one of another shape, or other tokens than the network read first.
        """
        key = id(network)
        if isinstance(network, Factored):
            hidden, decode = self.of(network), network.decode
            if key in self._placed:
                assert self._places is not None
                position = (self._places[row] == position[:, None]).int().argmax(-1)
            needed = hidden[row, position - (0 if key in self._placed else self.start)]

            def read(part: slice | Tensor) -> Tensor:
                states = needed[part]
                return self._of_tokens(decode(states), network, role, (len(states),))

            return read
        if key not in self._outputs:
            self._outputs[key] = self._of_tokens(network(self.x_t, self.t), network, role, tuple(self.x_t.shape))
        output = self._outputs[key][row, position]
        return lambda part: output[part]

    def _of_tokens(self, output: Tensor, network: object, role: Role, shape: tuple[int, ...]) -> Tensor:
        output = tensor_of(output, (*shape, "v"), network, role)
        if self._vocabulary == "v":
            self._vocabulary = output.shape[-1]
        elif output.shape[-1] != self._vocabulary:
            raise UserError(
                f"the {called(network, role)} knows {output.shape[-1]} tokens, the denoiser {self._vocabulary}; "
                "both take one vocabulary, the mask counted"
            )
        return output

    def _encode(self, network: Factored, features: dict[str, Tensor]) -> Tensor:
        return network.encode(self.x_t, self.t, **features)


def _features(known: Tensor | None) -> dict[str, Tensor]:
    return {} if known is None else {"features": known}
