"""What `gtl ar2diff` is asked for, held against itself before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gtl_lightning.errors import UserError
from gtl_lightning.fields import Training
from gtl_lightning.workspace.options import check_seed

CHECK_EVERY = 50
"""Steps between checks, where nothing is asked for and there are more."""
DOMAINS = ("source", "target")


@dataclass(frozen=True)
class ConversionRequest:
    """What `gtl ar2diff` is asked for.

    Attributes:
        name: a folder, a GGUF file, or OWNER/NAME of a hub.
        out: folder of the denoiser.
        steps: of the continuation; 0 takes the weights as they are.
        domain: whose texts it is continued on.
        length: most tokens of a text.
        prefix: tokens at the front of each text that are given, neither noised nor learned.
        batch: texts a step.
        lr: peak learning rate.
        warmup: steps of linear warm-up, at most a quarter of all.
        check_every: steps between checks; None takes `CHECK_EVERY`, or all steps where there are fewer.
        shift: whether a state predicts the token after the one it stands at, as in the decoder.
        sink: whether the start reads itself alone, as in the decoder; None: where one is read, with the shift.
        anneal: share of the steps over which attention to later tokens is let in.
        lora: rank of low-rank updates, which alone train; 0 trains every weight.
        checkpointing: whether states are computed again on the way back, instead of kept.
        precision: as `machine.precision`; None takes that.
        seed: of order, noise and low-rank updates.
    """

    name: str
    out: Path
    steps: int
    domain: str = "target"
    length: int = 128
    prefix: int = 0
    batch: int = 8
    lr: float = 3e-4
    warmup: int = 50
    check_every: int | None = None
    shift: bool = True
    sink: bool | None = None
    anneal: float = 0.0
    lora: int = 0
    checkpointing: bool = False
    precision: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for what cannot be done, before anything is opened."""
        if self.steps < 0:
            raise UserError(f"--steps {self.steps} is negative; give 0 to read the weights from both sides as they are")
        if self.domain not in DOMAINS:
            raise UserError(f"--domain {self.domain!r} is none of {', '.join(DOMAINS)}; give one of them")
        if self.length < 2:
            raise UserError(f"--length {self.length} leaves no room for a text; give at least 2")
        if not 0 <= self.prefix < self.length:
            raise UserError(
                f"--prefix {self.prefix} of --length {self.length} leaves nothing to predict; give 0 or more tokens, "
                "and fewer than the length"
            )
        for name in ("batch", "check_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value} is too few; give at least 1")
        if not 0 < self.lr <= 10:
            raise UserError(f"--lr {self.lr} is no learning rate; give a number above 0 and up to 10")
        if self.sink and not self.shift:
            raise UserError("--sink is of the start, and with --no-shift none is read; leave one of the two out")
        if not 0 <= self.anneal <= 1:
            raise UserError(f"--anneal {self.anneal} is no share of the steps; give a number from 0 to 1")
        if self.warmup < 0:
            raise UserError(f"--warmup {self.warmup} is negative; give 0 or more steps")
        if not 0 <= self.lora <= 65536:
            raise UserError(f"--lora {self.lora} is no rank; give 0 for all weights, or up to 65536")
        if self.precision not in (None, "auto", "32-true", "bf16-mixed"):
            raise UserError(f"--precision {self.precision!r}: choose auto, 32-true or bf16-mixed")
        check_seed("--seed", self.seed)
        if self.steps and self.steps % self.checks:
            raise UserError(
                f"--steps {self.steps} are no whole checks of {self.checks} steps; give a --check-every that divides it"
            )
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder")
        from gtl_lightning.networks.adapters.origin import NOTE

        others = self.out.is_dir() and any(not path.name.startswith(".") for path in self.out.iterdir())
        if others and not (self.out / NOTE).exists():
            raise UserError(f"--out {self.out} holds other files; give a folder of its own")

    @property
    def checks(self) -> int:
        """Steps between checks."""
        return self.check_every or min(CHECK_EVERY, self.steps)

    @property
    def start_alone(self) -> bool:
        """Whether the start reads itself alone: where there is one, unless it is asked not to."""
        return self.shift if self.sink is None else self.sink

    @property
    def training(self) -> Training:
        """The run; every check is made, and the best weights are kept."""
        return Training(
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            warmup=min(self.warmup, self.steps // 4),
            ema=0.0,
            check_every=self.checks,
            patience=self.steps // self.checks,
        )
