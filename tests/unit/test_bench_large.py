"""The benchmark of a large denoiser, small: it is one of the published layout, is opened in bf16 and stays as it is."""

from pathlib import Path

import torch

from gtl_lightning import load_denoiser
from gtl_lightning.bench.large import Size, measured, random_llada


def test_a_random_llada_is_opened_trained_beside_and_guided(tmp_path: Path) -> None:
    size = Size(width=16, inner=24, blocks=2, heads=2, rows=60, mask=50, shards=2)
    count = random_llada(tmp_path / "model", size)
    denoiser = load_denoiser(tmp_path / "model", dtype=torch.bfloat16)
    weights = list(denoiser.parameters())
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert sum(weight.numel() for weight in weights) == count
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 2
    assert denoiser.mask_index == 50
    found = measured(tmp_path / "model", size, texts=12, length=6, batch=2)
    assert found.keys() == {f"{part}_{unit}" for part in ("open", "step", "sample") for unit in ("gib", "seconds")}
    assert 0 < found["open_gib"] <= found["step_gib"] <= found["sample_gib"]
