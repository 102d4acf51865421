"""A model of MLflow's registry, loaded by name: what `load_model` and `gtl sample --model` give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gtl_lightning.core.guidance import Guidance
from gtl_lightning.core.protocols import Source
from gtl_lightning.data.tokenizer import decode
from gtl_lightning.errors import UserError, extra
from gtl_lightning.files import temporary_folder
from gtl_lightning.workspace.bundle import MANIFEST, check_manifest, from_bundle, open_bundle
from gtl_lightning.workspace.params import PARAMS, Params, load_params
from gtl_lightning.workspace.paths import Cell
from gtl_lightning.workspace.sampler import Sampler, at_gamma
from gtl_lightning.workspace.selection import chosen_setting
from gtl_lightning.workspace.text import tokenizer
from gtl_lightning.workspace.versions import fetch_model

BEST = "best"
"""The alias of the best model of the largest share of the target data."""


@dataclass(frozen=True)
class RegisteredModel:
    """A model of the registry, ready for `gtl_lightning.sample`.

    Attributes:
        denoiser: (x_t, t) -> log-probabilities of the clean token.
        guidance: of the strength that validation chose for samples; None for a denoiser without a ratio.
        temperature: that validation chose.
        mask_index: id of the mask.
        length: most tokens.
        cell: what it is: method, fraction, seed.
        tokenizer: from tokens to text and back.
    """

    denoiser: Source
    guidance: Guidance | None
    temperature: float
    mask_index: int
    length: int
    cell: Cell
    tokenizer: Any

    def decode(self, x: Iterable[Tensor]) -> list[str]:
        """Long[b,l] -> texts."""
        return [decode(self.tokenizer, sequence.tolist()) for sequence in x]


def load_model(name: str, tracking_uri: str | None = None) -> RegisteredModel:
    """Load NAME@ALIAS from the registry (`gtl-transfer-ratio@best`); NAME alone means NAME@best.

    Weights come as safetensors and are checked against the manifest's hashes, and the manifest against the registry;
    nothing of the artifact is executed.

    Args:
        name: of the registered model, and its alias.
        tracking_uri: of the tracker; None takes MLFLOW_TRACKING_URI, else params.yaml's, else the default.

    Raises:
        UserError: no such model or alias, an unreachable tracker, a damaged artifact; the extra `pipeline` is missing.
    """
    with extra("load_model", "mlflow"), fetched(name, tracking_uri) as folder:
        params, cell = open_bundle(folder)
        sampler = Sampler.open(params, cell, folder)
        setting = chosen_setting(params, cell, folder)
        return RegisteredModel(
            denoiser=sampler.denoiser,
            guidance=at_gamma(params, sampler.guidance, setting.gamma),
            temperature=setting.temperature,
            mask_index=sampler.corpus.mask_index,
            length=sampler.corpus.length,
            cell=cell,
            tokenizer=tokenizer(folder),
        )


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
