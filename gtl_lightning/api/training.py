"""What a training on one's own texts stands on: a method's settings, a network's size, a folder, a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pydantic import ValidationError
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import nn

from gtl_lightning.api.reading import device_of
from gtl_lightning.core.callables import evaluating
from gtl_lightning.core.protocols import Source
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.errors import UserError
from gtl_lightning.fields import Network
from gtl_lightning.files import digest, temporary_folder
from gtl_lightning.methods import METHODS
from gtl_lightning.methods.method import Settings
from gtl_lightning.networks import BackboneConfig, Ids, Plain

PROBED = 4
"""Texts by whose law a function is told from another."""


def backbone_of(network: Network, vocab_size: int, ids: Ids, length: int) -> BackboneConfig:
    """The configuration of a network over these tokens."""
    return BackboneConfig(
        vocab_size, length, mask_index=ids.mask_index, pad_index=ids.pad_index, **network.model_dump()
    )


def settings_of(method: str, settings: dict[str, Any], training: dict[str, Any]) -> Any:
    """A method's settings: its own, what is given in their place, and of `training` what is not None.

    Raises:
        UserError: no ratio of that name, a setting that it has not, a value out of range.
    """
    ratios = [name for name, one in METHODS.items() if one.kind == "ratio"]
    if method not in ratios:
        raise UserError(f"method = {method!r} is no ratio; choose one of {', '.join(ratios)}")
    default: Settings = METHODS[method].settings
    given = {key: value for key, value in training.items() if value is not None}
    train = default.train.model_dump() | given
    if isinstance(steps := given.get("steps"), int):  # what fits the method's own length is cut to the one given
        cut = {"warmup": min(train["warmup"], steps // 4), "check_every": min(train["check_every"], steps)}
        train |= {key: value for key, value in cut.items() if key not in given}
    try:
        return type(default).model_validate({**default.model_dump(), "train": train, **settings})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part != "train")
        raise UserError(f"{method}: {key or 'its settings'}: {first['msg'].removeprefix('Value error, ')}") from error


def accelerator_of(denoiser: object, accelerator: str) -> str:
    """Lightning's word; a function's weights stay where they are."""
    if accelerator != "auto" or isinstance(denoiser, nn.Module):
        return accelerator
    return "gpu" if device_of(denoiser).type == "cuda" else "cpu"


def check_lightning(logger: Any, callbacks: Any, trainer: Any) -> None:
    """Raise UserError for what Lightning would stumble over once it trains."""
    loggers = logger if isinstance(logger, list | tuple) else [logger]
    if not all(one is None or isinstance(one, bool | Logger) for one in loggers):
        raise UserError(f"logger is a {type(logger).__name__}; give one of Lightning's, or None")
    if not isinstance(callbacks, list | tuple) or not all(isinstance(one, Callback) for one in callbacks):
        raise UserError("callbacks must be a list of Lightning's callbacks")
    if not isinstance(trainer, pl.Trainer) and not callable(trainer):
        raise UserError(f"trainer is a {type(trainer).__name__}; give a Trainer, or a function that makes one")


def identity_of(denoiser: Source, said: Mapping[str, str], texts: Mapping[str, TokenDataset]) -> dict[str, str]:
    """What a training is of, part by part, as hashes of content: state of another one is not to be gone on from.

    A function has no weights to be told by: what it gives for a few texts, every other token masked, stands for it. So
    it does beside the weights of a module that is none of this project's: attributes of it may change what it gives.
    """
    found = {**said, "denoiser": denoiser.fingerprint()}
    for name, each in texts.items():
        found[name] = digest([hash_of(each.flat), hash_of(torch.from_numpy(each.lengths)), each.pad_index])
    if isinstance(denoiser, Plain):
        x_t = texts["target_texts"].batch(range(min(PROBED, len(texts["target_texts"])))).to(device_of(denoiser))
        x_t[:, ::2] = denoiser.mask_index
        with torch.no_grad(), evaluating(denoiser.network):
            given = hash_of(denoiser(x_t, torch.full((len(x_t),), 0.5, device=x_t.device)))
        module = isinstance(denoiser.network, nn.Module)
        found["denoiser"] = digest([denoiser.fingerprint(), given]) if module else given
    return found


def hash_of(values: torch.Tensor) -> str:
    """Of the content of a tensor."""
    return sha256(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


@contextmanager
def staying(network: object) -> Iterator[torch.device]:
    """Yield where a network is; a module is put back there."""
    home = device_of(network)
    try:
        yield home
    finally:
        if isinstance(network, nn.Module) and device_of(network) != home:
            network.to(home)


@contextmanager
def fit_folder(folder: Path | str | None) -> Iterator[Path]:
    """Where training keeps its state: the folder, or one that is gone afterwards."""
    if folder is not None:
        yield Path(folder)
        return
    with temporary_folder() as temporary:
        yield temporary
