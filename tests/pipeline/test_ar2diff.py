"""The kind of source `ar2diff` in the pipeline: what its knobs do, what is kept, and that a cell takes it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from gtl_lightning.networks import CausalLM, MaskedDenoiser, load_network
from gtl_lightning.stages.train import train_causal, train_cell, train_source
from gtl_lightning.workspace.corpus import load_denoiser
from gtl_lightning.workspace.paths import CAUSAL
from tests.pipeline.conftest import inside, tiny

KIND = "source.kind=ar2diff"


def source(*change: str) -> MaskedDenoiser:
    train_source(tiny(KIND, *change))
    return cast(MaskedDenoiser, load_denoiser("source"))


def test_its_knobs_are_kept_and_methods_take_it(tokenised: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(tokenised, tmp_path / "workspace"))
    with inside(workspace):
        train_causal(tiny(KIND))
        causal = cast(CausalLM, load_network(CAUSAL, expect=CausalLM))
        shifted = source()
        assert shifted.config.shift and not shifted.config.causal
        assert shifted.state_dict().keys() == causal.state_dict().keys()
        drift = torch.cat([(shifted.state_dict()[k] - v).flatten() for k, v in causal.state_dict().items()])
        scale = torch.cat([v.flatten() for v in causal.state_dict().values()])
        assert 0 < drift.norm() < 0.5 * scale.norm()  # it went on from there
        for method in ("finetune", "gtl-head"):
            train_cell(tiny(KIND), method, 0.3, 0)
        tuned: Any = load_denoiser("finetune-0.3-0")
        assert tuned.config.shift
        assert not source("source.ar2diff.shift=false").config.shift
        annealed = source("source.ar2diff.anneal=1.0")
        assert annealed.fingerprint() != shifted.fingerprint()
        assert source().fingerprint() == shifted.fingerprint()
        train_causal(tiny(KIND, "source.ar2diff.prefix_lm=true"))
        assert cast(CausalLM, load_network(CAUSAL, expect=CausalLM)).fingerprint() != causal.fingerprint()


@pytest.mark.parametrize(
    ("key", "message"),
    [("anneal=1.5", "less than or equal to 1"), ("anneal=-0.1", "greater than"), ("shift=1", "bool")],
)
def test_a_knob_out_of_range_is_refused(key: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        tiny(f"source.ar2diff.{key}")
