"""What a command is asked for, held against what exists before anything is opened, logged or written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gtl_lightning.errors import UserError
from gtl_lightning.fields import LARGEST_SEED, STRONGEST
from gtl_lightning.methods import guides, names
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import Cell

SOURCE_METHOD = "source"
NAMED = re.compile(r"(?P<method>[a-z][a-z0-9-]*?)(-(?P<fraction>\d+\.\d+|\d(\.\d+)?e-\d+))?-(?P<seed>\d+)")
MOST_TRACED = 64
"""Texts of a page that a browser opens without a wait."""


def check_point(params: Params, fraction: float | None, seed: int) -> None:
    """Raise UserError unless params.yaml's grid has this share of the target data, if any, and this repetition."""
    if fraction is not None:
        in_grid("--fraction", fraction, "sweep.fractions", params.sweep.fractions)
    in_grid("--seed", seed, "sweep.seeds", params.sweep.seeds)


def checked_cell(method: str, fraction: float | None, seed: int, option: str = "--seed") -> Cell:
    """A cell that may exist, whether or not today's grid has it; `option` names the seed.

    Raises:
        UserError: an unknown method, a fraction where none applies or none where one does, a value out of range.
    """
    check_method(method)
    if method == SOURCE_METHOD and fraction is not None:
        raise UserError("--fraction is a share of the target data, and source has seen none of it; leave it out")
    if method != SOURCE_METHOD and fraction is None:
        raise UserError(f"{method} is trained on a share of the target data: say which with --fraction")
    if fraction is not None and not 0 < fraction <= 1:
        raise UserError(f"--fraction {fraction} is no share of the target data; give one above 0 and up to 1")
    check_seed(option, seed)
    return Cell(method, fraction, seed)


def named_cell(name: str) -> Cell:
    """The cell of a folder below cells/, `gtl-0.05-0`; `source-0` is the untouched source.

    Raises:
        UserError: no such name, or as `checked_cell`.
    """
    found = NAMED.fullmatch(name)
    if found is None:
        raise UserError(f"{name!r} names no cell; give a folder of cells/: METHOD-FRACTION-SEED, as gtl-0.05-0")
    fraction = found["fraction"]
    return checked_cell(found["method"], None if fraction is None else float(fraction), int(found["seed"]), "the seed")


def asked_cell(params: Params, method: str, fraction: float | None, model_seed: int | None) -> Cell:
    """The cell that `gtl sample` means: without a fraction the largest of the sweep, without a seed its first.

    Raises:
        UserError: as `checked_cell`.
    """
    if fraction is None and method != SOURCE_METHOD:
        fraction = max(params.sweep.fractions)
    return checked_cell(method, fraction, params.sweep.seeds[0] if model_seed is None else model_seed, "--model-seed")


def check_method(method: str) -> None:
    """Raise UserError unless `method` exists."""
    known = (SOURCE_METHOD, *names("denoiser"), *names("ratio"))
    if method not in known:
        raise UserError(f"method {method!r} is unknown; choose one of {', '.join(known)}")


def check_seed(option: str, seed: int) -> None:
    """Raise UserError unless every generator takes `seed`."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{option} {seed} is out of range; give 0 to {LARGEST_SEED}")


def in_grid(option: str, value: float, key: str, grid: Sequence[float], file: Path | str = "params.yaml") -> None:
    """Raise UserError unless `value` is one of `grid`, the values of `key` in the file."""
    if value not in grid:
        listed = ", ".join(str(one) for one in grid)
        raise UserError(f"{option} {value} is none of {key} in {file} ({listed}); choose one, or add it there")


@dataclass(frozen=True)
class SampleRequest:
    """What `gtl sample` is asked to draw; None leaves a thing to validation, params.yaml or the data.

    Attributes:
        count: sequences.
        length: tokens of each.
        gamma: guidance strength.
        temperature: of the revealed tokens.
        n_ratio: tokens the ratio scores.
        prompt: text to begin with.
        seed: of the sampler.
        out: folder for the texts.
        trace: page of how they came about.
        beside: method whose run the page shows beside it.
        watch: whether the terminal shows them come about.
    """

    count: int = 8
    length: int | None = None
    gamma: float | None = None
    temperature: float | None = None
    n_ratio: int | None = None
    prompt: str | None = None
    seed: int = 0
    out: Path = Path("samples")
    trace: Path | None = None
    beside: str | None = None
    watch: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for a number out of range or an `out` that is no folder."""
        for option, whole in (("--count", self.count), ("--length", self.length), ("--n-ratio", self.n_ratio)):
            if whole is not None and whole < 1:
                raise UserError(f"{option} {whole} is out of range; give at least 1")
        for option, number in (("--gamma", self.gamma), ("--temperature", self.temperature)):
            if number is not None and not 0 <= number <= STRONGEST:
                raise UserError(f"{option} {number} is out of range; give a number from 0 to {STRONGEST}")
        check_seed("--seed", self.seed)
        if self.prompt is not None and not self.prompt.strip():
            raise UserError(f"--prompt {self.prompt!r} holds no text; leave it out for free text")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} cannot be written: it is a file; give a folder")
        self._check_trace()

    @property
    def unguided(self) -> SampleRequest:
        """The same of a cell that need not have a ratio."""
        return replace(self, gamma=None, n_ratio=None)

    def _check_trace(self) -> None:
        if self.beside is not None:
            check_method(self.beside)
            if self.trace is None:
                raise UserError("--beside names the run that --trace FILE shows beside this one; give --trace too")
        if self.trace is None:
            return
        if self.trace.is_dir():
            raise UserError(f"--trace {self.trace} is a folder; give a file, as in --trace trace.html")
        if self.watch:
            raise UserError("--watch and --trace both watch the run; give one of them")
        if self.count > MOST_TRACED:
            raise UserError(f"--count {self.count} is more than the {MOST_TRACED} texts that one page of --trace holds")

    def check_applies(self, method: str) -> None:
        """Raise UserError for an option that means nothing to `method`."""
        if guides(method):
            return
        for option, value in (("--gamma", self.gamma), ("--n-ratio", self.n_ratio)):
            if value is not None:
                raise UserError(f"{option} guides a ratio, and {method} has none; leave it out or choose a gtl method")
