"""A shared model, loaded by name: what `load_model` and `gtl sample --model` give of a registry, a folder, a hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gtl_lightning.api.guided import GuidedModel
from gtl_lightning.errors import UserError, extra
from gtl_lightning.files import temporary_folder
from gtl_lightning.sharing.hub import located
from gtl_lightning.sharing.manifest import MANIFEST
from gtl_lightning.workspace.bundle import Origin, check_manifest, from_bundle, open_bundle
from gtl_lightning.workspace.params import PARAMS, Params, load_params
from gtl_lightning.workspace.paths import Cell
from gtl_lightning.workspace.sampler import Sampler, at_gamma
from gtl_lightning.workspace.selection import chosen_setting
from gtl_lightning.workspace.text import tokenizer
from gtl_lightning.workspace.versions import fetch_model

BEST = "best"
"""The alias of the best model of the largest share of the target data."""


@dataclass(frozen=True)
class RegisteredModel(GuidedModel):
    """A model of the registry, of a folder or of a hub, that is a cell's.

    Attributes:
        cell: what it is: method, fraction, seed.
    """

    cell: Cell = field(kw_only=True)


def load_model(name: str, tracking_uri: str | None = None) -> RegisteredModel:
    """Load NAME@ALIAS from the registry (`gtl-transfer-ratio@best`; NAME alone means NAME@best), or what `gtl` shared.

    Weights come as safetensors and are checked against the manifest's hashes, and the manifest against the registry;
    nothing of the artifact is executed.

    Args:
        name: of the registered model, and its alias; else a folder that `gtl export` wrote, or OWNER/NAME[@REVISION]
            of a hub.
        tracking_uri: of the tracker; None takes MLFLOW_TRACKING_URI, else params.yaml's, else the default.

    Raises:
        UserError: no such model or alias, an unreachable tracker or hub, a damaged artifact; the extra `pipeline` is
            missing.
    """
    with extra("load_model", "mlflow"), opened(name, tracking_uri) as (params, cell, folder):
        sampler = Sampler.open(params, cell, folder)
        setting = chosen_setting(params, cell, folder)
        return RegisteredModel(
            denoiser=sampler.denoiser,
            guidance=at_gamma(params, sampler.guidance, setting.gamma),
            length=sampler.corpus.length,
            temperature=setting.temperature,
            tokenizer=tokenizer(folder),
            schedule=params.schedule,
            cell=cell,
        )


@contextmanager
def opened(name: str, tracking_uri: str | None = None) -> Iterator[tuple[Params, Cell, Path]]:
    """A shared model's parameters, its cell, and the folder with its files: a registered one's, or as it lies there.

    Raises:
        UserError: as `fetched`; no bundle; what is wrong with a file of it while it is used.
    """
    if not (os.sep in name or (Path(name) / MANIFEST).is_file()):
        with fetched(name, tracking_uri) as folder:
            yield *open_bundle(folder), folder
        return
    repository, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    origin = Origin(f"model {name}", "export it again (`gtl export`)")
    with located(repository, revision or None) as folder, from_bundle(folder, origin):
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"model {name} is no cell's: it holds no {MANIFEST}; give what `gtl export` or `gtl push` made"
            )
        yield *open_bundle(folder, origin=origin), folder


@contextmanager
def fetched(name: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """A registered model's bundle in a temporary folder, with the manifest that was registered.

    Raises:
        UserError: no such model or alias, the tracker cannot be reached, or another manifest; and what is wrong with a
            file of the bundle while it is used.
    """
    model, at, alias = name.partition("@")
    if not model.strip() or (at and not alias.strip()):
        raise UserError(f"--model {name}: write it as NAME@ALIAS, for example gtl-transfer-ratio@best")
    with temporary_folder() as folder:
        bundle, tags = fetch_model(tracking_uri or _tracking_uri(), model, alias or BEST, folder)
        with from_bundle(bundle):
            check_manifest(bundle, tags.get(MANIFEST))
            yield bundle


def _tracking_uri() -> str:
    return (load_params() if PARAMS.exists() else Params()).tracking.uri
