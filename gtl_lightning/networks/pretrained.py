"""A pretrained decoder of another library as a denoiser: transformers' own classes, read from both sides.

Nothing of the model is changed: its configuration says `is_causal = False`, and an attention that is asked for goes in
as a mask of four dimensions. What is written is the native class, which transformers alone loads (docs/ar2diff.md).
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.guard import law, wide
from gtl_lightning.core.protocols import EVERYWHERE, Look
from gtl_lightning.errors import UserError
from gtl_lightning.files import write_json
from gtl_lightning.networks.families import LORA_TARGETS, check_length, read_model
from gtl_lightning.networks.source import carried, in_parts, weights_hash
from gtl_lightning.papers.ar2diff import begun, causal_mask
from gtl_lightning.records import COUNT, Each, Shape, read_record
from gtl_lightning.sharing.shareable import Shareable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOTE = "denoiser.json"
"""What a folder says of a denoiser beside transformers' own files."""
SAID: Shape = {
    **dict.fromkeys(("mask_index", "pad_index", "start_index"), COUNT),
    "shift": bool,
    "excluded": Each(COUNT),
}


@dataclass(frozen=True)
class Reading:
    """How the ids of a model are read.

    Attributes:
        mask_index: of the mask.
        pad_index: of the padding.
        start_index: of what stands before the first token.
        excluded: ids that are never predicted, mask and padding apart: no text has them.
        shift: whether a state predicts the token after the one it stands at, as in the autoregressive model.
    """

    mask_index: int
    pad_index: int
    start_index: int
    excluded: tuple[int, ...] = ()
    shift: bool = True


class PretrainedDenoiser(Shareable, nn.Module):
    """p_theta(x_0^l | x_t) of a decoder's weights, which know no t; a `protocols.Source` (docs/method.md section 4).

    With shift a start is read before the first token, and the state of a token stands where the one before it is read.

    Args:
        model: a causal language model of `families.FAMILIES`, with its head; it is made bidirectional, no copy of it.
        reading: of its ids.
    """

    normalised = True
    excluded: Tensor

    def __init__(self, model: PreTrainedModel, reading: Reading) -> None:
        super().__init__()
        self.model, self.reading = model, reading
        config = model.config
        config.is_causal = False
        config.mask_token_id, config.pad_token_id = reading.mask_index, reading.pad_index
        config.shift = reading.shift
        never = torch.zeros(self.vocab_size, dtype=torch.bool)
        never[[reading.mask_index, reading.pad_index, *reading.excluded]] = True
        self.register_buffer("excluded", never, persistent=False)

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
        """Rows of the embedding, those that no token has included."""
        return len(self.output_embedding)

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        return self.output_embedding.shape[1]

    @property
    def output_embedding(self) -> Tensor:
        """Float[v,d], the projection's weights."""
        return cast(nn.Linear, self.model.get_output_embeddings()).weight

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The attention and MLP projections of every block."""
        return LORA_TARGETS[self.model.config.model_type]

    def reads(self, length: int) -> int:
        """Positions that an attention given to it is over, for a number of tokens: with shift a start too."""
        return length + self.reading.shift

    def encode(
        self,
        x_t: Tensor,
        t: Tensor | None = None,
        look: Look = EVERYWHERE,
        features: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> Tensor:
        """Long[b,l] -> hidden states Float[b,n,d] where `look` wants them; it reads neither t nor `features`.

        `attention` Bool[r,r] or Bool[b,r,r], True = attend, r = `reads(l)`: None is everywhere; padding is attended to
        in no case, and does not count in the positions.

        Raises:
            UserError: more tokens than the model has positions.
        """
        length = x_t.shape[1]
        check_length(length, self.model.config, self.reading.shift)
        pad = self.reading.pad_index
        read = begun(x_t, self.reading.start_index, pad) if self.reading.shift else x_t
        valid = read != pad
        given: dict[str, Tensor] = {}
        if not valid.all():
            # Pads attend to themselves: an empty softmax would be NaN.
            alone = torch.eye(read.shape[1], dtype=torch.bool, device=read.device)
            allowed = valid[:, None, :] if attention is None else valid[:, None, :] & attention
            given = {"attention_mask": (allowed | alone)[:, None]}
            given["position_ids"] = (valid.cumsum(-1) - 1).clamp(min=0)
        elif attention is not None:
            given = {"attention_mask": attention.view(-1, 1, *attention.shape[-2:])}
        h = self.model.base_model(read, use_cache=False, **given).last_hidden_state
        return look.of(h[:, :length])

    def logits(self, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Float[...,d] -> Float[...,v] in fp32 at least; with `tokens` Long[...] of one each, Float[...]."""
        if tokens is None:
            return wide(cast(nn.Linear, self.model.get_output_embeddings())(h))
        return (wide(h) * wide(self.output_embedding[tokens])).sum(-1)

    def decode(self, h: Tensor) -> Tensor:
        """Float[...,d] -> log-probabilities of the token, Float[...,v] in fp32 at least; -inf at what no text has."""
        return law(self.logits(h), self.excluded)

    def forward(self, x_t: Tensor, t: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        """Long[b,l] -> Float[b,l,v]; where x_t is no mask, all mass is on x_t (carried over)."""
        return carried(self.decode(self.encode(x_t, t, attention=attention)), x_t, self.mask_index)

    def causal_log_prob(self, x_0: Tensor, rows: int | None = None) -> Tensor:
        """Long[b,l] -> Float[b,l]: log p(x^l | x^{<l}) of the weights read causally, no id excluded; padding counts.

        What the model says of a text as an autoregressive one, over the first `rows` ids: those that it had.
        """
        h = self.encode(x_0, attention=causal_mask(self.reads(x_0.shape[1]), x_0.device))
        tokens = x_0.clamp(max=(rows or self.vocab_size) - 1)

        def at(h: Tensor, tokens: Tensor) -> Tensor:
            return law(self.logits(h)[:, :rows]).gather(-1, tokens[:, None]).squeeze(-1)

        return in_parts(at, self.vocab_size, h.flatten(0, 1), tokens.flatten()).view(x_0.shape)

    def recompute(self, wanted: bool) -> None:
        """Whether the states of blocks are computed again on the way back, which takes time, or kept, which memory."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it has a new name in later versions
            if wanted:
                self.model.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                self.model.gradient_checkpointing_disable()

    def generate(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused.

        Raises:
            UserError: always.
        """
        raise UserError(
            "generate() writes from left to right, and this model reads both sides: it would run and give nonsense; "
            "draw texts with gtl_lightning.sample(denoiser, ...)"
        )

    def fingerprint(self) -> str:
        """Short hash of all weights."""
        return weights_hash(self)

    def trainable_copy(self, dropout: float | None = None) -> Self:
        """A copy of which every weight trains: fine-tuning starts from it and leaves the original as it is."""
        copy = deepcopy(self).requires_grad_(True)
        if dropout is not None:
            layer: Any
            for layer in copy.model.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = dropout
                if hasattr(layer, "attention_dropout") and not isinstance(layer.attention_dropout, nn.Module):
                    layer.attention_dropout = dropout
        return copy

    def save(self, folder: Path | str) -> None:
        """Write weights (safetensors) and configuration as transformers does, and `NOTE`; the folder is there.

        Raises:
            OSError: it cannot be written.
        """
        self.model.save_pretrained(folder)
        write_json(Path(folder) / NOTE, asdict(self.reading))

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """What `save` wrote, on the CPU and in eval mode.

        Raises:
            UserError: missing or damaged, another kind of model, or ids that it has not.
        """
        said = read_record(Path(folder) / NOTE, SAID)
        model = read_model(folder)
        reading = Reading(**{**said, "excluded": tuple(said["excluded"])})
        rows = model.config.vocab_size
        if max(reading.mask_index, reading.pad_index, reading.start_index, *reading.excluded) >= rows:
            raise UserError(f"{Path(folder) / NOTE} names ids that the model's {rows} rows have not; convert it again")
        return cls(model, reading).eval()

    write_to, read_from, file = save, load, None  # the folder is transformers' own class
