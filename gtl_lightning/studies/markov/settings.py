"""Parameters of the study on Markov chains, the file params.yaml beside this one.

A training states what differs from `training`, the default of all of them: `DIFFERENCES` are those of the shipped file.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from gtl_lightning.fields import (
    LARGEST_COUNT,
    Few,
    Lora,
    Natural,
    Network,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Share,
    Size,
    Strength,
    Training,
    Weight,
    no_repeats,
)

Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
Inside = Annotated[float, Field(strict=True, gt=0, lt=1)]
Sequences = Annotated[int, Field(strict=True, ge=2, le=LARGEST_COUNT)]
Matrix = tuple[tuple[Probability, ...], ...]
SUM_TOLERANCE = 1e-5
DEFAULT = Training(
    steps=400, batch=32, lr=1e-2, warmup=20, weight_decay=0.1, clip=1.0, ema=0.95, check_every=20, patience=4
)
DIFFERENCES: dict[str, dict[str, Any]] = {
    "source": {
        "steps": 700,
        "batch": 128,
        "lr": 5e-3,
        "warmup": 50,
        "weight_decay": 0.01,
        "ema": 0.98,
        "check_every": 100,
        "patience": 10,
    },
    "vanilla": {"steps": 600, "batch": 20, "lr": 5e-3, "patience": 6},
    "finetune": {"steps": 500, "batch": 20, "lr": 5e-3, "check_every": 25, "patience": 10},
    "low_rank": {"steps": 500, "batch": 20, "check_every": 25, "patience": 10},
    "token": {},
    "sequence": {},
    "classifier": {},
}


def _over(default: Training, part: Any) -> Any:
    """A training that says what differs, completed; anything else as it is, to be refused."""
    return default.model_dump(mode="json") | part if isinstance(part, dict) else part


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a file, each training whole: the default, and over it what it says itself.

    Of a training that the file does not name, `DIFFERENCES` says it.
    """
    training = _over(DEFAULT, values.get("training", {}))
    try:
        default = Training.model_validate(training)
    except ValidationError:  # refused as what it is, and not once more for each that takes it over
        default = DEFAULT
    trainings = {name: _over(default, values.get(name, own)) for name, own in DIFFERENCES.items()}
    return {**values, "training": training, **trainings}


def _shipped(name: str) -> Training:
    return Training.model_validate(_over(DEFAULT, DIFFERENCES[name]))


class LocalNetwork(Section):
    """Size of a local ratio network."""

    heads: Few = Field(4, description="averages of the revealed neighbours a position gets")
    width: Size = Field(32, description="hidden units")
    dropout: Share = Field(0.0, description="dropout")


class Overlap(Section):
    """The target moved away from the source, one diagonal at a time."""

    diagonals: tuple[Inside, ...] = Field(
        (0.2, 0.35, 0.5, 0.8, 0.95), min_length=1, description="P(stay) of the targets"
    )
    n: Sequences = Field(100, description="target sequences")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="repetitions")

    @model_validator(mode="after")
    def _no_repeats(self) -> Overlap:
        no_repeats(self, ("diagonals", "seeds"))
        return self


class Markov(Section):
    """The parameters of the study on Markov chains, where everything is known exactly (docs/markov.md)."""

    states: Annotated[int, Field(strict=True, ge=2, le=128)] = Field(5, description="states V of the chains")
    length: Annotated[int, Field(strict=True, ge=2, le=128)] = Field(20, description="tokens of a sequence")
    source_diagonal: Inside = Field(0.10, description="P(stay) in the source")
    target_diagonal: Inside = Field(0.80, description="P(stay) in the target")
    source_transition: Matrix | None = Field(None, description="any transition matrix instead of source_diagonal")
    target_transition: Matrix | None = Field(None, description="any transition matrix instead of target_diagonal")
    source_sequences: Positive = Field(10000, description="source sequences")
    sizes: tuple[Sequences, ...] = Field((20, 100, 1000), min_length=1, description="target sequences n")
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, description="repetitions")
    repeats: tuple[Seed, ...] = Field(
        tuple(range(10)), min_length=1, description="repetitions of the token-level ratio alone, for its quantiles"
    )
    parts: Annotated[int, Field(strict=True, ge=2, le=1024)] = Field(
        5, description="equal parts that the target is cut into, one held out"
    )
    held_out: Positive = Field(40, description="sequences held out in all: decides how many of the folds are trained")
    rows_scored: Positive = Field(128, description="noised held-out sequences scored per fold and check")
    gammas: tuple[Strength, ...] = Field(
        (0.7, 0.85, 1.0, 1.15, 1.3, 1.5), min_length=1, description="guidance strengths that validation chooses from"
    )
    samples: Positive = Field(4096, description="sequences generated per cell")
    kl_draws: Positive = Field(500, description="partly masked sequences in the KL of a model's conditionals")
    denoiser: Network = Field(
        Network(width=32, depth=1, heads=2, dropout=0.1, tied=False), description="the source denoiser, and its copies"
    )
    local: LocalNetwork = LocalNetwork()
    lora: Lora = Lora(rank=4, alpha=8.0)
    probe: Natural = Field(60, description="steps in which fine-tuning and LoRA train the output layer alone")
    clip: PositiveFloat = Field(30.0, description="largest |log r*| that enters a sequence-level loss")
    eta_1: Weight = Field(0.1, description="weight of the cycle loss, eq. 8")
    bce_weight: Weight = Field(0.0, description="weight of eq. 9 beside eq. 9' in the token-level loss")
    training: Training = Field(DEFAULT, description="every training, where its own line says nothing else")
    source: Training = Field(_shipped("source"), description="source denoiser")
    vanilla: Training = Field(_shipped("vanilla"), description="denoisers on the target alone")
    finetune: Training = Field(_shipped("finetune"), description="fine-tuned denoisers")
    low_rank: Training = Field(_shipped("low_rank"), description="denoisers fine-tuned at low rank")
    token: Training = Field(_shipped("token"), description="token-level ratios")
    sequence: Training = Field(_shipped("sequence"), description="sequence-level ratios")
    classifier: Training = Field(_shipped("classifier"), description="domain classifiers")
    overlap: Overlap = Overlap()

    @model_validator(mode="before")
    @classmethod
    def _trainings_are_completed(cls, values: Any) -> Any:
        return completed(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _can_be_cut(self) -> Markov:
        for n in (*self.sizes, self.overlap.n):
            if n < self.parts:
                raise ValueError(f"sizes: n = {n} target sequences cannot be cut into parts = {self.parts}; raise n")
        several = [name for name, value in self if isinstance(value, Training) and value.also_lr]
        if several:
            raise ValueError(f"{several[0]}.also_lr: trainings of this study take one learning rate; leave it empty")
        no_repeats(self, ("sizes", "seeds", "repeats", "gammas"))
        return self

    @model_validator(mode="after")
    def _chains_have_one_support(self) -> Markov:
        source, target = self._transition("source"), self._transition("target")
        for i, rows in enumerate(zip(source, target, strict=True)):
            for j, (p, q) in enumerate(zip(*rows, strict=True)):
                if (p == 0) != (q == 0):
                    raise ValueError(
                        f"transition[{i}, {j}] is {q:g} in the target and {p:g} in the source: the density ratio is "
                        "zero or infinite; give both the same support"
                    )
                if p == 0:
                    raise ValueError(
                        f"transition[{i}, {j}] is 0 in the source, and the targets of the overlap study have every "
                        "transition; give it a small probability"
                    )
        return self

    def _transition(self, name: str) -> Matrix:
        """The rows of one chain's transition matrix.

        Raises:
            ValueError: it is not square, or a row does not sum to 1.
        """
        matrix: Matrix | None = getattr(self, f"{name}_transition")
        if matrix is None:
            stay = getattr(self, f"{name}_diagonal")
            move = (1 - stay) / (self.states - 1)
            return tuple(tuple(stay if i == j else move for j in range(self.states)) for i in range(self.states))
        widths = {len(row) for row in matrix}
        if widths != {self.states} or len(matrix) != self.states:
            shape = f"{len(matrix)} rows of {' or '.join(map(str, sorted(widths)))}"
            raise ValueError(f"{name}_transition has {shape} entries; states = {self.states} asks for a square")
        for i, row in enumerate(matrix):
            if abs(sum(row) - 1) > SUM_TOLERANCE:
                raise ValueError(f"{name}_transition[{i}] sums to {sum(row):.6g}; probabilities must sum to 1")
        return matrix
