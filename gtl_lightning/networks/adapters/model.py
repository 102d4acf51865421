"""What every denoiser of another library has in common: its ids, its law, its weights as they are."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from copy import copy, deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.core.guard import law, wide
from gtl_lightning.core.protocols import EVERYWHERE, Look
from gtl_lightning.errors import UserError
from gtl_lightning.files import digest
from gtl_lightning.networks.adapters.origin import ORIGIN, Origin
from gtl_lightning.networks.source import carried, weights_hash
from gtl_lightning.networks.store import Stored
from gtl_lightning.records import COUNT, Each, Shape, read_record, record
from gtl_lightning.sharing.shareable import DENOISER

READING: Shape = {
    **dict.fromkeys(("mask_index", "pad_index"), COUNT),
    **dict.fromkeys(("start_index?", "end_index?", "size?"), (int, type(None))),
    **dict.fromkeys(("shift", "sink?"), bool),
    "excluded": Each(COUNT),
}
"""A `Reading` as it is stored."""


@dataclass(frozen=True)
class Reading:
    """How the ids of a model are read.

    Attributes:
        mask_index: of the mask.
        pad_index: of the padding.
        start_index: of what stands before the first token; None where nothing does.
        excluded: ids that are never predicted, mask and padding apart: no text has them.
        shift: whether a state predicts the token after the one it stands at, as in the autoregressive model.
        end_index: of what stands behind the last token, where that is no end itself; None where nothing does.
        size: ids that there are, v; None takes all rows of the embedding, which may be more than tokens.
        sink: whether the start that is read with a shift reads itself alone, as in the autoregressive model.

    Raises:
        UserError: a shift without a start, or a sink without both.
    """

    mask_index: int
    pad_index: int
    start_index: int | None
    excluded: tuple[int, ...] = ()
    shift: bool = True
    end_index: int | None = None
    size: int | None = None
    sink: bool = False

    def __post_init__(self) -> None:
        if self.sink and not (self.shift and self.start_index is not None):
            raise UserError(
                "sink = true says that the start reads itself alone, and none is read: set shift and start_index, or "
                "sink = false"
            )
        if self.shift and self.start_index is None:
            raise UserError("shift = true, and nothing predicts the first token: set start_index, or shift = false")

    @classmethod
    def of(cls, said: object, where: Path | str) -> Self:
        """What `asdict` made of one.

        Raises:
            UserError: of another shape, a shift or a sink without a start, naming `where`.
        """
        found = record(said, where, READING)
        try:
            return cls(**{**found, "excluded": tuple(found["excluded"])})
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def check(self, rows: int, where: Path | str) -> None:
        """Refuse ids that a model of so many rows has not, one that is two things, and a law of no token.

        Raises:
            UserError: naming `where`.
        """
        never = {self.mask_index, self.pad_index, *self.excluded}
        if self.mask_index == self.pad_index or len(never) >= (self.size or rows):
            raise UserError(
                f"{where}: mask_index {self.mask_index} and pad_index {self.pad_index} are to be two ids, and "
                f"{len(never)} of {self.size or rows} are never predicted; give the ids that belong to it"
            )
        ids = (self.mask_index, self.pad_index, self.start_index or 0, self.end_index or 0, *self.excluded)
        if (highest := max(*ids, (self.size or 1) - 1)) >= rows:
            raise UserError(
                f"{where}: its tokenizer and its rows disagree: id {highest}, and {rows} rows of the embedding; give "
                "the tokenizer that belongs to it"
            )


class ModelDenoiser(Stored, nn.Module):
    """p_theta(x_0^l | x_t) of another library's model, a `protocols.Source`; a kind owes `encode` and `spec`.

    The law is docs/method.md section 5's: logits in fp32, no mass on what no text has, tokens that are no mask carried
    over. Hidden states are what the model's last projection reads, so that only wanted positions meet the vocabulary.

    Args:
        model: with its head; it is held, no copy of it.
        reading: of its ids.
    """

    part = DENOISER
    normalised = True
    may_shift = False
    """Whether a model of this kind may predict the token after the one a state stands at."""
    excluded: Tensor

    def __init__(self, model: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.model, self.reading = model, reading
        self.origin: Origin | None = None
        # Ids beyond the rows are refused where the file that says them is known (`Reading.check`).
        never = torch.tensor([reading.mask_index, reading.pad_index, *reading.excluded])
        self.register_buffer("excluded", torch.isin(torch.arange(self.vocab_size), never), persistent=False)

    @property
    @abstractmethod
    def output(self) -> nn.Linear:
        """The projection to the vocabulary."""

    @property
    def mask_index(self) -> int:
        """Id of the mask."""
        return self.reading.mask_index

    @property
    def pad_index(self) -> int:
        """Id of the padding."""
        return self.reading.pad_index

    @property
    def vocab_size(self) -> int:
        """Ids, mask and padding counted: all rows of the embedding, or as many as there are tokens."""
        return self.reading.size or len(self.output.weight)

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        return self.output.weight.shape[1]

    @property
    def output_embedding(self) -> Tensor:
        """Float[v,d], the projection's weights."""
        weight = self.output.weight
        # The weight itself where it is whole: under autocast that is cast once, a view of it at every step.
        return weight if len(weight) == self.vocab_size else weight[: self.vocab_size]

    @property
    def output_bias(self) -> Tensor | None:
        """Float[v], what is added to the projection."""
        return None if self.output.bias is None else self.output.bias[: self.vocab_size]

    @property
    @abstractmethod
    def most(self) -> int | None:
        """Tokens that a row may have; None where the positions have no end."""

    @property
    @abstractmethod
    def lora_targets(self) -> tuple[str, ...]:
        """The attention and MLP projections of every block."""

    @abstractmethod
    def encode(
        self, x_t: Tensor, t: Tensor | None = None, look: Look = EVERYWHERE, features: Tensor | None = None
    ) -> Tensor:
        """Long[b,l], Float[b] -> hidden states Float[b,n,d] where `look` wants them."""

    def logits(self, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Float[...,d] -> Float[...,v] in fp32 at least; with `tokens` Long[...] of one each, Float[...]."""
        weight, bias = self.output_embedding, self.output_bias
        if tokens is None:
            return self._projected(h, bias)
        values = (wide(h) * wide(weight[tokens])).sum(-1)
        return values if bias is None else values + wide(bias[tokens])

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,d] -> log-probabilities of the token, Float[...,v] in fp32 at least; -inf at what no text has."""
        bias = self.output_bias
        # In the bias what is excluded costs no pass over all logits.
        bias = torch.zeros_like(self.output_embedding[:, 0]) if bias is None else bias
        return law(self._projected(h, bias.masked_fill(self.excluded, -math.inf)))

    def _projected(self, h: Tensor, bias: Tensor | None) -> Tensor:
        weight = self.output_embedding
        return wide(F.linear(h.to(weight.dtype), weight, bias))

    def forward(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]; where x_t is no mask, all mass is on x_t (carried over)."""
        return carried(self.decode(self.encode(x_t, t)), x_t, self.mask_index)

    def recompute(self, wanted: bool) -> None:
        """Whether the states of blocks are computed again on the way back, which takes time, or kept, which memory."""
        model: Any = self.model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it has a new name in later versions
            if wanted:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                model.gradient_checkpointing_disable()

    def fingerprint(self) -> str:
        """Short hash of all weights, or of a model that stays where it lies of its files, and of how they are read."""
        weights = self.origin.sha256 if self.origin else weights_hash(self)
        return digest([type(self).__name__, asdict(self.reading), weights])

    def trainable_copy(self, dropout: float | None = None) -> Self:
        """A copy of which every weight trains, in training mode: fine-tuning starts from it, the original stays."""
        other = deepcopy(self).requires_grad_(True).train()
        other.origin = None  # its weights will be others
        if dropout is not None:
            layer: Any
            for layer in other.model.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = dropout
                if hasattr(layer, "attention_dropout") and not isinstance(layer.attention_dropout, nn.Module):
                    layer.attention_dropout = dropout
        return other

    @property
    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """The model's configuration, JSON-able."""

    def spec(self) -> dict[str, Any]:
        """What a checkpoint says of it: its configuration, or where it lies, and how its ids are read."""
        where = {"origin": asdict(self.origin)} if self.origin else {"model": self.sizes}
        return {**where, "reading": asdict(self.reading)}

    def write_to(self, folder: Path) -> None:
        """As `Stored.write_to`, with the weights wherever they lie: a folder that is shared needs no other."""
        whole = copy(self)
        whole.origin = None
        Stored.write_to(whole, folder)

    @classmethod
    def from_spec(cls, spec: dict[str, Any], denoiser: object = None) -> Self:
        """The reverse of `spec`: with the weights of where it lies, or with others, which are then loaded.

        Raises:
            UserError: it lies there no more, another model does, or the configuration is damaged.
        """
        reading = Reading.of(spec["reading"], "the checkpoint")
        if "origin" not in spec:
            return cls(cls.blank(spec["model"]), reading)
        origin = Origin(**record(spec["origin"], "the checkpoint", ORIGIN))
        made = cls.open(origin.folder, reading)
        made.origin = origin
        return made

    @classmethod
    def open(cls, folder: Path, reading: Reading) -> Self:
        """The denoiser of a folder, in fp32 and eval mode, on the CPU.

        Raises:
            UserError: as `read`; ids that its rows have not.
        """
        made = cls(cls.read(folder, read_record(folder / "config.json")), reading)
        reading.check(len(made.output.weight), folder)
        return made.eval()

    @classmethod
    @abstractmethod
    def blank(cls, sizes: dict[str, Any]) -> nn.Module:
        """A model of a configuration (`sizes`), its weights at random."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, config: dict[str, Any]) -> nn.Module:
        """The model of a folder, as its authors wrote it.

        Raises:
            UserError: damaged, shards missing, or of another kind than its configuration says.
        """


class _ArrivedError(Exception):
    """A pass has come to the layer that was waited for."""

    def __init__(self, h: Tensor) -> None:
        self.h = h


def before(layer: nn.Module, model: nn.Module, **given: Tensor) -> Tensor:
    """What the layer is handed in a pass of the model, which ends there: a head's last projection does not run.

    Raises:
        UserError: the pass did not come by the layer.
    """

    def stop(_: nn.Module, handed: tuple[Tensor, ...]) -> None:
        raise _ArrivedError(handed[0])

    handle = layer.register_forward_pre_hook(stop)
    try:
        model(**given)
    except _ArrivedError as arrived:
        return arrived.h
    finally:
        handle.remove()
    raise UserError(f"the head of a {type(model).__name__} is no projection of its states; give another model")


def linear(layer: object) -> nn.Linear:
    """The layer, for those who read its weights."""
    return cast(nn.Linear, layer)
