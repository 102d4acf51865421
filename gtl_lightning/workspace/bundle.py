"""A trained cell as a folder that stands alone: what sampling from it needs, and nothing that could be executed.

The folder is laid out like the repository (models/, tokens/), so that the same code samples from both. Weights are
safetensors, everything else is JSON or YAML; a list of hashes, the manifest, guards all of it, and the registry keeps
the hash of that list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from gtl_lightning.data.origin import read_provenance
from gtl_lightning.errors import UserError
from gtl_lightning.files import copy_file, load_tensors, sha256_file, write_json, write_text
from gtl_lightning.methods import names
from gtl_lightning.records import read_list, read_record
from gtl_lightning.workspace.card import CARD, MLMODEL, mlmodel, model_card
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.frozen import guided_files
from gtl_lightning.workspace.params import PARAMS, Params, load_params, write_params
from gtl_lightning.workspace.paths import CELLS, DATA, MODELS, NETWORK, RESULT, ROW, TOKENS, Cell
from gtl_lightning.workspace.settings import Evaluation

MANIFEST = "bundle.json"
LENGTHS = "lengths.json"
KEPT_LENGTHS = 512
AGAIN = "register it again (`gtl register`)"
HASH = re.compile(r"[0-9a-f]{64}")


def bundle_files(params: Params, cell: Cell) -> list[Path]:
    """The files that sampling from a cell needs, every network among them read whole.

    Raises:
        UserError: one is missing; a network is truncated, damaged, or holds numbers that are not finite.
    """
    own = MODELS / cell.name
    files = [own / NETWORK, own / RESULT, TOKENS / "meta.json", CELLS / cell.name / ROW]
    files += guided_files(cell)
    files += [MODELS / "planner" / NETWORK] if params.sampling.planner == "learned" else []
    files += sorted(path for path in (TOKENS / "tokenizer").rglob("*") if path.is_file())
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} does not exist; `dvc repro` makes it")
        if path.suffix == Path(NETWORK).suffix:
            load_tensors(path)
    return files


def write_bundle(params: Params, cell: Cell, folder: Path) -> dict[str, Any]:
    """Copy what sampling from a cell needs into `folder`; return the manifest.

    Raises:
        UserError: what `bundle_files` refuses, or the folder cannot be written.
    """
    corpus = Corpus.open(params)
    for path in bundle_files(params, cell):
        copy_file(path, folder / path)
    write_params(sampling_params(params), folder / PARAMS)
    train, _ = corpus.target(cell.fraction or 1.0, params.data.min_examples)
    write_json(folder / LENGTHS, [int(length) for length in train.lengths[:KEPT_LENGTHS]])
    write_text(folder / CARD, model_card(cell, read_record(CELLS / cell.name / ROW), read_provenance(DATA)))
    write_text(folder / MLMODEL, mlmodel())
    made = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "method": cell.method,
        "fraction": cell.fraction,
        "seed": cell.seed,
        "files": {str(path.relative_to(folder)): sha256_file(path) for path in made},
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def sampling_params(params: Params) -> Params:
    """What sampling depends on. The rest is as by default, the tracker's address too, which may hold a password."""
    kept = {"profile": params.profile, "schedule": params.schedule, "sampling": params.sampling}
    kept["tokenizer"] = params.tokenizer  # whose length and vocabulary the sampler's settings have to fit
    return Params().model_copy(update={**kept, "evaluation": Evaluation(batch=params.evaluation.batch)})


def open_bundle(folder: Path, beside: Collection[str] = ()) -> tuple[Params, Cell]:
    """Check a bundle's files; return its parameters and its cell.

    The hashes tell damage. Whether the manifest itself is the one that was registered is for `check_manifest`.

    Args:
        folder: the bundle.
        beside: names of files there that are not part of it and are not read.

    Raises:
        UserError: no bundle, a manifest of another shape, or a file that is missing, changed or unexpected.
    """
    try:
        cell, expected = _manifest(folder / MANIFEST)
        found = {}
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise UserError(f"{name} is a link, which no bundle has")
            if path.is_file() and name not in (MANIFEST, *beside):
                found[name] = sha256_file(path)
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                what = "missing" if name not in found else "not part of it" if name not in expected else "damaged"
                raise UserError(f"{name} is {what}")
        if min(read_list(folder / LENGTHS, int), default=0) < 1:
            raise UserError(f"{LENGTHS} names no length, or one below 1")
        return load_params(folder / PARAMS), cell
    except UserError as error:
        raise _of_registered(error, folder) from error


def check_manifest(folder: Path, registered: str | None) -> None:
    """Refuse a manifest that is not the registered one: whoever writes a bundle's files anew can write it anew too.

    Args:
        folder: the bundle.
        registered: its sha256, as the registry has it, which lies elsewhere than the bundle.

    Raises:
        UserError: no manifest, or another; nothing is registered.
    """
    if registered is None:
        raise _of_registered(UserError(f"its version has no tag {MANIFEST}, the hash of its manifest"), folder)
    if sha256_file(folder / MANIFEST) != registered:
        raise UserError(f"{folder / MANIFEST} is not the one that was registered")


@contextmanager
def from_bundle(folder: Path) -> Iterator[None]:
    """What is wrong with a file of an opened bundle is said of the registered model, not of a temporary path.

    Raises:
        UserError: a refusal that names a path in `folder`, so said; any other as it is.
    """
    try:
        yield
    except UserError as error:
        if f"{folder}/" not in str(error):
            raise
        raise _of_registered(error, folder) from error


def _of_registered(error: UserError, folder: Path) -> UserError:
    reason = str(error).replace(f"{folder}/", "").partition("; ")[0]
    return UserError(f"registered model: {reason}; {AGAIN}")


def _manifest(path: Path) -> tuple[Cell, dict[str, str]]:
    """The cell, and file -> hash.

    Raises:
        UserError: a key that is missing or of another type, a method that does not exist, a path that leads elsewhere.
    """
    manifest = read_record(path, {"method": str, "fraction": float, "seed": int, "files": dict})
    method, fraction, seed = manifest["method"], manifest["fraction"], manifest["seed"]
    known = names()
    if method not in known:
        raise UserError(f"{MANIFEST}: method {method!r} is none of {', '.join(known)}")
    if not 0 < fraction <= 1 or seed < 0:
        raise UserError(f"{MANIFEST}: fraction {fraction} and seed {seed} must be a share and at least 0")
    for name, value in manifest["files"].items():
        plain = PurePosixPath(name)
        if not plain.parts or plain.is_absolute() or ".." in plain.parts or str(plain) != name or "\\" in name:
            raise UserError(f"{MANIFEST}: {name!r} is no path within the bundle")
        if not isinstance(value, str) or not HASH.fullmatch(value):
            raise UserError(f"{MANIFEST}: the hash of {name} is none")
    return Cell(method, fraction, seed), manifest["files"]
