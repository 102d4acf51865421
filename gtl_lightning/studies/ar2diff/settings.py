"""Parameters of the study of AR2Diff, the file params.yaml beside this one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from gtl_lightning.fields import (
    Few,
    Natural,
    Network,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Size,
    Strength,
    Text,
    Training,
    no_repeats,
)

States = Annotated[int, Field(strict=True, ge=2, le=128)]
Prefix = Annotated[int, Field(strict=True, ge=1, le=4095)]
Diagonal = Annotated[float, Field(strict=True, ge=0, lt=1)]
Part = Annotated[float, Field(strict=True, gt=0, le=1)]

TRAININGS = (
    ("chains", "training"),
    ("chains", "final"),
    ("text", "causal"),
    ("text", "diffusion"),
    ("text", "task"),
    ("speed", "training"),
)
"""Section and name of every training."""


def _training(**values: int | float) -> Training:
    rest = {"batch": 16, "lr": 4e-3, "warmup": 10, "weight_decay": 0.01, "ema": 0.95, "patience": 1000}
    return Training(**{**rest, **values})


class Chains(Section):
    """Markov chains, where the gap to the entropy is exact."""

    states: States = Field(24, description="states V of the chain whose transition matrix is random")
    sharpness: PositiveFloat = Field(1.0, description="standard deviation of the logits of that matrix")
    length: Annotated[int, Field(strict=True, ge=2, le=128)] = Field(8, description="tokens of its sequences")
    diagonal: Diagonal = Field(0.8, description="P(stay) of the chain of five states, sequences of 20")
    steps: Positive = Field(500, description="most steps N of diffusion; every check is an N")
    held_out: Positive = Field(256, description="sequences by which the gap to the exact law is measured")
    network: Network = Field(Network(width=32, depth=2, heads=2, dropout=0.0, tied=False), description="all networks")
    training: Training = Field(
        _training(steps=300, batch=32, lr=5e-3, ema=0.98, check_every=50),
        description="the causal model's; a denoiser's is the same for N steps",
    )
    final: Training = Field(
        _training(steps=6000, batch=64, ema=0.99, check_every=1000),
        description="the causal model's continuation to the end, its rate let down: how near the entropy it comes",
    )


class Texts(Section):
    """Text: the causal model, its continuation in each way, and both tasks."""

    file: Text | None = Field(None, description="table of records in the place of the abstracts in data/")
    first: Text = Field("abstract", description="field of which text is learned, and which the first task is given")
    second: Text = Field("title", description="field that the first task wants, and the second is given")
    records: Annotated[int, Field(strict=True, ge=50, le=10**7)] = Field(2500, description="records that are read")
    vocabulary: Annotated[int, Field(strict=True, ge=128, le=2**20)] = Field(1024, description="ids of the tokenizer")
    length: Annotated[int, Field(strict=True, ge=2, le=4096)] = Field(48, description="tokens of an example")
    prefix: Prefix = Field(32, description="of them, places of what is given in a task")
    held_out: Positive = Field(96, description="examples by which a training is scored")
    tested: Positive = Field(64, description="records that a task is measured on")
    draws: Few = Field(2, description="noise levels of each held-out example")
    drawn: Annotated[int, Field(strict=True, ge=20, le=10**5)] = Field(
        192, description="texts of each system that MAUVE is measured on, beside as many held-out examples"
    )
    network: Network = Field(Network(width=64, depth=2, heads=4, dropout=0.0, tied=True), description="all networks")
    causal: Training = Field(_training(steps=150, check_every=30), description="the causal model's training")
    diffusion: Training = Field(
        _training(steps=150, check_every=30),
        description="N steps of diffusion; the rate stays at its peak, so that every check is an N",
    )
    crossed: Natural = Field(30, description="N at which shift, annealing and loss are crossed")
    anneal: Part = Field(0.5, description="share of the steps over which attention is let in, where it is annealed")
    task: Training = Field(_training(steps=40, check_every=40), description="fine-tuning on a task")

    @model_validator(mode="after")
    def _fits(self) -> Texts:
        if self.prefix >= self.length:
            raise ValueError(
                f"prefix = {self.prefix} of length = {self.length} leaves no room for a target; lower prefix"
            )
        if self.crossed > self.diffusion.steps or self.crossed % self.diffusion.check_every:
            raise ValueError(
                f"crossed = {self.crossed} must be a check of diffusion: a multiple of check_every = "
                f"{self.diffusion.check_every}, at most {self.diffusion.steps}"
            )
        if self.first == self.second:
            raise ValueError(f"first and second are both {self.first!r}; name two fields")
        return self


class Decoding(Section):
    """How a task's text is written."""

    steps: Few = Field(10, description="steps of diffusion")
    temperature: Strength = Field(0.2, description="of diffusion and of the causal model's samples")
    samples: Few = Field(4, description="of which the best is kept")


class Speed(Section):
    """Time of decoding against length, with quality beside it."""

    lengths: tuple[Size, ...] = Field((16, 32, 64, 128), min_length=1, description="tokens that are written")
    steps: tuple[Few, ...] = Field((4, 16, 64), min_length=1, description="steps of diffusion")
    batches: tuple[Few, ...] = Field((1, 16), min_length=1, description="texts written together")
    prefix: Size = Field(24, description="places of what is given")
    tested: Positive = Field(48, description="records that quality is measured on")
    repeats: Few = Field(3, description="runs of which the quickest counts")
    training: Training = Field(
        _training(steps=120, check_every=120), description="the causal model's, and again its continuation's"
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Speed:
        no_repeats(self, ("lengths", "steps", "batches"))
        return self


class AR2Diff(Section):
    """The parameters of the study of AR2Diff (docs/ar2diff-study.md)."""

    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, description="repetitions")
    chains: Chains = Chains()
    text: Texts = Texts()
    decoding: Decoding = Decoding()
    speed: Speed = Speed()

    @model_validator(mode="after")
    def _one_rate(self) -> AR2Diff:
        for part, name in TRAININGS:
            if getattr(getattr(self, part), name).also_lr:
                raise ValueError(
                    f"{part}.{name}.also_lr: trainings of this study take one learning rate; leave it empty"
                )
        no_repeats(self, ("seeds",))
        return self
