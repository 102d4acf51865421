"""`AutoModelForMaskedLM` as a denoiser: BERT, RoBERTa, ModernBERT, ESM and all others that can be read one row alone.

Such a model was trained on whole texts between two ends ([CLS], [SEP]) that are never masked. A source's texts are the
tokens between them, so the ends are put around each row here, whatever of the row is masked. A row whose last token is
the end already gets no second one: texts that are shorter than the model's length end so, and the end of a text is a
token like any other, which may be masked and is predicted (by a model that never learned to).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import EVERYWHERE, Look, PaddingOnce
from gtl_lightning.errors import UserError
from gtl_lightning.networks.adapters.model import ModelDenoiser, Reading, before, linear
from gtl_lightning.networks.adapters.weights import filled, read_weights
from gtl_lightning.networks.block import seeded
from gtl_lightning.networks.families import loading, quiet
from gtl_lightning.networks.store import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel

APART = 1e-3
"""By which logits of a model may differ from themselves, of their size, before it is another model."""


@register
class MaskedLMDenoiser(ModelDenoiser):
    """p_theta(x_0^l | x_t) of a masked language model, which knows no t (docs/method.md section 5)."""

    model: PreTrainedModel

    @property
    def output(self) -> nn.Linear:
        """The last projection of the head."""
        model: Any = self.model
        return linear(model.get_output_embeddings())

    @property
    def output_bias(self) -> Tensor | None:
        """Float[v]: the projection's own, or what the head adds behind it (ESM)."""
        if self.output.bias is not None:
            return super().output_bias
        bias = getattr(_owner(self.model, self.output), "bias", None)
        return bias[: self.vocab_size] if isinstance(bias, Tensor) else None

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """All linear layers below the head, by the last part of their names."""
        names = {name.rpartition(".")[2] for name, layer in self._body.named_modules() if isinstance(layer, nn.Linear)}
        return tuple(sorted(name for name in names if not name.isdigit()))

    @property
    def _body(self) -> nn.Module:
        model: Any = self.model
        return model.base_model

    @property
    def most(self) -> int | None:
        """Tokens that a row may have; None where the positions have no end."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        ends = (self.reading.start_index is not None) + (self.reading.end_index is not None)
        return None if positions is None else positions - ends - _first_position(self.model)

    def encode(
        self, x_t: Tensor, t: Tensor | None = None, look: Look = EVERYWHERE, features: Tensor | None = None
    ) -> Tensor:
        """Long[b,l] -> Float[b,n,d], what the last projection reads; it reads neither t nor `features`.

        Rows are read from their first token on, wherever their padding is; padding is attended to in no case.

        Raises:
            UserError: more tokens than the model has positions.
        """
        if self.most is not None and x_t.shape[1] > self.most:
            raise UserError(
                f"texts of {x_t.shape[1]} tokens and their ends do not fit this {self.model.config.model_type}; use a "
                f"length of at most {self.most}"
            )
        pad, start = self.reading.pad_index, self.reading.start_index
        _, left = (look.padding or PaddingOnce(x_t)).of(pad)
        back = None
        if left:
            order = (x_t == pad).int().argsort(dim=1, stable=True)
            x_t, back = x_t.gather(1, order), order.argsort(dim=1)
        read = framed(x_t, start, self.reading.end_index, pad)
        valid = read != pad
        given = {} if valid.all() else {"attention_mask": valid.long()}
        h = before(self.output, self.model, input_ids=read, **given)
        first = start is not None
        h = h[:, first : first + x_t.shape[1]]
        return look.of(h if back is None else h.take_along_dim(back[..., None], 1))

    @property
    def sizes(self) -> dict[str, Any]:
        """The configuration, as transformers writes it."""
        said: dict[str, Any] = self.model.config.to_dict()
        return {**said, "architectures": [type(self.model).__name__]}

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any]) -> nn.Module:
        """The model of a folder.

        Raises:
            UserError: damaged, without its head, or one that cannot be read.
        """
        settings = _settings(config, folder)
        model = filled(masked_lms()[config["model_type"]], settings, read_weights(folder), folder)
        check(model, folder)
        return model

    @classmethod
    def blank(cls, sizes: dict[str, Any]) -> nn.Module:
        """A model of a configuration, its weights at random."""
        import transformers

        with quiet(), seeded(0):
            return getattr(transformers, sizes["architectures"][0])(_settings(sizes, "its configuration"))


def framed(x_t: Tensor, start: int | None, end: int | None, pad: int) -> Tensor:
    """Long[b,l] -> Long[b,l+k]: each row between its ends; no second end behind one. Rows are padded on the right."""
    count = (x_t != pad).sum(1, keepdim=True)
    if end is not None:
        last = x_t.gather(1, (count - 1).clamp(min=0))
        behind = torch.where((last == end) & (count > 0), pad, end)
        x_t = torch.cat([x_t, torch.full_like(last, pad)], 1).scatter(1, count, behind)
    if start is not None:
        x_t = torch.cat([torch.full_like(count, start), x_t], 1)
    return x_t


def masked_lms() -> dict[str, str]:
    """`model_type` -> class, of all that transformers calls masked language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return dict(MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def check(model: Any, name: Path | str) -> None:
    """Refuse a model that is none of rows that stand alone, read by a last projection: two texts of it tell.

    Raises:
        UserError: it writes from left to right; its head is more than a projection; its states depend on padding.
    """
    config, kind = model.config, model.config.model_type
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise UserError(f"{name} is a {kind} that writes from left to right; give one that reads both sides")
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise UserError(f"{name} is a {kind}, whose head is no projection of its states; give another model")
    reading = Reading(0, config.pad_token_id or 0, None, shift=False)
    denoiser = MaskedLMDenoiser(model, reading)
    ids = torch.arange(7) % max(2, denoiser.vocab_size - 8) + min(7, denoiser.vocab_size - 8)
    row = ids[ids != reading.pad_index][None, :4]
    padded = torch.cat([row, torch.full_like(row, reading.pad_index)], 1)
    with torch.no_grad(), loading(name):
        own = model(input_ids=row).logits
        found = denoiser.logits(before(output, model, input_ids=row))
        beside = model(input_ids=padded, attention_mask=(padded != reading.pad_index).long()).logits[:, : row.shape[1]]
    for other, why in ((found, "whose head is more than a projection"), (beside, "whose states depend on padding")):
        if other.shape != own.shape or (other - own).abs().max() > APART * own.abs().max():
            raise UserError(f"{name} is a {kind}, {why}: no law of a row alone; give another model")


def _first_position(model: Any) -> int:
    """Positions that are not used: models that count from behind the padding's id (RoBERTa) lose those before."""
    for layer in model.modules():
        table = getattr(layer, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            return 0 if table.padding_idx is None else table.padding_idx + 1
    return 0


def _owner(model: nn.Module, layer: nn.Module) -> nn.Module:
    name = next(name for name, each in model.named_modules() if each is layer)
    return model.get_submodule(name.rpartition(".")[0])


def _settings(config: dict[str, Any], name: Path | str) -> Any:
    from transformers import CONFIG_MAPPING

    with loading(name), quiet():
        return CONFIG_MAPPING[config["model_type"]].from_dict({k: v for k, v in config.items() if k != "auto_map"})
