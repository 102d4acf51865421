"""What a cell cost, as the report has it: sums, what is kept, what was read, and passes as they are counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gtl_lightning.core.protocols import Source
from gtl_lightning.files import load_tensors, read_json
from gtl_lightning.methods import METHODS
from gtl_lightning.stages.train import train_cell
from gtl_lightning.workspace.costs import COLUMNS, training_costs
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import Cell
from gtl_lightning.workspace.sampler import Sampler
from tests.pipeline.conftest import inside, tiny
from tests.pipeline.test_methods import everything


def rows(trained: Path) -> dict[tuple[str, float | None], dict[str, Any]]:
    found = read_json(trained / "reports/transfer.json")
    return {(row["method"], row["fraction"]): row for row in found}


def test_every_trained_cell_says_what_it_cost(trained: Path) -> None:
    found = rows(trained)
    assert all(found["source", None][column] is None for column in COLUMNS)
    for (method, fraction), row in found.items():
        assert row["denoiser_passes"] > 0
        if fraction is None:
            continue
        parts = [row[column] for column in ("fit_seconds", "prepare_seconds", "needs_seconds")]
        assert row["cost_seconds"] == pytest.approx(sum(parts)) and row["fit_seconds"] > 0
        assert row["kept_bytes"] == 4 * row["trainable_parameters"]
        assert row["peak_bytes"] is None or row["peak_bytes"] >= 0
        assert row["lr"] == 2e-3
        points = read_json(trained / "reports/curves.json")
        (point,) = (one for one in points if (one["method"], one["fraction"]) == (method, fraction))
        for column in ("kept_bytes", "cost_seconds", "denoiser_passes", "ratio_passes"):
            assert point[column] == pytest.approx(row[column]), "one seed: the mean is the row's"


def test_what_a_domain_needs_beside_the_source_is_told(trained: Path) -> None:
    """A full copy is the file; LoRA is kept as its two thin matrices, though it samples as a whole network."""
    found = rows(trained)
    tensors, _ = load_tensors(trained / "models/finetune-0.3-0/network.safetensors")
    whole = sum(value.numel() * value.element_size() for value in tensors.values())
    assert found["finetune", 0.3]["kept_bytes"] == whole
    lora, _ = load_tensors(trained / "models/lora-0.3-0/network.safetensors")
    assert sum(value.numel() * value.element_size() for value in lora.values()) == whole
    assert found["lora", 0.3]["kept_bytes"] < whole
    assert found["gtl-warm", 0.3]["kept_bytes"] == 2 * whole, "two members"


def test_what_a_method_reads_is_charged_to_it_and_to_no_other(trained: Path) -> None:
    """The classifier, where texts are borrowed by it; fine-tuning's own time, where its denoiser is guided."""
    found = rows(trained)
    classifier = read_json(trained / "runs/models/classifier-0.3-0/clean.json")["compute_seconds"]
    assert classifier > 0
    assert found["gtl-warm", 0.3]["needs_seconds"] == pytest.approx(classifier), "it borrows"
    assert found["gtl", 0.3]["needs_seconds"] == found["finetune", 0.3]["needs_seconds"] == 0


def test_the_cost_of_a_denoiser_that_is_guided_is_in_it(trained: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    with inside(workspace):
        train_cell(everything(), "gtl-finetuned", 0.3, 0)
        costs = training_costs(Cell("gtl-finetuned", 0.3, 0))
        denoiser = read_json(Path("runs/models/finetune-0.3-0/result.json"))
    assert costs["needs_seconds"] == denoiser["compute_seconds"] > 0


@pytest.mark.parametrize("method", ["finetune", "gtl", "gtl-head", "gtl-warm", "gtl-sequence-gkl"])
@pytest.mark.parametrize("block", [None, 3])
def test_passes_are_those_that_a_run_takes(method: str, block: int | None, trained: Path) -> None:
    """Counted at the encoders themselves, in sequences passed over, for texts of several lengths."""
    lengths, counted = [8, 8, 5, 7], {"denoiser": 0, "ratio": 0}
    with inside(trained):
        params = tiny("sampling.positions_per_step=2", f"sampling.block={'null' if block is None else block}")
        sampler = Sampler.open(params, Cell(method, 0.3, 0))
        count(sampler, counted)
        with torch.no_grad():
            sampler.draw(params, lengths, guidance=sampler.guidance, seed=0)
        told = sampler.passes(params, lengths, sampler.guidance)
    assert told["denoiser_passes"] == counted["denoiser"] / len(lengths)
    assert told["ratio_passes"] == counted["ratio"] / len(lengths)
    assert (told["ratio_passes"] > 0) == (method not in ("finetune", "gtl-head"))


def count(sampler: Sampler, counted: dict[str, int]) -> None:
    """Let every backbone of a sampler count the sequences that it passes over."""

    def counting(name: str) -> Callable[..., None]:
        def before(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            counted[name] += len(inputs[0])

        return before

    network: Any = sampler.denoiser
    network.backbone.register_forward_pre_hook(counting("denoiser"))
    if sampler.guidance is not None:
        ratio: Any = sampler.guidance.ratio.f
        for module in ratio.modules():
            if type(module).__name__ == "Backbone":
                module.register_forward_pre_hook(counting("ratio"))


def test_averages_of_two_start_from_the_fine_tuned_denoiser_itself(trained: Path, tmp_path: Path) -> None:
    """The first member is the cell's fine-tuning, weight by weight, and each member costs as much."""
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    with inside(workspace):
        params: Params = everything()
        train_cell(params, "finetune-two", 0.3, 0)
        train_cell(params, "finetune-averaged", 0.3, 0)
        one, two, mixed = (
            read_json(Path("models") / f"{name}-0.3-0" / "result.json")
            for name in ("finetune", "finetune-two", "finetune-averaged")
        )
        network: Any = Sampler.open(params, Cell("finetune-two", 0.3, 0)).guidance.ratio.f  # type: ignore[union-attr]
        tuned, _ = load_tensors(Path("models/finetune-0.3-0/network.safetensors"))
    first, second = (member.shifted.state_dict() for member in network.members)
    assert isinstance(network.denoiser, Source)
    for name, weight in tuned.items():
        assert torch.equal(first[name], weight), name
    assert any(not torch.equal(first[name], second[name]) for name in tuned)
    assert two["steps"] > one["steps"]
    assert two["kept_bytes"] == 2 * one["kept_bytes"] and mixed["kept_bytes"] == one["kept_bytes"]
    alphas = {f"alpha-{alpha:g}" for alpha in METHODS["finetune-averaged"].settings.model_dump()["alphas"]}
    assert set(mixed["tried"]) == {"network", *alphas}
    assert mixed["best_score"] == min(score for name, score in mixed["tried"].items() if name in alphas)
    assert mixed["tried"]["alpha-1"] == pytest.approx(one["best_score"], rel=1e-6), "fine-tuning itself"
