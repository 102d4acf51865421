"""Every parameter of params.yaml, the project's and the study's: refused outside of its range, accepted at its ends.

The ranges are those of the fields themselves.

"Refused before any work starts" (README) is this test: `gtl configure --set`, and every command that reads the file,
end in one line that names the key.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gtl_lightning.errors import UserError
from gtl_lightning.fields import NAME, TEXT
from gtl_lightning.sources.hub import HASH
from gtl_lightning.studies.ar2diff import params as ar2diff
from gtl_lightning.studies.ar2diff.settings import AR2Diff
from gtl_lightning.studies.markov import params as study
from gtl_lightning.studies.markov.settings import DIFFERENCES, Markov
from gtl_lightning.studies.tcsm import params as tcsm
from gtl_lightning.studies.tcsm.settings import Tcsm
from gtl_lightning.workspace.params import Params, load_params, overlaid
from gtl_lightning.workspace.settings import ADDRESS, ARCHIVE
from gtl_lightning.workspace.stated import HEIRS

ILL_FORMED = {
    NAME: ("it's", "a/b", "a:b", "models:/x", "", " x", "x" * 101, '"quoted"'),
    TEXT: ("", " ", " x", "x "),
    ARCHIVE: ("", "cs.LG", "a b"),
    HASH: ("", "0" * 63, "G" * 64),
    ADDRESS: ("", "nonsense", "mlflow.db", "http:// x", "://host"),
}


@dataclass(frozen=True)
class Leaf:
    """One parameter: its dotted key, and what one value of it (or one item of a list) may be."""

    key: str
    kind: Any
    bounds: tuple[Any, ...]
    optional: bool
    lists: int  # how many lists it stands in: 0, 1, or 2 for a matrix
    may_be_empty: bool

    def written(self, value: Any) -> str:
        """YAML of a value, in as many lists as the parameter has."""
        text = value if isinstance(value, str) else json.dumps(value)
        return "[" * self.lists + text + "]" * self.lists

    def bound(self, *kinds: type) -> Any:
        found = [getattr(bound, bound.__slots__[0]) for bound in self.bounds if isinstance(bound, kinds)]
        return found[0] if found else None


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[Leaf]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{key}.")
        else:
            yield _leaf(key, field)


def _leaf(key: str, field: FieldInfo) -> Leaf:
    kind, bounds = field.annotation, list(field.metadata)
    may_be_empty = not any(isinstance(bound, MinLen) for bound in bounds)
    optional, lists = False, 0
    while True:
        if get_origin(kind) is Annotated:
            kind, *more = get_args(kind)
            bounds = [one for item in more for one in (item.metadata if isinstance(item, FieldInfo) else [item])]
        elif get_origin(kind) in (Union, types.UnionType):
            kind = next(one for one in get_args(kind) if one is not type(None))
            optional = True
        elif get_origin(kind) is tuple:
            kind, lists = get_args(kind)[0], lists + 1
        else:
            return Leaf(key, kind, tuple(bounds), optional, lists, may_be_empty)


MARKOV, TCSM, AR2DIFF = STUDIES = ("markov/", "tcsm/", "ar2diff/")
"""In front of the keys of a study's own file."""
DIFFUSION = "ar2diff/text.diffusion"
FILES: dict[str, Any] = {
    "": (Params, overlaid, load_params),
    MARKOV: (Markov, study.overlaid, study.load_settings),
    TCSM: (Tcsm, tcsm.overlaid, tcsm.load_settings),
    AR2DIFF: (AR2Diff, ar2diff.overlaid, ar2diff.load_settings),
}
LEAVES = {leaf.key: leaf for prefix, (model, *_) in FILES.items() for leaf in leaves(model, prefix)}
NUMBERS = [key for key, leaf in LEAVES.items() if leaf.kind in (int, float)]
ENDS = [
    key
    for key in NUMBERS
    if LEAVES[key].lists < 2  # a matrix has ends of its own: tests/unit/test_markov_settings.py
    and not (key.startswith(STUDIES) and key.endswith(".also_lr"))  # which has to be empty there
]
BY_PLACE = ("sweep.repeats",)
"""Lists that go with the places of another one, so that a value may stand in them twice."""
BATCHES = [key for key in LEAVES if key.endswith(".batch") and key.split(".")[0] in ("train", "methods")]


def refused(key: str, text: str) -> str:
    """The line that `--set` with this value ends in."""
    (_, overlay, _), key = at_home(key)
    with pytest.raises(UserError) as caught:
        overlay({}, (f"{key}={text}",), "params.yaml")
    return named(str(caught.value), key)


def at_home(key: str) -> tuple[Any, str]:
    """The model, `overlaid` and the loader of the file that a parameter stands in; its key there."""
    prefix = next((study for study in STUDIES if key.startswith(study)), "")
    return FILES[prefix], key.removeprefix(prefix)


def refused_in_file(key: str, text: str, folder: Path) -> str:
    """The line that every command ends in when params.yaml holds this value."""
    (model, _, load), key = at_home(key)
    values = model().model_dump(mode="json")
    section = values
    *parents, last = key.split(".")
    for name in parents:
        section = section[name]
    section[last] = "HERE"
    (folder / "params.yaml").write_text(json.dumps(values).replace('"HERE"', text))
    with pytest.raises(UserError) as caught:
        load(folder / "params.yaml")
    return named(str(caught.value), key)


def named(line: str, key: str) -> str:
    """The line, if it is one and names the key, or the section and in it the key."""
    assert "\n" not in line
    section, _, name = key.rpartition(".")
    assert key in line or (f"{section}: " in line and name in line), line
    return line


def test_there_are_parameters_of_every_kind() -> None:
    kinds = {leaf.kind if isinstance(leaf.kind, type) else get_origin(leaf.kind) for leaf in LEAVES.values()}
    assert kinds == {int, float, bool, str, Literal}
    assert len(LEAVES) > 300


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_has_two_bounds_and_is_refused_outside_of_them(key: str, tmp_path: Path) -> None:
    leaf = LEAVES[key]
    least, above, most, below = (leaf.bound(kind) for kind in (Ge, Gt, Le, Lt))
    assert (least is None) != (above is None), "one lower bound"
    assert (most is None) != (below is None), "one upper bound"
    low, high = least if least is not None else above, most if most is not None else below
    if leaf.kind is int:
        outside = [low - 1, high + 1]
    else:
        outside = [above if above is not None else math.nextafter(least, -math.inf)]
        outside += [below if below is not None else math.nextafter(most, math.inf)]
    wrong = [*outside, ".nan", ".inf", "-.inf", "true", "'5'", "many", *([] if leaf.optional else ["null"])]
    wrong += ["0.5", "1.0"] if leaf.kind is int else []
    for value in wrong:
        refused(key, leaf.written(value))
    refused_in_file(key, leaf.written(outside[0]), tmp_path)
    if not leaf.lists:
        refused(key, "[1]")
        refused(key, "{}")


def companions(key: str, value: Any) -> dict[str, Any]:
    """What has to go along with a value at the end of its range, where parameters have to fit together.

    With a default's value goes what has to go along with it in all that take it.
    """
    section, _, name = key.rpartition(".")
    heirs = [heir for heir, its in HEIRS.items() if its.default == section]
    found = _companions(key, section, name, value)
    return {**found, **{f"{heir}.{other.rpartition('.')[2]}": what for heir in heirs for other, what in found.items()}}


def _companions(key: str, section: str, name: str, value: Any) -> dict[str, Any]:
    beside: dict[str, dict[str, Any]] = {
        "steps": {"warmup": 0, "check_every": 1} if f"{section}.warmup" in LEAVES else {},
        "warmup": {"steps": max(value, 10**6)} if name == "warmup" else {},
        "check_every": {"steps": max(value, 10**6)} if name == "check_every" else {},
        "heads": {"width": 65536} if f"{section}.depth" in LEAVES else {},
        "width": {"heads": 1} if f"{section}.depth" in LEAVES else {},
        "nll_weight": {"bce_weight": 1.0},
    }
    whole: dict[str, dict[str, Any]] = {
        "sampling.positions_per_step": {"tokenizer.length": 65536},
        "sampling.block": {"tokenizer.length": 65536},
        "sampling.block_margin": {"tokenizer.length": 65536},
        "sampling.n_ratio": {"tokenizer.name": "any"},
        "sampling.n_ratio_sequence": {"tokenizer.name": "any"},
        "ablation.n_ratios": {"tokenizer.name": "any"},
        "tokenizer.vocab_size": {"sampling.n_ratio_sequence": 4, "ablation.n_ratios": [4]},
        "evaluation.mauve_buckets": {"evaluation.samples": 10**6},
        "sweep.fractions": {"ablation.fraction": value},
        "ablation.fraction": {"sweep.fractions": [value]},
        "sweep.repeats": {"sweep.fractions": [0.05], "sweep.seeds": list(range(1024))},
        "data.max_source": {"data.min_examples": 1},
        "data.max_target": {"data.min_examples": 1},
        "markov/parts": {"markov/sizes": [10**6], "markov/overlap.n": 10**6},
        "markov/sizes": {"markov/parts": 2},
        "markov/overlap.n": {"markov/parts": 2},
        # Those that say nothing of it themselves take it over.
        "markov/training.warmup": {f"markov/{name}.steps": max(value, 10**6) for name in ("training", *DIFFERENCES)},
        "markov/training.check_every": {
            f"markov/{name}.steps": max(value, 10**6) for name in ("training", *DIFFERENCES)
        },
        "tcsm/law.states": {"tcsm/law.length": 2},
        "tcsm/law.length": {"tcsm/law.states": 2},
        "ar2diff/text.length": {"ar2diff/text.prefix": 1},
        "ar2diff/text.prefix": {"ar2diff/text.length": 4096},
        "ar2diff/text.crossed": {f"{DIFFUSION}.steps": max(value, 10**6), f"{DIFFUSION}.check_every": 1},
        f"{DIFFUSION}.steps": {"ar2diff/text.crossed": 0, f"{DIFFUSION}.check_every": 1, f"{DIFFUSION}.warmup": 0},
        f"{DIFFUSION}.check_every": {"ar2diff/text.crossed": 0, f"{DIFFUSION}.steps": max(value, 10**6)},
        "machine.devices": dict.fromkeys(BATCHES, 65536),
        "machine.accumulate": dict.fromkeys(BATCHES, 65536),
    }
    shares = ("source_val", "source_judge", "target_val", "target_test", "target_judge")
    if section == "data" and name in shares:
        return {f"data.{other}": 0.0 for other in shares if other != name}
    return whole[key] if key in whole else {f"{section}.{other}": what for other, what in beside.get(name, {}).items()}


@pytest.mark.parametrize("key", ENDS)
def test_a_number_is_accepted_at_the_ends_of_its_range(key: str) -> None:
    leaf = LEAVES[key]
    least, above, most, below = (leaf.bound(kind) for kind in (Ge, Gt, Le, Lt))
    low = least if least is not None else math.nextafter(above, math.inf)
    high = most if most is not None else math.nextafter(below, -math.inf)
    for value in map(leaf.kind, (low, high)):
        beside = tuple(f"{at_home(other)[1]}={json.dumps(what)}" for other, what in companions(key, value).items())
        (_, overlay, _), name = at_home(key)
        section = overlay({}, (f"{name}={leaf.written(value)}", *beside), "params.yaml").model_dump(mode="json")
        for part in name.split("."):
            section = section[part]
        assert section == ([value] if leaf.lists else value)


@pytest.mark.parametrize("key", [key for key, leaf in LEAVES.items() if leaf.kind not in (int, float)])
def test_a_word_that_is_none_of_the_choices_is_refused(key: str, tmp_path: Path) -> None:
    leaf = LEAVES[key]
    wrong = ["5", "[]", "{}", *([] if leaf.optional else ["null"])]
    if leaf.kind is bool:
        wrong += ["maybe", "'true'", "1.0"]
    elif get_origin(leaf.kind) is Literal:
        wrong += ["nosuch", str(get_args(leaf.kind)[0]).upper(), "''"]
    else:
        patterns = [bound.pattern for bound in leaf.bounds if getattr(bound, "pattern", None)]
        assert len(patterns) == 1, "a text has a form"
        wrong += [json.dumps(text) for text in ILL_FORMED[patterns[0]]]
    for text in wrong:
        refused(key, leaf.written(text))
    refused_in_file(key, leaf.written(wrong[-1]), tmp_path)


@pytest.mark.parametrize("key", [key for key, leaf in LEAVES.items() if leaf.lists == 1 and key not in BY_PLACE])
def test_a_list_names_a_value_once_and_is_empty_only_where_it_may_be(key: str) -> None:
    leaf = LEAVES[key]
    if leaf.kind in (int, float):
        one = json.dumps(leaf.bound(Le) if leaf.kind is int else 0.5)
    else:
        one = str(get_args(leaf.kind)[0]) if get_origin(leaf.kind) is Literal else "text"
    assert "twice" in refused(key, f"[{one}, {one}]")
    if not leaf.may_be_empty:
        refused(key, "[]")
    refused(key, one)
