"""What a training on one's own texts stands on: a method's settings, a network's size, a folder, a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from gtl_lightning.api.reading import device_of
from gtl_lightning.errors import UserError
from gtl_lightning.fields import Network
from gtl_lightning.files import temporary_folder
from gtl_lightning.methods import METHODS
from gtl_lightning.methods.method import Settings
from gtl_lightning.networks import BackboneConfig, Ids


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
