"""The sections of params.yaml with their defaults: the profile `default` (a study's own stand with it)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, StringConstraints, create_model, model_validator

from gtl_lightning.fields import (
    CLASSIFIER,
    LARGEST_COUNT,
    LEAST_SIMILARITY,
    Candidates,
    Few,
    Flag,
    Margin,
    Name,
    Network,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Share,
    Size,
    Strength,
    Text,
    Training,
    no_repeats,
)
from gtl_lightning.methods import FINETUNED, METHODS, ROLLS
from gtl_lightning.sources import SOURCES
from gtl_lightning.sources.kind import NoSettings

Fraction = Annotated[float, BeforeValidator(lambda value: _with_a_point(value)), Field(strict=True, ge=1e-12, le=1)]
ARCHIVE, ADDRESS = r"^[^\s.]+$", r"^[A-Za-z][A-Za-z0-9+.-]*://\S+$"
Archive = Annotated[str, StringConstraints(strict=True, pattern=ARCHIVE)]
Address = Annotated[str, StringConstraints(strict=True, pattern=ADDRESS)]
Vocabulary = Annotated[int, Field(strict=True, ge=8, le=2**24)]
Length = Annotated[int, Field(strict=True, ge=2, le=65536)]
Similarity = Annotated[float, Field(strict=True, ge=LEAST_SIMILARITY, le=1)]
Above0 = Annotated[float, Field(strict=True, gt=0, le=1)]
Schedule = Literal["loglinear", "polynomial", "cosine", "geometric"]


class Data(Section):
    """Which records form the two domains and how they are split."""

    source: tuple[Archive, ...] = Field(
        ("cs", "math"), min_length=1, description="archives of the primary category that form the source"
    )
    target: tuple[Archive, ...] = Field(("physics",), min_length=1, description="archives that form the target")
    source_val: Share = Field(0.05, description="share of the source for early stopping and the advisor")
    source_judge: Share = Field(0.10, description="share of the source that only the judge sees")
    target_val: Share = Field(0.10, description="share of the target for selecting checkpoints and gamma")
    target_test: Share = Field(0.15, description="share of the target read once, by the final evaluation")
    target_judge: Share = Field(0.15, description="share of the target that only the judge and the reference model see")
    target_share_in_source: Share = Field(
        0.0, description="target records mixed into the source training data (paper: r)"
    )
    near_duplicate: Similarity = Field(0.8, description="Jaccard similarity from which texts are duplicates")
    max_bad_share: Share = Field(0.01, description="share of damaged records above which the split stops")
    min_examples: Positive = Field(16, description="fewest target examples a fraction may leave")
    max_source: Positive | None = Field(None, description="cap on source records; mixed ones come on top (null: all)")
    max_target: Positive | None = Field(None, description="cap on target records, mixed ones among them (null: all)")
    seed: Seed = Field(0, description="key of the hash that orders and splits the records")

    @model_validator(mode="after")
    def _domains_and_shares_leave_something(self) -> Data:
        no_repeats(self, ("source", "target"))
        if both := sorted({*self.source} & {*self.target}):
            raise ValueError(f"archive {both[0]!r} is in both source and target; the domains must not overlap")
        for parts in (("source_val", "source_judge"), ("target_val", "target_test", "target_judge")):
            shares = {name: getattr(self, name) for name in parts}
            if sum(shares.values()) >= 1:
                text = ", ".join(f"{name} = {share:g}" for name, share in shares.items())
                raise ValueError(f"{text} leave nothing to train on; lower one of them")
        for name in ("max_source", "max_target"):
            cap = getattr(self, name)
            if cap is not None and cap < self.min_examples:
                raise ValueError(f"{name} = {cap} is below min_examples = {self.min_examples}; raise it")
        return self


class Tokenizer(Section):
    """Text to tokens."""

    name: Text | None = Field(None, description="Hugging Face name or folder; null trains one on the source split")
    vocab_size: Vocabulary = Field(512, description="ids of the trained tokenizer, specials included")
    length: Length = Field(32, description="tokens per example; longer texts are cut")


class SourceSettings(Section):
    """How the source denoiser comes about, which everything later takes as it is; a kind's own knobs stand beside."""

    kind: Literal[tuple(SOURCES)] = Field("nelbo", description=f"one of {', '.join(SOURCES)}")  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _what_the_kind_needs_is_said(self) -> SourceSettings:
        for name in SOURCES[self.kind].needs:
            if getattr(self.own, name) is None:
                raise ValueError(f"kind = {self.kind} names no model ({name} is null); choose one: gtl source import")
        return self

    @property
    def own(self) -> Section:
        """The settings of the kind that is chosen."""
        return getattr(self, _field(self.kind), NoSettings())


class Networks(Section):
    """Sizes of networks: a default, and what differs from it; a method's own network stands with the method."""

    default: Network = Field(Network(), description="what every network has that says nothing else")
    denoiser: Network = Field(Network(width=96, depth=3, dropout=0.0), description="source denoiser, and its copies")
    classifier: Network = Field(Network(), description="domain classifiers")
    planner: Network = Field(Network(dropout=0.0), description="learned reveal order")
    reference: Network = Field(Network(width=64), description="reference model")


class Train(Section):
    """Trainings: a default, and what differs from it; a method's own stands with the method."""

    val_examples: Positive = Field(128, description="held-out examples that every training scores itself on, at most")
    default: Training = Field(Training(), description="what every training has that says nothing else")
    source: Training = Field(
        Training(steps=1400, warmup=100, ema=0.995, check_every=200), description="source denoiser"
    )
    causal: Training = Field(
        Training(steps=1400, warmup=100, ema=0.995, check_every=200),
        description="causal model of the source domain, where source.kind reads one",
    )
    planner: Training = Field(
        Training(steps=200, lr=1e-3, ema=0.0, check_every=50, patience=3), description="learned reveal order"
    )
    reference: Training = Field(Training(ema=0.0, check_every=50, patience=2), description="reference model")
    classifier: Training = Field(CLASSIFIER, description="domain classifiers")


class Classifier(Section):
    """The domain classifiers, whose log-ratio sequence-level ratios and borrowing read (docs/method.md 2.1)."""

    label_smoothing: Annotated[float, Field(strict=True, ge=0, lt=0.5)] = Field(
        0.0, description="smoothing of the clean classifier's labels (paper: 0.1)"
    )
    unsmooth: Flag = Field(True, description="undo the smoothing when the logit is read as a log-ratio")


class OwnSettings(Section):
    """What is trained for every cell, each method with what differs from its own file."""

    def of(self, method: str) -> Any:
        """The settings of a method, of the type that its own file gives them."""
        return getattr(self, _field(method))


def _field(method: str) -> str:
    return method.replace("-", "_")


if TYPE_CHECKING:
    Methods: TypeAlias = OwnSettings
    Source: TypeAlias = SourceSettings
    Baseline: TypeAlias = str
    WithClassifier: TypeAlias = str
    RatioMethod: TypeAlias = str
    TunedRatio: TypeAlias = str
else:
    Methods = create_model(
        "Methods",
        __base__=OwnSettings,
        __doc__=OwnSettings.__doc__,
        **{
            _field(name): (type(method.settings), Field(method.settings, alias=name if "-" in name else None))
            for name, method in METHODS.items()
        },
    )
    Source = create_model(
        "Source",
        __base__=SourceSettings,
        __doc__=SourceSettings.__doc__,
        **{
            _field(name): (type(kind.settings), Field(kind.settings, alias=name if "-" in name else None))
            for name, kind in SOURCES.items()
            if type(kind.settings).model_fields
        },
    )
    Baseline, WithClassifier, RatioMethod, TunedRatio = (Literal[listed] for listed in ROLLS.values())


class Sampling(Section):
    """The sampler (docs/method.md 2.4)."""

    planner: Literal["learned", "random", "confidence", "margin", "entropy"] = Field(
        "random", description="reveal order"
    )
    planner_temperature: PositiveFloat = Field(1.0, description="temperature of the learned planner's choice")
    positions_per_step: Size = Field(1, description="positions revealed per step (k)")
    block: Size | None = Field(
        None, description="reveal in blocks of so many positions, the rest kept as it was; null: no reuse"
    )
    block_margin: Margin = Field(0, description="positions around the block that are computed anew with it")
    temperature: Strength = Field(1.0, description="of the revealed tokens; 0 takes the most likely")
    also_temperatures: tuple[Strength, ...] = Field(
        (), description="further temperatures; held-out texts choose, by energy distance"
    )
    top_p: Above0 = Field(1.0, description="nucleus")
    gammas: tuple[Strength, ...] = Field(
        (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5),
        min_length=1,
        description="guidance strengths that the held-out NELBO chooses from",
    )
    sample_gammas: tuple[Strength, ...] = Field(
        (), description="strengths of samples, chosen by energy distance to held-out texts; none: the NELBO's"
    )
    gamma_end: Strength = Field(
        1.0, description="gamma with all revealed over gamma with nothing revealed, linear between; 1: constant"
    )
    length_spread: Margin = Field(
        0, description="tokens by which lengths in one batch may differ, where the denoiser knows its padding"
    )
    n_ratio: Candidates | None = Field(None, description="tokens the ratio scores at a position; null: all")
    n_ratio_sequence: Candidates = Field(16, description="the same for sequence-level ratios, one forward pass each")

    @model_validator(mode="after")
    def _no_repeats(self) -> Sampling:
        no_repeats(self, ("also_temperatures", "gammas", "sample_gammas"))
        if self.temperature in self.also_temperatures:
            raise ValueError(f"also_temperatures lists temperature = {self.temperature} itself; leave it out there")
        return self


class Evaluation(Section):
    """What is measured and how."""

    samples: Annotated[int, Field(strict=True, ge=20, le=LARGEST_COUNT)] = Field(
        256, description="sequences generated per cell"
    )
    trial_samples: Annotated[int, Field(strict=True, ge=2, le=LARGEST_COUNT)] = Field(
        128, description="sequences for each temperature and strength that is tried"
    )
    draws: Positive = Field(4, description="mask patterns per held-out sequence in the NELBO")
    val_examples: Positive = Field(512, description="held-out target texts that gamma is chosen on, at most")
    batch: Positive = Field(64, description="sequences per forward pass")
    featurizer: Text = Field(
        "minilm", description="MAUVE features: minilm (offline, pinned), or any model name or folder"
    )
    neighbours: Positive = Field(
        1000, description="training texts searched for the nearest neighbour of a sample, at most"
    )
    mauve_buckets: Annotated[int, Field(strict=True, ge=2, le=65536)] = Field(
        16, description="k-means buckets of MAUVE"
    )
    mauve_seeds: Few = Field(5, description="k-means seeds averaged")

    @model_validator(mode="after")
    def _buckets_hold_texts(self) -> Evaluation:
        if self.mauve_buckets > self.samples:
            raise ValueError(
                f"mauve_buckets = {self.mauve_buckets} exceeds samples = {self.samples}; lower it: a tenth is usual"
            )
        return self


class Ablation(Section):
    """Resampling from trained ratios; nothing is trained."""

    fraction: Fraction = Field(0.05, description="the cell whose ratio is resampled (first seed)")
    method: RatioMethod = Field("gtl", description="the ratio that is resampled")
    gammas: tuple[Strength, ...] = Field((0.0, 0.5, 1.0, 1.5, 2.0), min_length=1, description="gamma axis")
    n_ratios: tuple[Candidates, ...] = Field((4, 16, 64), description="n_ratio axis")

    @model_validator(mode="after")
    def _no_repeats(self) -> Ablation:
        no_repeats(self, ("gammas", "n_ratios"))
        return self


class Sweep(Section):
    """The grid, read by dvc.yaml's matrix and by the flows."""

    fractions: tuple[Fraction, ...] = Field(
        (1.0, 0.3, 0.05, 0.01), min_length=1, description="shares of the target training data"
    )
    seeds: tuple[Seed, ...] = Field(
        (0,), min_length=1, description="repetitions; three or more wherever results are claimed"
    )
    repeats: tuple[Few, ...] = Field(
        (), description="how many of seeds, the first ones, at each of fractions; none: all of them everywhere"
    )
    baselines: tuple[Baseline, ...] = Field(("vanilla", "finetune", "lora"), description="denoisers trained per cell")
    with_classifier: tuple[WithClassifier, ...] = Field(
        (), description="denoisers whose training reads the cell's classifier too"
    )
    ratios: tuple[RatioMethod, ...] = Field(("gtl", "gtl-warm"), description="ratio networks trained per cell")
    tuned_ratios: tuple[TunedRatio, ...] = Field(
        (), description="ratio networks that guide the cell's fine-tuned denoiser; they need finetune in baselines"
    )

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method of the grid."""
        return tuple(name for roll in ROLLS for name in getattr(self, roll))

    @property
    def points(self) -> tuple[tuple[float, int], ...]:
        """(share, seed) of every cell of a method."""
        counts = self.repeats or (len(self.seeds),) * len(self.fractions)
        return tuple(
            (share, seed) for share, count in zip(self.fractions, counts, strict=True) for seed in self.seeds[:count]
        )

    @model_validator(mode="after")
    def _repeats_are_of_the_grid(self) -> Sweep:
        if self.repeats and len(self.repeats) != len(self.fractions):
            raise ValueError(
                f"repeats has {len(self.repeats)} numbers for {len(self.fractions)} fractions; give one for each"
            )
        if self.repeats and max(self.repeats) > len(self.seeds):
            raise ValueError(f"repeats asks for {max(self.repeats)} of {len(self.seeds)} seeds; add seeds, or lower it")
        return self

    @model_validator(mode="after")
    def _shares_are_short(self) -> Sweep:
        for share in self.fractions:
            if round(share, 12) != share:  # by which tables know it, and folders by all of its digits
                raise ValueError(f"fractions has {share!r}; give at most 12 decimals, as {round(share, 12):g}")
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> Sweep:
        no_repeats(self, ("fractions", "seeds", *ROLLS))
        return self

    @model_validator(mode="after")
    def _what_is_guided_is_trained(self) -> Sweep:
        if self.tuned_ratios and FINETUNED not in self.baselines:
            raise ValueError(f"tuned_ratios guide what {FINETUNED} trains, which is none of baselines; add it there")
        return self


class Bench(Section):
    """Benchmarks, `gtl bench`: networks of the sizes above with random weights; nothing is read or trained."""

    vocab_size: Vocabulary | None = Field(None, description="ids; null: tokenizer.vocab_size")
    batches: tuple[Positive, ...] = Field(
        (1, 4, 64), min_length=1, description="sequences sampled together; the pipeline takes `evaluation.batch`"
    )
    lengths: tuple[Length, ...] = Field(
        (32, 64, 128), min_length=1, description="tokens; tokenizer.length stands in all other rows"
    )
    n_ratios: tuple[Candidates, ...] = Field(
        (8, 64, 512), min_length=1, description="tokens the ratio scores; the last stands in all other rows"
    )
    positions_per_step: tuple[Size, ...] = Field((1, 2, 8), min_length=1, description="k; 1 in all other rows")
    blocks: tuple[Size, ...] = Field((8, 16), description="block sizes of block-wise decoding")
    candidates: Candidates = Field(8, description="n_ratio of the sequence-level ratio and of the plain reference")
    steps: Positive = Field(4, description="steps in a timed call")
    rounds: Positive = Field(7, description="timed calls of each case")
    seconds: PositiveFloat = Field(10.0, description="time for a group of cases after which its rounds end early")
    train_batch: Positive = Field(64, description="sequences in a training step")
    matrix: Size = Field(1024, description="rows of the matrix product that shares are taken of")

    @model_validator(mode="after")
    def _no_repeats(self) -> Bench:
        no_repeats(self, ("batches", "lengths", "n_ratios", "positions_per_step", "blocks"))
        return self


class Machine(Section):
    """Where it runs; beyond rounding, only the parts of a batch (devices, accumulate) change what is computed."""

    threads: Few | None = Field(1, description="processor threads of a command; null: as many as there are cores")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="Lightning's accelerator")
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field("auto", description="auto: bf16 where it pays")
    sampling_precision: Literal["32-true", "bf16-mixed"] = Field(
        "32-true", description="of the networks' products while sampling; laws are fp32 in either"
    )
    devices: Few = Field(1, description="processes, one a GPU, that share each training batch (DDP)")
    accumulate: Size = Field(1, description="parts of its share that each process computes one after another")


class Tracking(Section):
    """MLflow."""

    uri: Address = Field(
        "sqlite:///mlflow.db", description="tracking server or database; MLFLOW_TRACKING_URI wins over it"
    )
    experiment: Name = Field("gtl-transfer", description="experiment name")


def _with_a_point(value: Any) -> Any:
    # DVC spells a cell's folder from the YAML value, the stages from the float: they must agree.
    if isinstance(value, int):
        raise ValueError(f"write it with a decimal point, {float(value)}")
    return value
