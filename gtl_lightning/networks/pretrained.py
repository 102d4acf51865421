"""A pretrained decoder of another library as a denoiser: transformers' own classes, read from both sides.

Nothing of the model is changed: its configuration says `is_causal = False`, and an attention that is asked for goes in
as a mask of four dimensions, and so does a start that reads itself alone. What is written is the native class, which
transformers alone loads (docs/ar2diff.md).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch
from torch import Tensor, nn

from gtl_lightning.core.guard import law
from gtl_lightning.core.protocols import EVERYWHERE, Look, Source
from gtl_lightning.errors import UserError
from gtl_lightning.files import write_json
from gtl_lightning.networks.adapters.decoders import blank_decoder, read_decoder
from gtl_lightning.networks.adapters.model import ModelDenoiser, Reading, linear
from gtl_lightning.networks.adapters.origin import NOTE
from gtl_lightning.networks.families import LORA_TARGETS, check_length, positions, read_model
from gtl_lightning.networks.source import carried, in_parts
from gtl_lightning.networks.store import register
from gtl_lightning.papers.ar2diff import begun, causal_mask, full_mask, sink_mask
from gtl_lightning.records import read_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register
class PretrainedDenoiser(ModelDenoiser):
    """p_theta(x_0^l | x_t) of a decoder's weights, which know no t; a `protocols.Source` (docs/method.md section 4).

    With shift a start is read before the first token, and the state of a token stands where the one before it is read.
    As a sink the start reads itself alone, whatever the attention.

    Args:
        model: a causal language model of `families.FAMILIES`, with its head; it is made bidirectional, no copy of it.
        reading: of its ids.
    """

    model: PreTrainedModel
    may_shift = True

    def __init__(self, model: PreTrainedModel, reading: Reading) -> None:
        super().__init__(model, reading)
        config = model.config
        # The masks are of booleans, which transformers' `eager` attention would add to the scores, True as 1.
        model.set_attn_implementation("sdpa")
        config.is_causal = False
        config.mask_token_id, config.pad_token_id = reading.mask_index, reading.pad_index
        config.shift, config.sink = reading.shift, reading.sink

    @property
    def output(self) -> nn.Linear:
        """The head."""
        return linear(self.model.get_output_embeddings())

    @property
    def most(self) -> int:
        """Tokens that a row may have."""
        return positions(self.model.config) - self.reading.shift

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The attention and MLP projections of every block."""
        return LORA_TARGETS[self.model.config.model_type]

    def begun(self, x: Tensor) -> Tensor:
        """Long[b,l] -> Long[b,l+1]: with the start before the first token."""
        start = self.reading.start_index
        assert start is not None
        return begun(x, start, self.reading.pad_index)

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
        in no case, and does not count in the positions; a sink attends to itself alone.

        Raises:
            UserError: more tokens than the model has positions.
        """
        length = x_t.shape[1]
        check_length(length, self.model.config, self.reading.shift)
        return look.of(self._states(self.begun(x_t) if self.reading.shift else x_t, attention)[:, :length])

    def _states(self, read: Tensor, attention: Tensor | None) -> Tensor:
        """Long[b,r] -> Float[b,r,d], of all that is read."""
        valid = read != self.reading.pad_index
        padded = not valid.all()
        if self.reading.sink:
            everywhere = full_mask(read.shape[1], read.device) if attention is None else attention
            # One mask does for all rows where all begin with the start.
            attention = sink_mask(everywhere, (valid if padded else valid[:1]).int().argmax(-1))
        given: dict[str, Tensor] = {}
        if padded:
            # Pads attend to themselves: an empty softmax would be NaN.
            alone = torch.eye(read.shape[1], dtype=torch.bool, device=read.device)
            allowed = valid[:, None, :] if attention is None else valid[:, None, :] & attention
            given = {"attention_mask": (allowed | alone)[:, None]}
            given["position_ids"] = (valid.cumsum(-1) - 1).clamp(min=0)
        elif attention is not None:
            given = {"attention_mask": attention.view(-1, 1, *attention.shape[-2:])}
        h: Tensor = self.model.base_model(read, use_cache=False, **given).last_hidden_state
        return h

    def forward(self, x_t: Tensor, t: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        """Long[b,l] -> Float[b,l,v]; where x_t is no mask, all mass is on x_t (carried over)."""
        return carried(self.decode(self.encode(x_t, t, attention=attention)), x_t, self.mask_index)

    def causal_log_prob(self, x_0: Tensor, rows: int | None = None) -> Tensor:
        """Long[b,l] -> Float[b,l]: log p(x^l | x^{<l}) of the weights read causally, no id excluded; padding counts.

        What the model says of a text as an autoregressive one, over the first `rows` ids: those that it had. It reads
        a start and is shifted, as every decoder is, whatever the denoiser's states predict.

        Raises:
            UserError: more tokens, a start counted, than the model has positions.
        """
        check_length(x_0.shape[1], self.model.config, shift=True)
        read = self.begun(x_0)
        h = self._states(read, causal_mask(read.shape[1], read.device))[:, :-1]
        tokens = x_0.clamp(max=(rows or self.vocab_size) - 1)

        def at(h: Tensor, tokens: Tensor) -> Tensor:
            return law(self.logits(h)[:, :rows]).gather(-1, tokens[:, None]).squeeze(-1)

        return in_parts(at, self.vocab_size, h.flatten(0, 1), tokens.flatten()).view(x_0.shape)

    def generate(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused.

        Raises:
            UserError: always.
        """
        raise UserError(
            "generate() writes from left to right, and this model reads both sides: it would run and give nonsense; "
            "draw texts with gtl_lightning.sample(denoiser, ...)"
        )

    @property
    def sizes(self) -> dict[str, Any]:
        """The configuration, as transformers writes it."""
        said: dict[str, Any] = self.model.config.to_dict()
        return said

    @classmethod
    def blank(cls, sizes: dict[str, Any]) -> nn.Module:
        """A model of a configuration, its weights at random."""
        return blank_decoder(sizes)

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any]) -> nn.Module:
        """The model of a folder (`adapters.decoders`)."""
        return read_decoder(folder, config)

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
        reading, model = noted(folder), read_model(folder)
        reading.check(model.config.vocab_size, Path(folder) / NOTE)
        return cls(model, reading).eval()

    write_to, file = save, None  # the folder is transformers' own class

    @classmethod
    def read_from(cls, folder: Path, denoiser: Source | None = None) -> Self:
        """As `load`."""
        return cls.load(folder)


def noted(folder: Path | str) -> Reading:
    """What the note of a folder says.

    Raises:
        UserError: missing or damaged, or its mask is another than the configuration's.
    """
    note = Path(folder) / NOTE
    reading = Reading.of(read_record(note), note)
    told = read_record(Path(folder) / "config.json").get("mask_token_id")
    if told not in (None, reading.mask_index):
        raise UserError(
            f"{note} says mask_index {reading.mask_index}, config.json beside it mask_token_id {told}; bring back both "
            "as they were written"
        )
    return reading
