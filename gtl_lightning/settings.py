"""The sections of params.yaml with their defaults: the profile `default` (the Markov study's: markov_config.py)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gtl_lightning.sections import Lora, Network, Positive, PositiveFloat, Section, Share, Training

Fraction = Annotated[float, BeforeValidator(lambda value: _with_a_point(value)), Field(gt=0, le=1)]
BaselineMethod = Literal["vanilla", "finetune", "lora"]
Schedule = Literal["loglinear", "polynomial", "cosine", "geometric"]
RatioMethod = Literal["gtl", "gtl-head", "gtl-warm", "gtl-sequence-gkl", "gtl-sequence-bce", "gtl-sequence-log-mse"]


class Data(Section):
    """Which records form the two domains and how they are split."""

    source: tuple[str, ...] = Field(("cs", "math"), description="archives of the primary category that form the source")
    target: tuple[str, ...] = Field(("physics",), description="archives that form the target")
    source_val: Share = Field(0.05, description="share of the source for early stopping and the advisor")
    source_judge: Share = Field(0.10, description="share of the source that only the judge sees")
    target_val: Share = Field(0.10, description="share of the target for selecting checkpoints and gamma")
    target_test: Share = Field(0.15, description="share of the target read once, by the final evaluation")
    target_judge: Share = Field(0.15, description="share of the target that only the judge and the reference model see")
    target_share_in_source: Share = Field(
        0.0, description="target records mixed into the source training data (paper: r)"
    )
    near_duplicate: float = Field(
        0.8, gt=0, le=1, description="estimated Jaccard similarity from which texts are duplicates"
    )
    max_bad_share: Share = Field(0.01, description="share of damaged records above which the split stops")
    min_examples: Positive = Field(16, description="fewest target examples a fraction may leave")
    max_source: Positive | None = Field(None, description="cap on source records (null: all)")
    max_target: Positive | None = Field(None, description="cap on target records (null: all)")
    seed: int = Field(0, description="key of the hash that orders and splits the records")


class Tokenizer(Section):
    """Text to tokens."""

    name: str | None = Field(None, description="Hugging Face name or folder; null trains one on the source split")
    vocab_size: Positive = Field(512, description="ids of the trained tokenizer, specials included")
    length: Positive = Field(32, description="tokens per example; longer texts are cut")


class Networks(Section):
    """Sizes of the networks that the methods share; a method's own network stands with the method."""

    denoiser: Network = Network(width=96, depth=3, heads=4)
    classifier: Network = Network(width=48, depth=2, heads=4, dropout=0.1)
    planner: Network = Network(width=48, depth=2, heads=4)
    reference: Network = Network(width=64, depth=2, heads=4, dropout=0.1)


class Train(Section):
    """Training of what the methods share, and what every training scores itself on."""

    val_examples: Positive = Field(128, description="held-out examples scored at each check, at most")
    val_draws: Positive = Field(2, description="noise draws of each in that score")
    source: Training = Training(steps=1400, batch=64, lr=2e-3, warmup=100, ema=0.995, check_every=200, patience=4)
    planner: Training = Training(steps=200, batch=64, lr=1e-3, check_every=50, patience=3)
    reference: Training = Training(steps=300, batch=64, lr=2e-3, check_every=50, patience=2)
    classifier: Training = Training(steps=125, batch=64, lr=1e-3, weight_decay=0.1, check_every=25, patience=4)


class Classifier(Section):
    """The domain classifiers, whose log-ratio sequence-level ratios and borrowing read (docs/method.md 2.1)."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="smoothing of the clean classifier's labels (paper: 0.1)"
    )
    unsmooth: bool = Field(True, description="undo the smoothing when the logit is read as a log-ratio")


class Tuned(Section):
    """A denoiser trained on the target: from nothing, or every weight of the source's."""

    train: Training


class LowRank(Lora):
    """Low-rank fine-tuning (peft)."""

    train: Training = Training(steps=300, batch=32, lr=2e-3, ema=0.98, check_every=25, patience=4)


class TokenRatio(Section):
    """A token-level ratio: its loss, and how many networks are averaged (docs/method.md 2.2)."""

    bce_weight: float = Field(0.3, ge=0, description="weight of eq. 9")
    nll_weight: float = Field(1.0, ge=0, description="weight of eq. 9'")
    martingale_weight: float = Field(0.0, ge=0, description="weight of the martingale regulariser, eq. 6")
    borrowed: int = Field(
        0, ge=0, description="target texts' worth of source texts, drawn by the clean classifier's ratio (eq. 9'')"
    )
    clip: PositiveFloat = Field(5.0, description="largest |log r*| that source texts are borrowed by")
    members: Positive = Field(1, description="networks in the ensemble; train is the budget of each")
    train: Training = Training(steps=300, batch=64, lr=2e-3, ema=0.98, check_every=25, patience=4)


class SmallRatio(TokenRatio):
    """The token-level ratio as a small network of its own."""

    network: Network = Network(width=48, depth=2, heads=4, dropout=0.1)
    train: Training = Training(steps=300, batch=64, lr=2e-3, weight_decay=0.1, ema=0.98, check_every=25, patience=4)


class HeadRatio(TokenRatio):
    """The token-level ratio as a head on the frozen denoiser's features."""

    rank: Positive = Field(64, description="rank of the map on the frozen features")


class WarmRatio(TokenRatio):
    """The token-level ratio as the difference of a warm-started copy and the frozen denoiser."""

    dropout: Share = Field(0.1, description="dropout of the copy of the denoiser while it is trained")
    bce_weight: float = Field(0.0, ge=0, description="weight of eq. 9")
    members: Positive = Field(2, description="networks in the ensemble; train is the budget of each")
    train: Training = Training(steps=150, batch=32, lr=5e-4, ema=0.98, check_every=25, patience=4)


class SequenceRatio(Section):
    """A sequence-level ratio (docs/method.md 2.1)."""

    network: Network = Network(width=48, depth=2, heads=4, dropout=0.1)
    clip: PositiveFloat = Field(5.0, description="largest |log r*| that enters the loss")
    eta_1: float = Field(0.1, ge=0, description="weight of the cycle loss, eq. 8")
    train: Training = Training(steps=300, batch=64, lr=2e-3, weight_decay=0.1, ema=0.98, check_every=25, patience=4)


class Methods(Section):
    """What is trained for every cell, each method with all that is its own."""

    vanilla: Tuned = Tuned(train=Training(steps=300, batch=32, lr=2e-3, ema=0.98, check_every=25, patience=4))
    finetune: Tuned = Tuned(train=Training(steps=300, batch=32, lr=5e-4, ema=0.98, check_every=25, patience=4))
    lora: LowRank = LowRank()
    gtl: SmallRatio = SmallRatio()
    gtl_head: HeadRatio = Field(HeadRatio(), alias="gtl-head")
    gtl_warm: WarmRatio = Field(WarmRatio(), alias="gtl-warm")
    gtl_sequence_gkl: SequenceRatio = Field(SequenceRatio(), alias="gtl-sequence-gkl")
    gtl_sequence_bce: SequenceRatio = Field(SequenceRatio(), alias="gtl-sequence-bce")
    gtl_sequence_log_mse: SequenceRatio = Field(SequenceRatio(), alias="gtl-sequence-log-mse")


class Sampling(Section):
    """The sampler (docs/method.md 2.4)."""

    planner: Literal["learned", "random", "confidence", "margin", "entropy"] = Field(
        "random", description="reveal order"
    )
    planner_temperature: PositiveFloat = Field(1.0, description="temperature of the learned planner's choice")
    positions_per_step: Positive = Field(1, description="positions revealed per step (k)")
    block: Positive | None = Field(
        None, description="reveal in blocks of so many positions, the rest kept as it was; null: no reuse"
    )
    block_margin: int = Field(0, ge=0, description="positions around the block that are computed anew with it")
    temperature: float = Field(1.0, ge=0, description="of the revealed tokens; 0 takes the most likely")
    also_temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), description="further temperatures; held-out texts choose, by energy distance"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus")
    gammas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5),
        min_length=1,
        description="guidance strengths that the held-out NELBO chooses from",
    )
    sample_gammas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), description="strengths of samples, chosen by energy distance to held-out texts; none: the NELBO's"
    )
    gamma_end: float = Field(
        1.0, ge=0, description="gamma with all revealed over gamma with nothing revealed, linear between; 1: constant"
    )
    n_ratio: Positive | None = Field(None, description="tokens the ratio scores at a position; null: all")
    n_ratio_sequence: Positive = Field(16, description="the same for sequence-level ratios, one forward pass each")


class Evaluation(Section):
    """What is measured and how."""

    samples: Positive = Field(256, description="sequences generated per cell")
    trial_samples: int = Field(128, ge=2, description="sequences for each temperature and strength that is tried")
    draws: Positive = Field(4, description="mask patterns per held-out sequence in the NELBO")
    val_examples: Positive = Field(512, description="held-out target texts that gamma is chosen on, at most")
    batch: Positive = Field(64, description="sequences per forward pass")
    featurizer: str = Field(
        "minilm", description="MAUVE features: minilm (offline, pinned), or any model name or folder"
    )
    neighbours: Positive = Field(
        1000, description="training texts searched for the nearest neighbour of a sample, at most"
    )
    mauve_buckets: Positive = Field(16, description="k-means buckets of MAUVE")
    mauve_seeds: Positive = Field(5, description="k-means seeds averaged")
    seed: int = Field(0, description="noise of the held-out NELBO, equal for every method")


class Ablation(Section):
    """Resampling from trained ratios; nothing is trained."""

    fraction: Fraction = Field(0.05, description="the cell whose ratio is resampled (first seed)")
    method: RatioMethod = Field("gtl", description="the ratio that is resampled")
    gammas: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.0, 0.5, 1.0, 1.5, 2.0), description="gamma axis")
    n_ratios: tuple[Positive, ...] = Field((4, 16, 64), description="n_ratio axis")


class Sweep(Section):
    """The grid, read by dvc.yaml's matrix and by the flows."""

    fractions: tuple[Fraction, ...] = Field(
        (1.0, 0.3, 0.05, 0.01), min_length=1, description="shares of the target training data"
    )
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="repetitions; three or more wherever results are claimed"
    )
    baselines: tuple[BaselineMethod, ...] = Field(
        ("vanilla", "finetune", "lora"), description="denoisers trained per cell"
    )
    ratios: tuple[RatioMethod, ...] = Field(("gtl", "gtl-warm"), description="ratio networks trained per cell")

    @model_validator(mode="after")
    def _no_repeats(self) -> Sweep:
        for name in ("fractions", "seeds", "baselines", "ratios"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} lists a value twice: {list(values)}")
        return self


class Bench(Section):
    """Benchmarks, `gtl bench`: networks of the sizes above with random weights; nothing is read or trained."""

    vocab_size: Positive | None = Field(None, description="ids; null: tokenizer.vocab_size")
    batches: tuple[Positive, ...] = Field((1, 4, 32), min_length=1, description="sequences sampled together")
    lengths: tuple[Positive, ...] = Field(
        (32, 64, 128), min_length=1, description="tokens; tokenizer.length stands in all other rows"
    )
    n_ratios: tuple[Positive, ...] = Field(
        (8, 64, 512), min_length=1, description="tokens the ratio scores; the last stands in all other rows"
    )
    positions_per_step: tuple[Positive, ...] = Field((1, 2, 8), min_length=1, description="k; 1 in all other rows")
    blocks: tuple[Positive, ...] = Field((8, 16), description="block sizes of block-wise decoding")
    candidates: Positive = Field(8, description="n_ratio of the sequence-level ratio and of the plain reference")
    steps: Positive = Field(4, description="steps in a timed call")
    rounds: Positive = Field(7, description="timed calls of each case")
    seconds: PositiveFloat = Field(10.0, description="time for a group of cases after which its rounds end early")
    train_batch: Positive = Field(64, description="sequences in a training step")
    matrix: Positive = Field(1024, description="rows of the matrix product that shares are taken of")


class Machine(Section):
    """Where it runs; nothing here changes what is computed beyond rounding."""

    threads: Positive | None = Field(1, description="processor threads of a command; null: as many as there are cores")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="Lightning's accelerator")
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field("auto", description="auto: bf16 where it pays")
    devices: Positive = Field(1, description="processes, one a GPU, that share each training batch (DDP)")
    strategy: Literal["auto", "ddp_spawn", "ddp_fork"] = Field("auto", description="Lightning's; auto: one that fits")
    accumulate: Positive = Field(1, description="parts of its share that each process computes one after another")


class Tracking(Section):
    """MLflow."""

    uri: str = Field("sqlite:///mlflow.db", description="tracking server or database; MLFLOW_TRACKING_URI wins over it")
    experiment: str = Field("gtl-transfer", description="experiment name")


def _with_a_point(value: Any) -> Any:
    # DVC spells a cell's folder from the YAML value, the stages from the float: they must agree.
    if isinstance(value, int):
        raise ValueError(f"write it with a decimal point, {float(value)}")
    return value
