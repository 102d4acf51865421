"""Parts of params.yaml that several sections are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gtl_lightning.errors import UserError

NAME, TEXT = r"^\w[\w. -]*$", r"^\S(.*\S)?$"
LARGEST_COUNT, LARGEST_SEED, STRONGEST = 10**9, 2**32 - 1, 1000
"""The seed is what every generator takes: torch's, numpy's and scikit-learn's."""

LEAST_SIMILARITY = 0.5
"""From which near-duplicates can be looked for: less would take so little of a signature that most texts meet."""

# Strict: true is no number and 5.0 no count; DVC, which reads the same file, would spell them otherwise. Every number
# has a lower and an upper bound, and so infinity and NaN lie outside.
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
Positive = Annotated[int, Field(strict=True, ge=1, le=LARGEST_COUNT)]
Natural = Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)]
Size = Annotated[int, Field(strict=True, ge=1, le=65536)]
Margin = Annotated[int, Field(strict=True, ge=0, le=65536)]
Candidates = Annotated[int, Field(strict=True, ge=1, le=2**24)]
Few = Annotated[int, Field(strict=True, ge=1, le=1024)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SEED)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, le=1e6)]
Weight = Annotated[float, Field(strict=True, ge=0, le=1e6)]
Strength = Annotated[float, Field(strict=True, ge=0, le=STRONGEST)]
Rate = Annotated[float, Field(strict=True, gt=0, le=10)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, StringConstraints(strict=True, min_length=1, pattern=TEXT)]
Name = Annotated[str, StringConstraints(strict=True, max_length=100, pattern=NAME)]
"""It enters paths, MLflow's filters and its registry, all of which give quotes, slashes and colons a meaning."""


def check_seed(seed: object) -> None:
    """Raise UserError for what is no seed."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed.__index__() <= LARGEST_SEED:
        raise UserError(f"seed = {seed!r} is no seed; give a whole number from 0 to {LARGEST_SEED}")


def no_repeats(section: BaseModel, names: Iterable[str]) -> None:
    """Raise ValueError for a list that holds a value twice."""
    for name in names:
        values: Any = getattr(section, name)
        if len(set(values)) != len(values):
            raise ValueError(f"{name} lists a value twice: {list(values)}")


class Section(BaseModel):
    """A part of params.yaml: immutable, and a key it does not know is an error.

    A field whose name in params.yaml is no Python name (`gtl-head`) has that name as its alias.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)


def set_fields(section: BaseModel) -> dict[str, Any]:
    """What a part says itself; of the rest it takes what its default says."""
    return section.model_dump(mode="json", exclude_unset=True)


class Network(Section):
    """Size of one transformer. What is not set is as in `networks.default`, which in the profile `default` is this."""

    width: Annotated[int, Field(strict=True, ge=2, le=65536)] = Field(48, description="hidden width")
    depth: Few = Field(2, description="blocks")
    heads: Few = Field(4, description="attention heads")
    cond_dim: Margin = Field(0, description="width of the time embedding; 0: the network does not see t")
    dropout: Share = Field(0.1, description="dropout")
    tied: Flag = Field(True, description="share input and output embedding")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Network:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice heads {self.heads} (rotary positions)")
        return self


class Training(Section):
    """One training run. What is not set is as in `train.default`, which in the profile `default` is this."""

    steps: Positive = Field(300, description="most optimiser steps")
    batch: Positive = Field(64, description="sequences per step")
    lr: Rate = Field(2e-3, description="peak learning rate of AdamW")
    also_lr: tuple[Rate, ...] = Field((), description="further peaks to try; held-out data keep the best")
    warmup: Natural = Field(50, description="steps of linear warm-up; cosine decay follows")
    weight_decay: Annotated[float, Field(strict=True, ge=0, le=1000)] = Field(
        0.01, description="decoupled weight decay"
    )
    clip: PositiveFloat = Field(1.0, description="largest gradient norm")
    ema: Share = Field(0.98, description="decay of the weights' moving average; 0: none")
    check_every: Positive = Field(25, description="steps between validations; also between resumable checkpoints")
    patience: Positive = Field(4, description="validations without improvement before stopping")

    @model_validator(mode="after")
    def _fits_its_steps(self) -> Training:
        for name in ("warmup", "check_every"):
            if getattr(self, name) > self.steps:
                raise ValueError(
                    f"{name} = {getattr(self, name)} exceeds steps = {self.steps}; lower it with the steps"
                )
        if len({self.lr, *self.also_lr}) != 1 + len(self.also_lr):
            raise ValueError(f"also_lr lists a value twice, or lr itself: {[self.lr, *self.also_lr]}")
        return self


CLASSIFIER = Training(steps=125, lr=1e-3, weight_decay=0.1, ema=0.0)
"""Of a domain classifier."""


class Lora(Section):
    """Low-rank fine-tuning (peft)."""

    rank: Size = Field(8, description="rank of the update")
    alpha: PositiveFloat = Field(16.0, description="scale of the update")
