"""A small training run for the tests of `fit`; as a script it is the process that the tests kill."""

import sys
import time

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.modules.fit import fit
from gtl_lightning.networks import BackboneConfig, MaskedDenoiser, seeded

MASK, PAD = 8, 9
CONFIG = BackboneConfig(10, 8, 8, 1, 2, mask_index=MASK, pad_index=PAD, cond_dim=4, dropout=0.2, tied=True)


class Batches(torch.utils.data.Dataset):
    """Counting sequences of random start, some padded; a function of the seed."""

    def __init__(self, seed, count, pause=0.0):
        generator = torch.Generator().manual_seed(seed)
        self.x_0 = (torch.randint(0, 8, (count, 16, 1), generator=generator) + torch.arange(8)) % 8
        self.x_0[:, :4, 6:] = PAD
        self.is_target = torch.arange(16) % 2 == 0
        self.pause = pause

    def __len__(self):
        return len(self.x_0)

    def __getitem__(self, index):
        time.sleep(self.pause)
        return {"x_0": self.x_0[index], "is_target": self.is_target}


class Counting(pl.LightningDataModule):
    """`count` batches an epoch, other ones every epoch."""

    def __init__(self, count, pause=0.0):
        super().__init__()
        self.count, self.pause = count, pause

    def train_dataloader(self):
        return DataLoader(Batches(100 + self.trainer.current_epoch, self.count, self.pause), batch_size=None)

    def val_dataloader(self):
        return DataLoader(Batches(1, 2), batch_size=None)


def module(cls=DenoiserModule, **kwargs):
    with seeded(0):
        network = MaskedDenoiser(CONFIG)
    return cls(network, OptimiserConfig(lr=5e-3, warmup_steps=5, **kwargs), draws=2)


def run(trained, folder, **kwargs):
    """Six checks of five steps."""
    arguments = {"steps": 30, "check_every": 5, "patience": 9, "ema_decay": 0.9, "seed": 3, "precision": "32-true"}
    arguments |= {"accelerator": "cpu", **kwargs}
    data = arguments.pop("data", None) or Counting(arguments["check_every"])
    return fit(trained, data, state_dir=folder, **arguments)


if __name__ == "__main__":
    run(module(), sys.argv[1], data=Counting(5, pause=0.05))
