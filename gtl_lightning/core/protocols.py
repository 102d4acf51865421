"""What the samplers and losses expect of a network: any callable that fits will do, no base class is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from gtl_lightning.core.callables import called, second_input, taking
from gtl_lightning.core.guard import Role, tensor_of
from gtl_lightning.errors import UserError


class Denoiser(Protocol):
    """Predicts the clean token at every position (SUBS parameterisation, MDLM, arXiv 2406.07524).

    Its output is made a law by `guard.Guard.law`: logits will do, and mass on the mask is shared by the others. Rows
    come to it in an order of their own, and those without a mask not at all. Four attributes are read where it has
    them:

    - `normalised`: True promises log-probabilities in fp32 at least, of sum one and -inf at the mask, that are NaN or
      infinite nowhere; they are then used to the last bit.
    - `mask_index`: its mask; a sampler that is told another one refuses.
    - `pad_index`: its padding; padded rows of a prompt are sampled as if they stood alone.
    - `fixed_rows`: True says that it holds something for each row, a prefix or a label; a prompt whose rows would come
      in another order is then refused.
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


Cache = dict[object, list[Tensor]]
"""What passes leave behind for later ones, by the module that left it; every tensor has the batch in front."""


class PaddingOnce:
    """Where a run of inputs is padded, looked up once an id: on a GPU every look makes the host wait.

    Args:
        x_t: Long[b,l]; the inputs of the run have padding only if it has, and begin with it only if it does.
    """

    def __init__(self, x_t: Tensor) -> None:
        self._x_t = x_t
        self._found: dict[int, tuple[bool, bool]] = {}

    def of(self, pad_index: int) -> tuple[bool, bool]:
        """Whether the id occurs, and whether a row may begin with it."""
        if pad_index not in self._found:
            pads = self._x_t == pad_index
            padded, left = torch.stack([pads.any(), pads[:, :1].any()]).tolist()
            self._found[pad_index] = padded, left
        return self._found[pad_index]


@dataclass(frozen=True, eq=False)
class Look:
    """Which positions a network is asked for: all of them, or single places, or a window with the rest as kept.

    Attributes:
        places: Long[b,k], the positions wanted of each row.
        window: first position wanted, and the one after the last; what was kept in the cache is read elsewhere.
        cache: a pass over everything leaves in it what a window's needs; a window's brings it up to date. Rows may have
            left at the end of the batch in between.
        padding: None lets every pass look for itself.

    Raises:
        ValueError: a window without a cache, or places with one.
    """

    places: Tensor | None = None
    window: tuple[int, int] | None = None
    cache: Cache | None = None
    padding: PaddingOnce | None = None

    def __post_init__(self) -> None:
        if (self.window is not None and self.cache is None) or (self.places is not None and self.cache is not None):
            raise ValueError("a window takes the rest from a cache; single places leave none and read none")

    @property
    def everywhere(self) -> Look:
        """All positions, of inputs padded alike."""
        return Look(padding=self.padding)

    def of(self, whole: Tensor) -> Tensor:
        """What is wanted of Float[b,l,d]: all that a network owes which can only pass over everything."""
        if self.places is not None:
            return whole.take_along_dim(self.places[..., None], 1)
        return whole if self.window is None else whole[:, slice(*self.window)]

    def slots(self, row: Tensor, position: Tensor) -> Tensor:
        """Long[m]: where, in what is wanted, m (row, position) pairs lie; they must be among it."""
        if self.places is not None:
            return (self.places[row] == position[:, None]).int().argmax(-1)
        return position if self.window is None else position - self.window[0]

    def shape(self, x_t: Tensor) -> tuple[int | str, ...]:
        """Of what is wanted, in words where any size will do."""
        if self.places is not None:
            return (*self.places.shape, "d")
        return len(x_t), "l" if self.window is None else self.window[1] - self.window[0], "d"


EVERYWHERE = Look()
GATHERED = 1 << 22
"""Numbers at most that are gathered at a time to score candidates alone: 16 MB in fp32."""
FEW = 128
"""In a vocabulary so many times their number, candidates are scored alone: above it a projection to all is faster."""


@runtime_checkable
class Encoder(Protocol):
    """A denoiser or token ratio in two parts, so that only the positions that are needed meet the vocabulary."""

    def encode(self, x_t: Tensor, t: Tensor, look: Look, features: Tensor | None, /) -> Tensor:
        """(Long[b,l], Float[b]) -> Float[b,n,d], hidden states at the n positions that `look` wants.

        One that can only pass over everything gives `look.of` that. A ratio that reads a frozen denoiser (it has the
        attribute `denoiser`) gets as `features` what that denoiser gave for the same look, where it is at hand.
        """

    def decode(self, h: Tensor, /) -> Tensor:
        """Float[...,d] -> Float[...,v]; log-probabilities or logits of a denoiser, log r of a token ratio.

        A token ratio may have two shorter ways, which samplers take where they serve:

        - `decode_at(h, tokens)`, Float[m,1,d], Long[m,n] -> Float[m,n]: `decode` at some tokens of `vocab_size` alone;
        - `tilted(h, gamma)`, Float[m,d], Float[m,1] -> (Float[m,e], Float[v]): the states, of the `denoiser` that it
          reads, and the bias for which decode(states) + gamma bias is log p + gamma log r, up to a number a row.
        """


@runtime_checkable
class Source(Encoder, Denoiser, Protocol):
    """A trained denoiser that methods copy, adapt or guide: one of `networks`, or anyone's that has these.

    Shapes: b sequences of l tokens, v ids, hidden states of size d. What trains or reads one takes it for an
    `nn.Module` besides: it has weights, a mode and a device. A `pad_index`, where it has one, is never noised.
    """

    @property
    def vocab_size(self) -> int:
        """v: ids, mask and padding counted."""

    @property
    def mask_index(self) -> int:
        """Id of the mask."""

    @property
    def width(self) -> int:
        """d: size of what `encode` gives at a position."""

    @property
    def output_embedding(self) -> Tensor:
        """Float[v,d] W of the last layer: logits(h + e) = logits(h) + W e."""

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the linear layers that low-rank updates go to, as peft's `target_modules` has them."""

    def logits(self, h: Tensor, tokens: Tensor | None = None, /) -> Tensor:
        """Float[...,d] -> Float[...,v] in fp32, nothing excluded; with `tokens` Long[...] theirs alone, Float[...]."""

    def fingerprint(self) -> str:
        """Says which source this is: a hash of its weights and of how they are read. Ratios are kept with it."""

    def trainable_copy(self, dropout: float | None = None) -> Self:
        """A copy whose every weight trains and shares nothing with the original; None keeps the dropout."""


def check_denoiser(denoiser: object) -> None:
    """Raise UserError for what can neither be called nor encodes."""
    if not callable(denoiser) and not isinstance(denoiser, Encoder):
        raise UserError(f"the denoiser is a {type(denoiser).__name__}; give a function of (x_t, t)")
    if second_input(denoiser) == "attention_mask":  # the time would be read as one, in silence by some models
        raise UserError(
            f"the {called(denoiser, 'denoiser')} takes an attention mask where a denoiser takes the time; open it with "
            "load_denoiser(...), or give lambda x_t, t: model(x_t)"
        )


class Attending(Source, Protocol):
    """A source that reads by an attention that it is given, as this project's denoisers do."""

    def reads(self, length: int, /) -> int:
        """r, the positions that it passes over for a number of tokens: one more where it reads a start."""

    def encode(
        self, x_t: Tensor, t: Tensor, look: Look, features: Tensor | None, attention: Tensor | None = None, /
    ) -> Tensor:
        """As `Encoder` has it; `attention` Bool[r,r] or Bool[b,r,r], True = attend, None everywhere."""


def call(network: Callable[..., Tensor], look: Look, *inputs: Tensor) -> Tensor:
    """A plain call, everywhere; a network that has `takes_look = True` is told how the inputs are padded."""
    takes_look = getattr(network, "takes_look", False) is True
    return untouched(network, *inputs, **({"look": look.everywhere} if takes_look else {}))


def untouched(network: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> Tensor:
    """A call that leaves its inputs, which are the sampler's own, as they were.

    Raises:
        UserError: the network takes other arguments, or wrote into one of them.
    """
    before = [_writes(value) for value in inputs]
    with taking(network, *inputs, **options):
        output = network(*inputs, **options)
    if before != [_writes(value) for value in inputs]:
        raise UserError(f"the {called(network, 'callable')} writes into the tensors that it is given; let it copy them")
    return output


def _writes(value: Tensor) -> int:
    """How often a tensor was written into; torch does not count those of inference mode."""
    return -1 if value.is_inference() else value._version


class Hidden:
    """What the networks make of one (x_t, t), each asked once, when it is first needed; plain callables everywhere."""

    def __init__(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE) -> None:
        self.x_t, self.t, self.look = x_t, t, look
        self._states: dict[int, tuple[Look, Tensor]] = {}
        self._outputs: dict[int, Tensor] = {}
        self._vocabulary: int | str = "v"
        self._slots: tuple[Tensor, Tensor, Look, Tensor] | None = None
        self.kept: tuple[Tensor, Tensor] | None = None
        """Long[b,l], rows of Float[m,v]: the denoiser's law where it was asked for and will be asked for again."""

    def only(self, places: Tensor) -> None:
        """Networks not asked yet will be asked at `places` Long[b,k] alone, unless later steps read a cache."""
        if self.look.cache is None:
            self.look = replace(self.look, places=places)

    def of(self, network: Encoder) -> tuple[Look, Tensor]:
        """Hidden states Float[b,n,d], and the look that they were asked with."""
        key = id(network)
        if key not in self._states:
            # A ratio follows the denoiser that it reads: whole features go with a whole pass.
            look, features = self._states.get(id(getattr(network, "denoiser", None)), (self.look, None))
            hidden = network.encode(self.x_t, self.t, look, features)
            self._states[key] = look, tensor_of(hidden, look.shape(self.x_t), network, "encoder")
        return self._states[key]

    def states(self, network: Encoder, row: Tensor, position: Tensor) -> Tensor:
        """Float[m,d]: hidden states at m (row, position) pairs, which must be among those that the look wants."""
        look, hidden = self.of(network)
        known = self._slots
        if known is None or known[0] is not row or known[1] is not position or known[2] is not look:
            known = self._slots = row, position, look, look.slots(row, position)
        return hidden[row, known[3]]

    def decoded(self, network: Encoder, states: Tensor, role: Role = "denoiser") -> Tensor:
        """Float[m,d] -> Float[m,v]."""
        return self._of_tokens(network.decode(states), network, role, (len(states),))

    def at(self, network: Denoiser | TokenLogRatio, row: Tensor, position: Tensor, role: Role = "denoiser") -> Tensor:
        """Float[m,v]: the output at m (row, position) pairs; of an Encoder, only they meet the vocabulary.

        The positions must be among those that the look wants.

        Raises:
            UserError: as `reader`.
        """
        return self.reader(network, row, position, role)(slice(None))

    def at_tokens(
        self, network: Denoiser | TokenLogRatio, row: Tensor, position: Tensor, tokens: Tensor, role: Role
    ) -> Tensor:
        """Float[m,n]: `at`, of the tokens Long[m,n] alone; few of one vocabulary are computed alone.

        Raises:
            UserError: as `reader`.
        """
        (m, n), v = tokens.shape, getattr(network, "vocab_size", None)
        decode_at = getattr(network, "decode_at", None)
        few = v == self._vocabulary and isinstance(v, int) and n * FEW <= v
        if not (few and isinstance(network, Encoder) and callable(decode_at)):
            return self.at(network, row, position, role).gather(-1, tokens)
        states = self.states(network, row, position)[:, None]
        size = max(1, GATHERED // (n * states.shape[-1]))
        parts = zip(states.split(size), tokens.split(size), strict=True)
        return tensor_of(torch.cat([decode_at(*part) for part in parts]), (m, n), network, role)

    def reader(
        self, network: Denoiser | TokenLogRatio, row: Tensor, position: Tensor, role: Role = "denoiser"
    ) -> Callable[[slice | Tensor], Tensor]:
        """`at`, as a function from a part of the m pairs to their rows.

        Raises:
            UserError: the network gives no tensor, one of another shape, or other tokens than the network read first.
        """
        key = id(network)
        if isinstance(network, Encoder):
            needed, encoder = self.states(network, row, position), network
            return lambda part: self.decoded(encoder, needed[part], role)
        if key not in self._outputs:
            self._outputs[key] = self._of_tokens(
                untouched(network, self.x_t, self.t), network, role, tuple(self.x_t.shape)
            )
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
