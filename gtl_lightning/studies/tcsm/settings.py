"""Parameters of the study of target concrete score matching, the file params.yaml beside this one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from gtl_lightning.fields import Few, Network, Positive, PositiveFloat, Section, Seed, Text, Training, no_repeats

Inside = Annotated[float, Field(strict=True, gt=0, lt=1)]
States = Annotated[int, Field(strict=True, ge=2, le=128)]
LISTED = 20_000
"""Most partly masked sequences of a listed law: each of them is weighed against all clean ones."""


class Law(Section):
    """Laws whose texts are listed one by one: every form beside its shortcuts."""

    states: States = Field(3, description="tokens V")
    length: Annotated[int, Field(strict=True, ge=2, le=9)] = Field(4, description="tokens of a text L")
    beta: PositiveFloat = Field(0.5, description="temperature of the reward and of preferences")
    betas: tuple[PositiveFloat, ...] = Field(
        (0.25, 0.5, 1.0, 2.0), min_length=1, description="temperatures of the frontier of reward against drift"
    )
    best_of: tuple[Few, ...] = Field((1, 2, 4, 8, 16), min_length=1, description="texts of which the best is kept")
    steps: Positive = Field(1500, description="steps of a training by reward")
    batch: Positive = Field(4096, description="fresh texts a step")

    @model_validator(mode="after")
    def _can_be_listed(self) -> Law:
        if (self.states + 1) ** self.length > LISTED:
            raise ValueError(
                f"states = {self.states}, length = {self.length}: more than {LISTED:,} partly masked texts; lower one"
            )
        no_repeats(self, ("betas", "best_of"))
        return self


class Chains(Section):
    """Distillation from a Markov chain, and the noise of its gradient."""

    states: States = Field(5, description="states V")
    length: Annotated[int, Field(strict=True, ge=2, le=128)] = Field(20, description="tokens of a sequence")
    diagonal: Inside = Field(0.5, description="P(stay) where examples are counted")
    diagonals: tuple[Inside, ...] = Field(
        (0.3, 0.5, 0.8), min_length=1, description="P(stay) where gradients are compared"
    )
    gradients: Annotated[int, Field(strict=True, ge=2, le=10**6)] = Field(
        100, description="batches whose gradients are compared"
    )
    held_out: Positive = Field(500, description="held-out sequences")
    network: Network = Field(Network(width=32, depth=1, heads=2, dropout=0.0, tied=False), description="the denoiser")
    training: Training = Field(
        Training(
            steps=500,
            batch=32,
            lr=5e-3,
            warmup=20,
            weight_decay=0.01,
            ema=0.95,
            check_every=20,
            patience=1000,
        ),
        description="both trainings, each example once; the learning rate stays at its peak",
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Chains:
        no_repeats(self, ("diagonals",))
        return self


class Characters(Section):
    """Objective by noise, on characters of abstracts."""

    file: Text | None = Field(
        None, description="plain text, text8 for instance, in the place of the abstracts in data/"
    )
    characters: Positive = Field(2_000_000, description="most characters that are read")
    length: Annotated[int, Field(strict=True, ge=2, le=4096)] = Field(32, description="characters of an example")
    held_out: Positive = Field(128, description="held-out examples, each under several draws of noise")
    network: Network = Field(
        Network(width=64, depth=2, heads=4, cond_dim=32, dropout=0.0, tied=False), description="every network"
    )
    training: Training = Field(
        Training(steps=300, batch=32, lr=4e-3, warmup=30, weight_decay=0.01, ema=0.98, check_every=100, patience=1000),
        description="every training, the teacher's too",
    )


class Tcsm(Section):
    """The parameters of the study of target concrete score matching (docs/tcsm.md)."""

    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, description="repetitions")
    law: Law = Law()
    chains: Chains = Chains()
    text: Characters = Characters()

    @model_validator(mode="after")
    def _one_rate(self) -> Tcsm:
        for name in ("chains", "text"):
            if getattr(self, name).training.also_lr:
                raise ValueError(
                    f"{name}.training.also_lr: trainings of this study take one learning rate; leave it empty"
                )
        no_repeats(self, ("seeds",))
        return self
