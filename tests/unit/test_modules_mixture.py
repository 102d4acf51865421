"""The mixture of `refinemix`: where each domain's noise levels lie, what is minimised, and its limits."""

from __future__ import annotations

import pytest
import torch

from gtl_lightning.core.schedule import schedule
from gtl_lightning.errors import UserError
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.modules.mixture import MixtureModule
from gtl_lightning.networks import MaskedDenoiser, seeded
from gtl_lightning.networks.block import BackboneConfig

CONFIG = BackboneConfig(vocab_size=12, length=6, width=16, depth=1, heads=2, mask_index=11, pad_index=0)


def network() -> MaskedDenoiser:
    with seeded(0):
        return MaskedDenoiser(CONFIG)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 400) -> dict[str, torch.Tensor]:
    x_0 = torch.randint(1, 11, (size, 6), generator=noise(1))
    return {"x_0": x_0, "is_target": torch.arange(size) % 2 == 0}


@pytest.mark.parametrize("name", ["loglinear", "cosine", "polynomial"])
def test_source_texts_are_masked_beyond_t_max_and_count_by_what_they_cover(name: str) -> None:
    """Above t_max a level is as likely for either domain: density 1 / (1 - start) times weight 1 - start."""
    alpha = schedule(name)
    module = MixtureModule(network(), schedule=alpha, t_max=0.8)
    is_target = batch(4000)["is_target"]
    t, weight = module.levels(is_target, noise())
    share = 1 - alpha.alpha(t.double())
    assert (share[~is_target] >= 0.8 - 1e-6).all()
    assert share[is_target].min() < 0.1
    assert (weight[is_target] == 1).all()
    start = float(alpha.inverse(torch.tensor([0.2], dtype=torch.float64)))
    torch.testing.assert_close(weight[~is_target], torch.full((2000,), 1 - start))
    late = t[is_target] > start
    mass = weight[~is_target].sum() / late.sum()
    assert abs(mass - 1) < 0.05


def test_with_t_max_near_one_only_the_target_is_left() -> None:
    """Fine-tuning's loss on the target texts: the mean over many noises, whose spread bounds what may lie between."""
    examples = batch()
    target = {"x_0": examples["x_0"][examples["is_target"]]}
    mixture, plain = MixtureModule(network(), t_max=1 - 1e-9), DenoiserModule(network())
    with torch.no_grad():
        found = torch.tensor([mixture.loss(examples, noise(seed)) for seed in range(200)])
        wanted = torch.tensor([plain.loss(target, noise(seed)) for seed in range(200)])
    error = (found.var() / 200 + wanted.var() / 200).sqrt()
    assert abs(found.mean() - wanted.mean()) < 5 * error
    assert error < 0.05 * wanted.mean()


def test_the_score_is_the_targets_alone() -> None:
    """Methods are selected on the same score: that of fine-tuning on the same held-out texts and noise."""
    mixture, plain = MixtureModule(network(), t_max=0.7), DenoiserModule(network())
    target = batch()["x_0"][batch()["is_target"]]
    found, wanted = mixture.held_out_loss(batch(), noise(3)), plain.held_out_loss({"x_0": target}, noise(3))
    assert found[0] == wanted[0]
    assert found[1] == wanted[1]


@pytest.mark.parametrize("t_max", [0.0, 1.0, -0.5, float("nan")])
def test_a_level_out_of_range_is_named(t_max: float) -> None:
    with pytest.raises(UserError, match="t_max"):
        MixtureModule(network(), t_max=t_max)
