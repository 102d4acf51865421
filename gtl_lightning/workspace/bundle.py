"""A trained cell as a folder that stands alone: what sampling from it needs, and nothing that could be executed.

The folder is laid out like the repository (models/, tokens/), so that the same code samples from both. Weights are
safetensors, everything else is JSON or YAML; a list of hashes, the manifest, guards all of it, and the registry keeps
the hash of that list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtl_lightning.api.guided import said_of
from gtl_lightning.errors import UserError
from gtl_lightning.files import copy_file, load_tensors, sha256_file, write_json, write_text
from gtl_lightning.methods import names
from gtl_lightning.records import read_list
from gtl_lightning.sharing.card import CARD, Card
from gtl_lightning.sharing.manifest import MANIFEST, check_files, read_manifest, write_manifest
from gtl_lightning.sharing.shareable import DENOISER, RATIO, TOKENIZER, write_config
from gtl_lightning.workspace.card import MLMODEL, mlmodel
from gtl_lightning.workspace.frozen import denoiser_path, guided_files
from gtl_lightning.workspace.params import PARAMS, Params, load_params, write_params
from gtl_lightning.workspace.paths import CELLS, LENGTHS, MODELS, NETWORK, RESULT, ROW, TOKENS, Cell, changed_since
from gtl_lightning.workspace.sampler import Sampler, at_gamma
from gtl_lightning.workspace.selection import chosen_setting
from gtl_lightning.workspace.settings import Evaluation

KEPT_LENGTHS = 512


@dataclass(frozen=True)
class Origin:
    """Where a bundle comes from: how it is called, and what makes it anew."""

    name: str
    again: str

    def said(self, error: UserError, folder: Path) -> UserError:
        """What is wrong with a file of it, said of the model."""
        reason = str(error).replace(f"{folder}/", "").partition("; ")[0]
        return UserError(f"{self.name}: {reason}; {self.again}")


REGISTERED = Origin("registered model", "register it again (`gtl register`)")


def bundle_files(params: Params, cell: Cell) -> list[Path]:
    """The files that sampling from a cell needs, every network among them read whole.

    Raises:
        UserError: one is missing; a network is truncated, damaged, or holds numbers that are not finite; the cell was
            measured with another.
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
    if (other := changed_since(cell)) is not None:
        raise UserError(
            f"{other} is another network than {CELLS / cell.name / ROW} was measured with; measure it again "
            f"(`dvc repro`, or `gtl evaluate {cell.method} --fraction {cell.fraction} --seed {cell.seed}`)"
        )
    return files


def write_bundle(params: Params, cell: Cell, folder: Path, card: Card) -> dict[str, Any]:
    """Copy what sampling from a cell needs into `folder`; return the manifest.

    Raises:
        UserError: what `bundle_files` refuses, or the folder cannot be written.
    """
    for path in bundle_files(params, cell):
        copy_file(path, folder / path)
    sampler = Sampler.open(params, cell)
    write_params(sampling_params(params), folder / PARAMS)
    train, _ = sampler.corpus.target(cell.fraction or 1.0, params.data.min_examples)
    write_json(folder / LENGTHS, [int(length) for length in train.lengths[:KEPT_LENGTHS]])
    _write_config(params, sampler, cell, folder)
    write_text(folder / CARD, card.markdown())
    write_text(folder / MLMODEL, mlmodel())
    return write_manifest(folder, {"method": cell.method, "fraction": cell.fraction, "seed": cell.seed})


def _write_config(params: Params, sampler: Sampler, cell: Cell, folder: Path) -> None:
    """What `GuidedModel.from_pretrained` reads: the same networks, strength and temperature as the command line's."""
    setting = chosen_setting(params, cell, folder)
    guidance = at_gamma(params, sampler.guidance, setting.gamma)
    parts = {DENOISER: denoiser_path(cell).as_posix(), TOKENIZER: (TOKENS / "tokenizer").as_posix()}
    if guidance is not None:
        parts[RATIO] = (MODELS / cell.name / NETWORK).as_posix()
    write_config(folder, parts, **said_of(guidance, sampler.corpus.length, setting.temperature, params.schedule))


def sampling_params(params: Params) -> Params:
    """What sampling depends on. The rest is as by default, the tracker's address too, which may hold a password."""
    kept = {"profile": params.profile, "schedule": params.schedule, "sampling": params.sampling}
    kept["tokenizer"] = params.tokenizer  # whose length and vocabulary the sampler's settings have to fit
    return Params().model_copy(update={**kept, "evaluation": Evaluation(batch=params.evaluation.batch)})


def open_bundle(folder: Path, beside: Collection[str] = (), origin: Origin = REGISTERED) -> tuple[Params, Cell]:
    """Check a bundle's files; return its parameters and its cell.

    The hashes tell damage. Whether the manifest itself is the one that was registered is for `check_manifest`.

    Args:
        folder: the bundle.
        beside: names of files there that are not part of it and are not read.
        origin: where it comes from, for people.

    Raises:
        UserError: no bundle, a manifest of another shape, or a file that is missing, changed or unexpected.
    """
    try:
        manifest = read_manifest(folder, {"method": str, "fraction": float, "seed": int})
        cell = _cell(manifest)
        check_files(folder, manifest["files"], beside)
        if min(read_list(folder / LENGTHS, int), default=0) < 1:
            raise UserError(f"{LENGTHS} names no length, or one below 1")
        return load_params(folder / PARAMS), cell
    except UserError as error:
        raise origin.said(error, folder) from error


def check_manifest(folder: Path, registered: str | None) -> None:
    """Refuse a manifest that is not the registered one: whoever writes a bundle's files anew can write it anew too.

    Args:
        folder: the bundle.
        registered: its sha256, as the registry has it, which lies elsewhere than the bundle.

    Raises:
        UserError: no manifest, or another; nothing is registered.
    """
    if registered is None:
        raise REGISTERED.said(UserError(f"its version has no tag {MANIFEST}, the hash of its manifest"), folder)
    if sha256_file(folder / MANIFEST) != registered:
        raise UserError(f"{folder / MANIFEST} is not the one that was registered")


@contextmanager
def from_bundle(folder: Path, origin: Origin = REGISTERED) -> Iterator[None]:
    """What is wrong with a file of an opened bundle is said of the model, not of a temporary path.

    Raises:
        UserError: a refusal that names a path in `folder`, so said; any other as it is.
    """
    try:
        yield
    except UserError as error:
        if f"{folder}/" not in str(error):
            raise
        raise origin.said(error, folder) from error


def _cell(manifest: Mapping[str, Any]) -> Cell:
    """The cell that a manifest names.

    Raises:
        UserError: a method that does not exist, a share or a seed that is none.
    """
    method, fraction, seed = manifest["method"], manifest["fraction"], manifest["seed"]
    known = names()
    if method not in known:
        raise UserError(f"{MANIFEST}: method {method!r} is none of {', '.join(known)}")
    if not 0 < fraction <= 1 or seed < 0:
        raise UserError(f"{MANIFEST}: fraction {fraction} and seed {seed} must be a share and at least 0")
    return Cell(method, fraction, seed)
