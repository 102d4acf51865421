"""What a flow may be asked for, and how that becomes params.yaml: never silently."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import Field

from gtl_lightning.errors import UserError
from gtl_lightning.fields import LARGEST_SEED
from gtl_lightning.methods import ROLLS, names
from gtl_lightning.studies.markov.params import PARAMS as STUDY_PARAMS
from gtl_lightning.studies.markov.params import requested, write_settings
from gtl_lightning.workspace.params import PARAMS, PROFILES, Params, changes, load_params, override, write_params
from gtl_lightning.workspace.reconfigure import requested_params

if TYPE_CHECKING:
    Method: TypeAlias = str
else:
    Method = Literal[names()]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Fractions = Annotated[list[Fraction], Field(min_length=1)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
Methods = Annotated[list[Method], Field(min_length=1)]
Parallel = Annotated[int, Field(ge=1, le=64)]
Minutes = Annotated[float, Field(gt=0, le=10**6)]
Where = Literal["here", "gpu"]

NAME_LENGTH = 120  # of a run, which Prefect's pages show on one line
Function = TypeVar("Function", bound=Callable[..., Any])
POOL_DEPLOYMENTS: dict[Where, str | None] = {"here": None, "gpu": "stage/gpu"}


def shows(values: Callable[[Params], Mapping[str, Any]]) -> Callable[[Function], Function]:
    """A decorator: the form of a flow, which Prefect makes of its docstring, says what params.yaml has now.

    `values` gives what stands there, by the parameters that take it where nothing is given. Where params.yaml cannot be
    read, the form says no more than that the file's are taken.
    """

    def told(function: Function) -> Function:
        text = function.__doc__ or ""
        with suppress(UserError):
            for name, value in values(load_params()).items():
                listed = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                before = re.search(rf"(?m)^ +{name}: .*?none (?:takes|keeps) [\w. ]+?'s(?=[.;])", text)
                text = f"{text[: before.end()]}, now {listed}{text[before.end() :]}" if before else text
        function.__doc__ = text
        return function

    return told


def grid_of(params: Params) -> dict[str, Any]:
    """The grid and the profile, by the names of a sweep's parameters."""
    sweep = params.sweep
    return {
        "fractions": sweep.fractions,
        "seeds": sweep.seeds,
        "methods": tuple(sweep.methods),
        "profile": params.profile,
    }


def run_name(flow: str, parameters: Mapping[str, Any]) -> str:
    """What a run is of, for people: the flow and what was asked for, `scarcity-sweep: gtl at 5 %, seed 1`."""
    asked = {name: value for name, value in parameters.items() if value not in (None, [], "")}
    parts: list[str] = []
    if methods := asked.get("methods") or ([asked["method"]] if "method" in asked else None):
        parts.append(", ".join(methods))
    if fractions := asked.get("fractions") or ([asked["fraction"]] if "fraction" in asked else None):
        shares = f"at {', '.join(f'{100 * fraction:g} %' for fraction in fractions)}"
        parts = [" ".join([*parts, shares])]
    if seeds := asked.get("seeds"):
        parts.append(f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}")
    parts += [f"profile {asked['profile']}"] if "profile" in asked else []
    for name in ("gammas", "n_ratios"):
        parts += [f"{name} {', '.join(f'{value:g}' for value in asked[name])}"] if name in asked else []
    parts += asked.get("overrides", [])
    words = "; ".join(parts) or asked.get("stage") or "all of params.yaml"
    return f"{flow}: {words}{' on GPUs' if asked.get('where') == 'gpu' else ''}"[:NAME_LENGTH]


@dataclass(frozen=True)
class Wanted:
    """Configuration and part of the grid that a flow run is asked for; None leaves a thing as params.yaml has it.

    Attributes:
        profile: name of a profile.
        overrides: `key=value`, as for `gtl configure --set`; on top of the profile, else of the file.
        fractions, seeds, methods: the part of the grid; values outside of the grid are added to it.
        study: `key=value`, as for `gtl markov configure --set`, laid over that study's own params.yaml.
        write_params: whether params.yaml, or the study's, may be written.
    """

    profile: str | None = None
    overrides: tuple[str, ...] = ()
    fractions: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    study: tuple[str, ...] = ()
    write_params: bool = False

    def narrows(self, params: Params) -> bool:
        """Whether it leaves out a part of the grid."""
        sweep = params.sweep
        grid: list[tuple[tuple[Any, ...] | None, tuple[Any, ...]]] = [
            (self.fractions, sweep.fractions),
            (self.seeds, sweep.seeds),
            (self.methods, sweep.methods),
        ]
        return any(wanted is not None and not set(wanted).issuperset(all_of) for wanted, all_of in grid)


def settle(wanted: Wanted, root: Path) -> Params:
    """The parameters that the flow runs with, which are always those of params.yaml when it returns.

    DVC reads params.yaml, so a flow cannot run with other values than the file has. What would change it is refused
    with the list of changes, unless `write_params` is set: then the file is written.

    Raises:
        UserError: values that config.py refuses, or changes without `write_params`.
    """
    if not (root / "dvc.yaml").is_file():
        raise UserError(f"{root} holds no dvc.yaml; run the flow in the repository's root")
    if wanted.study:
        _settle_study(wanted, root)
    current = load_params(root / PARAMS)
    asked = requested_params(wanted.profile, wanted.overrides, root / PARAMS, root / PROFILES)
    asked = override(asked, tuple(_grid_overrides(wanted, asked)))
    _check_points(wanted, asked)
    told = changes(current.model_dump(mode="json"), asked.model_dump(mode="json"))
    if not told:
        return current
    if not wanted.write_params:
        raise UserError(f"this run would change params.yaml ({'; '.join(told.values())}); set write_params to allow it")
    write_params(asked, root / PARAMS)
    return asked


def _settle_study(wanted: Wanted, root: Path) -> None:
    asked, told = requested(wanted.study, root / STUDY_PARAMS)
    if told and not wanted.write_params:
        raise UserError(f"this run would change {STUDY_PARAMS} ({'; '.join(told)}); set write_params to allow it")
    if told:
        write_settings(asked, root / STUDY_PARAMS)


def _grid_overrides(wanted: Wanted, params: Params) -> Iterator[str]:
    """What is asked for and not in the grid is added to it: no cell that exists is dropped."""
    sweep = params.sweep
    asked: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
        "fractions": (sweep.fractions, wanted.fractions or ()),
        "seeds": (sweep.seeds, wanted.seeds or ()),
        **{roll: (getattr(sweep, roll), _only(wanted.methods, listed)) for roll, listed in ROLLS.items()},
    }
    for key, (grid, values) in asked.items():
        if not set(grid).issuperset(values):
            yield f"sweep.{key}={json.dumps(list(dict.fromkeys((*grid, *values))))}"


def _check_points(wanted: Wanted, params: Params) -> None:
    """What `sweep.repeats` leaves out and somebody asks for would be a flow that ends Completed without a cell."""
    sweep = params.sweep
    for fraction, seed in product(wanted.fractions or (None,), wanted.seeds or (None,)):
        if not any(fraction in (None, share) and seed in (None, one) for share, one in sweep.points):
            where = "" if fraction is None else f" at the share {fraction:g}"
            raise UserError(
                f"sweep.repeats = {list(sweep.repeats)} leaves out seed {seed}{where}; raise its numbers, or name the "
                "seed further in front in sweep.seeds"
            )


def _only(methods: tuple[str, ...] | None, kind: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(method for method in methods or () if method in kind)
