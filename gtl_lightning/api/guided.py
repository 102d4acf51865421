"""A denoiser, what guides it and how it samples, as one thing that is saved, shared and opened again.

A cell's bundle (workspace/bundle.py) is the same folder with what the command line needs beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from torch import Tensor, nn

from gtl_lightning.core.guidance import GAMMA_MAX, Guidance, LinearGamma, SequenceRatio, TokenRatio, linear_gamma
from gtl_lightning.core.protocols import Source
from gtl_lightning.core.schedule import LOG_LINEAR, NoiseSchedule
from gtl_lightning.core.schedule import schedule as schedule_of
from gtl_lightning.data.hub import refuse_code
from gtl_lightning.errors import UserError
from gtl_lightning.fields import STRONGEST
from gtl_lightning.networks import DENOISERS, RatioEnsemble, SequenceRatioNetwork, load_network
from gtl_lightning.records import Shape, Within
from gtl_lightning.sharing.shareable import DENOISER, RATIO, TOKENIZER, Shareable, read_config, write_config

SAID: Shape = {
    "temperature": Within(0, STRONGEST),
    "length": Within(1, 2**16, whole=True),
    "gamma?": Within(0, GAMMA_MAX),
    "gamma_end?": Within(0, GAMMA_MAX),
    "n_ratio?": Within(1, 2**31, whole=True, null=True),
    "stabilise?": bool,
    "schedule?": str,
}
"""What a folder says of a guided model; the strength and what follows it, where there is a ratio."""


@dataclass(frozen=True)
class GuidedModel(Shareable):
    """A denoiser with its guidance, ready for `gtl_lightning.sample`.

    Attributes:
        denoiser: (x_t, t) -> log-probabilities of the clean token.
        guidance: ratio and strength; None for a denoiser alone.
        length: most tokens of a text.
        temperature: at which it samples.
        tokenizer: from tokens to text and back; None where nobody gave one.
        schedule: name of the noise schedule that the networks were trained on, where they read t; give `sample` and
            `nelbo` the schedule itself, `noise`.

    Raises:
        UserError: the ratio was trained on another schedule.
    """

    denoiser: Source
    guidance: Guidance | None
    length: int
    temperature: float = 1.0
    tokenizer: Any = None
    schedule: str = LOG_LINEAR

    def __post_init__(self) -> None:
        trained = getattr(self.guidance.ratio, "schedule", self.schedule) if self.guidance else self.schedule
        if trained not in (None, self.schedule):
            raise UserError(
                f"the ratio was trained on the schedule {trained!r}, and the model is said to be of {self.schedule!r}; "
                f"give GuidedModel(..., schedule={trained!r})"
            )

    @property
    def noise(self) -> NoiseSchedule:
        """The schedule of that name.

        Raises:
            UserError: there is none.
        """
        return schedule_of(self.schedule)

    @property
    def mask_index(self) -> int:
        """Id of the mask."""
        return self.denoiser.mask_index

    def decode(self, x: Iterable[Tensor]) -> list[str]:
        """Long[b,l] -> texts.

        Raises:
            UserError: there is no tokenizer.
        """
        from gtl_lightning.data.tokenizer import decode

        if self.tokenizer is None:
            raise UserError("this model came without a tokenizer; give GuidedModel(..., tokenizer=...)")
        return [decode(self.tokenizer, sequence.tolist()) for sequence in x]

    def write_to(self, folder: Path) -> None:
        """A folder for each part, which can be read alone; `config.json` says how they go together.

        Raises:
            UserError: a denoiser or a ratio that is no network of this project; a strength that is a function; an
                unknown schedule.
        """
        schedule_of(self.schedule)
        parts = {DENOISER: _write_denoiser(self.denoiser, folder)}
        if self.guidance is not None:
            parts[RATIO] = _write_ratio(self.guidance.ratio, folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / TOKENIZER)
            parts[TOKENIZER] = TOKENIZER
        write_config(folder, parts, **said_of(self.guidance, self.length, self.temperature, self.schedule))

    @classmethod
    def read_from(cls, folder: Path) -> Self:
        """What `write_to` wrote, or a cell's bundle."""
        parts, said = read_config(folder, SAID)
        if DENOISER not in parts:
            raise UserError(f"{folder} holds no denoiser; a ratio alone is read by TrainedRatio.from_pretrained")
        denoiser: Any = _read_denoiser(parts[DENOISER])
        guidance = None
        if RATIO in parts:
            network = load_network(parts[RATIO], denoiser=denoiser)
            guidance = Guidance(
                SequenceRatio(network) if _by_sequence(network) else TokenRatio(cast(Any, network)),
                linear_gamma(said.get("gamma", 1.0), said.get("gamma_end", 1.0)),
                said.get("n_ratio"),
                said.get("stabilise", True),
            )
        tokenizer = None
        if TOKENIZER in parts:
            from gtl_lightning.data.tokenizer import load_tokenizer

            tokenizer = load_tokenizer(parts[TOKENIZER])
        model = cls(
            denoiser, guidance, said["length"], said["temperature"], tokenizer, said.get("schedule", LOG_LINEAR)
        )
        schedule_of(model.schedule)
        return model


def said_of(guidance: Guidance | None, length: int, temperature: float, schedule: str) -> dict[str, Any]:
    """What `config.json` says of a guided model beside its parts.

    Raises:
        UserError: a strength that is a function.
    """
    said: dict[str, Any] = {"temperature": temperature, "length": length, "schedule": schedule}
    if guidance is None:
        return said
    course = guidance.gamma
    gamma, end = (course.start, course.end) if isinstance(course, LinearGamma) else (course, 1.0)
    if callable(gamma):
        raise UserError("gamma is a function, which cannot be stored; give a number, or core.guidance.linear_gamma")
    strength = {"gamma": float(gamma), "gamma_end": end, "n_ratio": guidance.n_ratio, "stabilise": guidance.stabilise}
    return said | strength


def _read_denoiser(path: Path) -> nn.Module:
    if path.is_file():
        return load_network(path, expect=DENOISERS)
    from gtl_lightning.networks.pretrained import PretrainedDenoiser

    refuse_code(str(path), local_only=True)
    return PretrainedDenoiser.load(path)


def _write_denoiser(denoiser: Source, folder: Path) -> str:
    if not isinstance(denoiser, Shareable):
        raise UserError(
            f"the denoiser is a {type(denoiser).__name__}, which no folder of this project holds; save the ratio, and "
            "give it the denoiser where it is loaded (TrainedRatio.from_pretrained)"
        )
    return _write_part(denoiser, folder, DENOISER)


def _write_ratio(ratio: SequenceRatio | TokenRatio, folder: Path) -> str:
    shared = ratio if isinstance(ratio, Shareable) else ratio.f
    if not isinstance(shared, Shareable):
        raise UserError(
            f"the ratio is a {type(shared).__name__}, which cannot be stored; give a network of this project"
        )
    return _write_part(shared, folder, RATIO)


def _write_part(model: Shareable, folder: Path, part: str) -> str:
    """Write one of several models; return where it lies."""
    (folder / part).mkdir()
    model.write_to(folder / part)
    return f"{part}/{model.file}" if model.file else part


def _by_sequence(network: nn.Module) -> bool:
    one = network.members[0] if isinstance(network, RatioEnsemble) else network
    return isinstance(one, SequenceRatioNetwork)
