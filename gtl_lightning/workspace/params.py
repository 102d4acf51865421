"""The one configuration object: params.yaml -> frozen pydantic models, unknown keys refused.

The defaults of the sections (settings.py) are the profile `default`; `profiles/NAME.yaml` holds what another profile
changes. `gtl configure` writes params.yaml (reconfigure.py), and everything reads params.yaml: DVC, the command line
and the flows. `Params` holds every value; the file states a default and what differs from it (stated.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from gtl_lightning.errors import UserError
from gtl_lightning.fields import NAME, TEXT, Name, Section, Training
from gtl_lightning.files import write_text
from gtl_lightning.sources.hub import HASH
from gtl_lightning.workspace.settings import (
    ADDRESS,
    ARCHIVE,
    Ablation,
    Bench,
    Classifier,
    Data,
    Evaluation,
    Machine,
    Methods,
    Networks,
    Sampling,
    Schedule,
    Source,
    Sweep,
    Tokenizer,
    Tracking,
    Train,
)
from gtl_lightning.workspace.stated import DEFAULTS, HEIRS, complete, effective, inherited, missing, stated
from gtl_lightning.workspace.written import params_text
from gtl_lightning.workspace.yamlfile import parse, read_values

PARAMS = Path("params.yaml")
PROFILES = Path("profiles")
MOVED = {
    "markov": "the study on Markov chains has a file of its own, gtl_lightning/studies/markov/params.yaml; set there "
    "what differs (`gtl markov configure --set KEY=VALUE`) and remove the section here"
}
"""Sections that earlier versions had here, and where they went."""
AnySection = TypeVar("AnySection", bound=Section)


class Params(Section):
    """All of params.yaml."""

    profile: Name = Field("default", description="name of the profile this file was configured from")
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    schedule: Schedule = Field("loglinear", description="noise schedule alpha_t")
    source: Source = Source()
    networks: Networks = Networks()
    train: Train = Train()
    classifier: Classifier = Classifier()
    methods: Methods = Methods()
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    ablation: Ablation = Ablation()
    sweep: Sweep = Sweep()
    bench: Bench = Bench()
    machine: Machine = Machine()
    tracking: Tracking = Tracking()

    def candidates(self) -> dict[str, int]:
        """Key -> tokens that a ratio is to score, which are at most the vocabulary's."""
        return {
            "sampling.n_ratio": self.sampling.n_ratio or 1,
            "sampling.n_ratio_sequence": self.sampling.n_ratio_sequence,
            "ablation.n_ratios": max(self.ablation.n_ratios, default=1),
        }

    @model_validator(mode="after")
    def _ablation_is_a_cell(self) -> Params:
        if self.ablation.fraction not in self.sweep.fractions:
            raise ValueError(
                f"ablation.fraction = {self.ablation.fraction} is none of sweep.fractions; choose one of them"
            )
        if self.ablation.method not in self.sweep.ratios:
            raise ValueError(f"ablation.method = {self.ablation.method} is none of sweep.ratios; choose one of them")
        return self

    @model_validator(mode="after")
    def _sampling_fits_the_texts(self) -> Params:
        length, vocabulary = self.tokenizer.length, self.tokenizer.vocab_size
        for name in ("positions_per_step", "block", "block_margin"):
            if (getattr(self.sampling, name) or 0) > length:
                value = getattr(self.sampling, name)
                raise ValueError(f"sampling.{name} = {value} exceeds tokenizer.length = {length}; lower it")
        if self.tokenizer.name is not None:  # its vocabulary is known once it is loaded: corpus.py
            return self
        for key, value in self.candidates().items():
            if value > vocabulary:
                raise ValueError(f"{key} = {value} exceeds tokenizer.vocab_size = {vocabulary}; use at most that")
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Params:
        parts = self.machine.devices * self.machine.accumulate
        for key, training in [*_trainings(self.train, "train"), *_trainings(self.methods, "methods")]:
            if training.batch % parts:
                raise ValueError(
                    f"{key}.batch = {training.batch} does not divide into machine.devices x machine.accumulate = "
                    f"{parts} parts; change one of them"
                )
        return self


def _trainings(section: BaseModel, prefix: str) -> Iterator[tuple[str, Training]]:
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}.{field.alias or name}"
        if isinstance(value, Training):
            if key not in DEFAULTS.values():  # which is trained nowhere
                yield key, value
        elif isinstance(value, BaseModel):
            yield from _trainings(value, key)


def load_params(path: Path | str = PARAMS) -> Params:
    """Read and validate params.yaml.

    Raises:
        UserError: missing, not YAML, an unknown key or a value out of range; the line names the key.
    """
    return validate(read_values(path), path)


def validate(values: dict[str, Any], origin: Path | str) -> Params:
    """What a file states -> Params.

    Raises:
        UserError: naming `origin` and every key at fault.
    """
    whole = effective(values)
    if lacking := missing(whole):
        raise UserError(f"{origin}: {lacking[0]} is missing; add it, or write the file anew with `gtl configure`")
    try:
        return Params.model_validate(whole)
    except ValidationError as error:
        problems = "; ".join(
            _explain(problem, MOVED) + _taken(problem, values) for problem in _once(_first(error.errors()))
        )
        raise UserError(f"{origin}: {problems}") from error


def validated(kind: type[AnySection], values: dict[str, Any], origin: Path | str) -> AnySection:
    """Values -> the typed object of a study's own file.

    Raises:
        UserError: naming `origin` and every key at fault.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(problem, {}) for problem in _first(error.errors()))
        raise UserError(f"{origin}: {problems}") from error


def configure(profile: str = "default", overrides: tuple[str, ...] = (), profiles: Path = PROFILES) -> Params:
    """Defaults, then the profile's values, then `key=value` overrides (dotted keys, YAML values).

    Raises:
        UserError: an unknown profile, an override without `=`, an unknown key, a value out of range.
    """
    values: dict[str, Any] = {} if profile == "default" else read_values(_profile_path(profile, profiles))
    laid = merged(stated(Params().model_dump(mode="json")), {**values, "profile": profile})
    return overlaid(laid, overrides, f"profile {profile}")


def override(params: Params, overrides: tuple[str, ...]) -> Params:
    """The same parameters with `key=value` overrides: what they do not name, or take from what they name, stays.

    Raises:
        UserError: an override without `=`, an unknown key, a value out of range.
    """
    return overlaid(stated(params.model_dump(mode="json")), overrides, "overrides")


def overlaid(values: dict[str, Any], overrides: tuple[str, ...], origin: Path | str) -> Params:
    """Defaults, then `values`, then `key=value` overrides.

    Raises:
        UserError: naming `origin`; an override without `=`, an unknown key, a value out of range.
    """
    laid = read_overrides(overrides)
    for change in overrides:
        if change.partition("=")[0].strip() == "profile":
            raise UserError(f"--set {change}: a profile is its values, not its name; choose it with --profile")
    return validate(merged(complete(values), laid), f"{origin} with --set" if overrides else origin)


def read_overrides(overrides: tuple[str, ...], example: str = "train.source.steps=100") -> dict[str, Any]:
    """`key=value` with dotted keys and YAML values, as the mapping that a file would hold.

    Raises:
        UserError: an override without `=`, one that is no YAML, or a part of a single value.
    """
    laid: dict[str, Any] = {}
    for change in overrides:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {change}: write it as key=value, for example --set {example}")
        _assign(laid, key.strip().split("."), parse(value, f"--set {change}: the value"), key)
    return laid


def full(values: dict[str, Any]) -> dict[str, Any]:
    """Every value that holds where params.yaml states `values`, unchecked."""
    return merged(Params().model_dump(mode="json"), effective(values))


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key -> `key: old -> new`, of every value of `new` that `old` has otherwise."""
    found: dict[str, str] = {}
    for key, value in new.items():
        before, full_key = old.get(key), f"{prefix}{key}"
        if isinstance(value, dict):
            found |= changes(before if isinstance(before, dict) else {}, value, f"{full_key}.")
        elif value != before:
            found[full_key] = f"{full_key}: {json.dumps(before, default=str)} -> {json.dumps(value)}"
    return found


def dump_params(params: Params) -> str:
    """Params as the text of params.yaml: a default, and what differs, each with its description."""
    return params_text(params)


def write_params(params: Params, path: Path | str = PARAMS) -> None:
    """Write params.yaml atomically."""
    write_text(path, dump_params(params))


def _profile_path(profile: str, profiles: Path) -> Path:
    path = profiles / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(["default", *sorted(file.stem for file in profiles.glob("*.yaml"))])
        raise UserError(f"unknown profile {profile!r}; choose one of: {known}")
    return path


def _assign(values: dict[str, Any], keys: list[str], value: Any, full: str) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {full}: {key} is a single value, it has no parts")
        values = inner
    values[keys[-1]] = value


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping."""
    whole = dict(base)
    for key, value in changes.items():
        inner = whole.get(key)
        whole[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return whole


PATTERNS = {
    NAME: "begin with a letter or digit, go on with letters, digits, blanks and . _ - only",
    TEXT: "write a text without blanks around it",
    ARCHIVE: "name an archive, the part of a category before its dot",
    HASH: "write the 64 hexadecimal digits of a hash, as `gtl source import` does",
    ADDRESS: "write an address, as sqlite:///mlflow.db or http://host:5000",
}
"""What a string has to look like, in words."""


def _once(problems: Sequence[Any]) -> list[Any]:
    """What is wrong with a default is wrong wherever it is taken; it is said of the default."""
    keys = [_key(problem) for problem in problems]
    wrong = {default for default in DEFAULTS.values() if any(_within(key, default) for key in keys)}
    echoes = [key for key, heir in HEIRS.items() if heir.default in wrong]
    return [
        problem for problem, key in zip(problems, keys, strict=True) if not any(_within(key, echo) for echo in echoes)
    ]


def _first(problems: Sequence[Any]) -> list[Any]:
    """A list whose items are at fault counts as empty too, which it is not: only the items are said."""
    keys = [_key(problem) for problem in problems]
    return [
        problem
        for problem, key in zip(problems, keys, strict=True)
        if problem["type"] != "too_short" or not any(other.startswith(f"{key}.") for other in keys)
    ]


def _taken(problem: Any, values: dict[str, Any]) -> str:
    """What a value that is at fault was taken from, in brackets; nothing where it stands at the key that is named."""
    taken = inherited(complete(values), _key(problem))
    found = [f"{name} is that of {default}" for name, default in taken.items() if f"{name} " in problem["msg"]]
    return f" ({', '.join(found)})" if found else ""


def _key(problem: Any) -> str:
    return ".".join(str(part) for part in problem["loc"])


def _within(key: str, part: str) -> bool:
    return key == part or key.startswith(f"{part}.")


def _explain(problem: Any, moved: Mapping[str, str]) -> str:
    key = _key(problem)
    said = str(problem["msg"]).removeprefix("Value error, ")
    if not key:
        return said
    if problem["type"] == "missing":
        return f"{key} is missing; add it, or write the file anew with `gtl configure`"
    if problem["type"] == "extra_forbidden" and key in moved:
        return f"{key}: {moved[key]}"
    if problem["type"] == "extra_forbidden":
        return f"unknown parameter {key}; remove it or correct its name"
    if isinstance(problem["input"], dict | BaseModel):
        return f"{key}: {said}"
    if problem["type"] == "string_pattern_mismatch":
        return f"{key} = {problem['input']!r}: {PATTERNS.get(problem['ctx']['pattern'], 'it has another form')}"
    return f"{key} = {problem['input']!r}: {said[:1].lower()}{said[1:]}"
