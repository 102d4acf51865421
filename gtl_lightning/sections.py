"""Parts of params.yaml that several sections are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of params.yaml: immutable, and a key it does not know is an error.

    A field whose name in params.yaml is no Python name (`gtl-head`) has that name as its alias.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)


class Network(Section):
    """Size of one transformer."""

    width: Positive = Field(description="hidden width")
    depth: Positive = Field(description="blocks")
    heads: Positive = Field(description="attention heads")
    cond_dim: int = Field(0, ge=0, description="width of the time embedding; 0: the network does not see t")
    dropout: Share = Field(0.0, description="dropout")
    tied: bool = Field(True, description="share input and output embedding")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Network:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice heads {self.heads} (rotary positions)")
        return self


class Training(Section):
    """One training run: optimiser, length, stopping."""

    steps: Positive = Field(description="most optimiser steps")
    batch: Positive = Field(description="sequences per step")
    lr: PositiveFloat = Field(description="peak learning rate of AdamW")
    also_lr: tuple[PositiveFloat, ...] = Field((), description="further peaks to try; held-out data keep the best")
    warmup: int = Field(50, ge=0, description="steps of linear warm-up; cosine decay follows")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    clip: PositiveFloat = Field(1.0, description="largest gradient norm")
    ema: Share = Field(0.0, description="decay of the weights' moving average; 0: none")
    check_every: Positive = Field(description="steps between validations; also between resumable checkpoints")
    patience: Positive = Field(description="validations without improvement before stopping")


class Lora(Section):
    """Low-rank fine-tuning (peft)."""

    rank: Positive = Field(8, description="rank of the update")
    alpha: PositiveFloat = Field(16.0, description="scale of the update")
