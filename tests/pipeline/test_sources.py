"""Every kind of source of the registry: it says what it is, trains, and what it leaves is a denoiser that samples.

The kind that trains nothing is in test_hub_source.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gtl_lightning import sample
from gtl_lightning.files import read_json
from gtl_lightning.sources import SOURCES, SourceKind
from gtl_lightning.stages.train import train_causal, train_source
from gtl_lightning.workspace.closure import ROOT
from gtl_lightning.workspace.corpus import load_denoiser
from gtl_lightning.workspace.paths import CAUSAL, RESULT
from tests.pipeline.conftest import inside, tiny


def test_every_file_of_a_kind_is_found() -> None:
    files = {path.stem for path in (ROOT / "gtl_lightning/sources").glob("*.py")} - {"__init__", "kind"}
    assert {kind.recipe.__module__.rpartition(".")[2] for kind in SOURCES.values()} == files


@pytest.mark.parametrize("kind", SOURCES.values(), ids=list(SOURCES))
def test_a_kind_says_what_it_is(kind: SourceKind) -> None:
    assert kind.help.endswith(".")
    assert f"`{kind.name}`" in (ROOT / "docs/method.md").read_text(), "every kind has its paragraph in the documents"
    assert type(kind.settings).model_validate(kind.settings.model_dump()) == kind.settings


@pytest.mark.parametrize("name", [name for name, kind in SOURCES.items() if kind.trains])
def test_a_kind_trains_and_samples(name: str, tokenised: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(tokenised, tmp_path / "workspace"))
    params = tiny(f"source.kind={name}")
    with inside(workspace):
        train_causal(params)
        assert CAUSAL.exists() == SOURCES[name].reads_causal
        assert SOURCES[name].reads_causal or "reads no causal model" in read_json(CAUSAL.parent / RESULT)["untrained"]
        train_source(params)
        denoiser = load_denoiser("source")
        drawn = sample(
            denoiser, batch=3, length=8, mask_index=denoiser.mask_index, generator=torch.Generator().manual_seed(0)
        )
    assert drawn.shape == (3, 8)
    assert (drawn != denoiser.mask_index).all()
