"""A denoiser trained under uniform noise: near the exact posterior, and guided to another chain."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from gtl_lightning import Guidance, TokenRatio
from gtl_lightning.core.continuous import sample_continuous
from gtl_lightning.core.noise import Uniform
from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.errors import UserError
from gtl_lightning.laws.chains import MarkovChain, paper_chain
from gtl_lightning.laws.exact import ExactRatio
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.fit import fit
from gtl_lightning.modules.uniform import UniformDenoiserModule
from gtl_lightning.networks import UniformDenoiser
from gtl_lightning.networks.block import NO_PAD, BackboneConfig, seeded

V, LENGTH = 3, 4
SOURCE, TARGET = paper_chain(0.6, V), paper_chain(0.2, V)


class Chains(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(10 + self.trainer.current_epoch)
        return DataLoader([{"x_0": SOURCE.sample(256, LENGTH, generator)} for _ in range(50)], batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([{"x_0": SOURCE.sample(1000, LENGTH, torch.Generator().manual_seed(9))}], batch_size=None)


@pytest.mark.parametrize(("mask", "pad"), [(0, NO_PAD), (1, 3), (3, 1)])
def test_other_places_of_mask_and_padding_are_refused(mask: int, pad: int) -> None:
    """The noise takes the first ids for tokens: it would draw the mask and never the last token."""
    config = BackboneConfig(4, LENGTH, 8, 1, 2, mask_index=mask, pad_index=pad, cond_dim=8)
    module = UniformDenoiserModule(UniformDenoiser(config), OptimiserConfig())
    with pytest.raises(UserError, match="mask and padding must be the last ids"):
        module.held_out_loss({"x_0": torch.full((2, LENGTH), 2)}, torch.Generator())


def test_it_learns_the_posterior_and_can_be_guided(tmp_path: object) -> None:
    config = BackboneConfig(V + 1, LENGTH, 24, 1, 2, mask_index=V, pad_index=NO_PAD, cond_dim=16)
    with seeded(0):
        module = UniformDenoiserModule(UniformDenoiser(config), OptimiserConfig(lr=8e-3, warmup_steps=20))
    result = fit(
        module,
        Chains(),
        steps=400,
        check_every=50,
        patience=9,
        state_dir=f"{tmp_path}",
        precision="32-true",
        ema_decay=0.98,
        accelerator="cpu",
        progress=False,
    )
    entropy = SOURCE.entropy(LENGTH) / LENGTH
    assert entropy - 0.03 < result.best_score < entropy + 0.05
    network = module.network.eval()

    t = torch.full((500,), 0.4)
    x_t = SOURCE.sample(500, LENGTH, torch.Generator().manual_seed(2))
    exact = SOURCE.posterior(x_t, LogLinear().alpha(t.double()))[..., :V].exp()
    with torch.no_grad():
        learned = network(x_t, t)[..., :V].exp()
    assert float((exact - learned).abs().sum(-1).mean() / 2) < 0.05

    ratio = TokenRatio(lambda x, times: ExactRatio(SOURCE, TARGET, LogLinear()).token(x, times.double()).float())
    for guidance, chain in ((None, SOURCE), (Guidance(ratio), TARGET)):
        generator = torch.Generator().manual_seed(3)
        x = sample_continuous(
            network, Uniform(V), batch=2000, length=LENGTH, steps=60, guidance=guidance, generator=generator
        )
        diagonal = MarkovChain.fit(x, V).transition.diagonal().mean()
        assert abs(float(diagonal - chain.transition[0, 0])) < 0.05
