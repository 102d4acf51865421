"""A trained cell as a folder that stands alone: what sampling from it needs, and nothing that could be executed.

The folder is laid out like the repository (models/, tokens/), so that the same code samples from both. Weights are
safetensors, everything else is JSON or YAML; a list of hashes guards all of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gtl_lightning.config import PARAMS, Params, load_params, write_params
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json, sha256_file, write_json
from gtl_lightning.settings import Evaluation
from gtl_lightning.stages.common import CELLS, MODELS, NETWORK, RESULT, ROW, TOKENS, Cell
from gtl_lightning.stages.corpus import Corpus

MANIFEST = "bundle.json"
LENGTHS = "lengths.json"
KEPT_LENGTHS = 512


def write_bundle(params: Params, cell: Cell, folder: Path) -> dict[str, Any]:
    """Copy what sampling from a cell needs into `folder`; return the manifest.

    Raises:
        UserError: a network of the cell is missing, or the folder cannot be written.
    """
    corpus = Corpus.open(params)
    own = MODELS / cell.name
    files = [own / NETWORK, own / RESULT, TOKENS / "meta.json", CELLS / cell.name / ROW]
    files += [MODELS / "source" / NETWORK] if cell.method.startswith("gtl") else []
    files += [MODELS / "planner" / NETWORK] if params.sampling.planner == "learned" else []
    files += sorted(path for path in (TOKENS / "tokenizer").rglob("*") if path.is_file())
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} does not exist; `dvc repro` makes it")
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path)
    write_params(sampling_params(params), folder / PARAMS)
    train, _ = corpus.target(cell.fraction or 1.0, params.data.min_examples)
    write_json(folder / LENGTHS, [int(length) for length in train.lengths[:KEPT_LENGTHS]])
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


def open_bundle(folder: Path) -> tuple[Params, Cell]:
    """Check a bundle's files; return its parameters and its cell.

    Raises:
        UserError: no bundle, or a file that is missing, changed or unexpected.
    """
    manifest = read_json(folder / MANIFEST)
    expected = manifest["files"] if isinstance(manifest, dict) and "files" in manifest else {}
    found = {
        str(path.relative_to(folder)): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            what = "missing" if name not in found else "not part of it" if name not in expected else "damaged"
            raise UserError(f"registered model: {name} is {what}; register it again (`gtl register`)")
    params = load_params(folder / PARAMS)
    return params, Cell(manifest["method"], manifest["fraction"], manifest["seed"])
