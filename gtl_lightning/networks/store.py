"""Networks on disk: safetensors with the class and its configuration in the header. Loading executes nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from torch import Tensor, nn

from gtl_lightning.core.protocols import Source
from gtl_lightning.errors import UserError, reason
from gtl_lightning.files import load_tensors, save_tensors
from gtl_lightning.networks.block import BackboneConfig, seeded
from gtl_lightning.records import ANY, COUNT, Shape, Within, record
from gtl_lightning.sharing.shareable import WEIGHTS, Shareable, part_of, write_config

T = TypeVar("T", bound=type[nn.Module])
REGISTRY: dict[str, type[nn.Module]] = {}
_LEAST = 1 << 20
CONFIG: Shape = {
    "vocab_size": Within(1, 2**31, whole=True),
    **dict.fromkeys(("length", "width"), Within(1, 2**16, whole=True)),
    **dict.fromkeys(("depth", "heads"), Within(1, 2**10, whole=True)),
    **dict.fromkeys(("mask_index", "pad_index"), Within(-1, 2**31, whole=True)),
    "cond_dim?": COUNT,
    "dropout?": Within(0, 1),
    "tied?": bool,
    "causal?": bool,
}
"""A `BackboneConfig` as it is stored."""


def register(cls: T) -> T:
    """Class decorator: makes a network loadable by its class name."""
    REGISTRY[cls.__name__] = cls
    return cls


class Stored(Shareable):
    """A network of this project as a folder.

    Attributes:
        part: what it is in a folder that holds more.
    """

    part: ClassVar[str]

    def write_to(self, folder: Path) -> None:
        """`model.safetensors`, and `config.json`, which names it."""
        save_network(folder / WEIGHTS, cast(nn.Module, self))
        write_config(folder, {self.part: WEIGHTS})

    @classmethod
    def read_from(cls, folder: Path, denoiser: Source | None = None) -> Self:
        """The part of a folder that is of this class, or of one below it; `denoiser` as in `load_network`."""
        kinds = tuple(known for known in REGISTRY.values() if issubclass(known, cls))
        return cast(Self, load_network(part_of(folder, cls.part), expect=kinds, denoiser=denoiser))


def save_network(path: Path | str, network: nn.Module, meta: dict[str, Any] | None = None) -> None:
    """Write a network's weights, its class and configuration, and `meta` (JSON-able), atomically.

    Raises:
        UserError: the class is not one of this project's, or the folder cannot be written.
    """
    if type(network).__name__ not in REGISTRY:
        raise UserError(f"cannot save a {type(network).__name__}; networks are {', '.join(sorted(REGISTRY))}")
    save_tensors(path, stored(network), {"network": describe(network), "meta": meta or {}})


def load_network(
    path: Path | str,
    expect: type[nn.Module] | tuple[type[nn.Module], ...] | None = None,
    denoiser: Source | None = None,
) -> nn.Module:
    """Rebuild what `save_network` wrote, on the CPU and in eval mode.

    Args:
        path: the file.
        expect: class or classes that will do.
        denoiser: the frozen denoiser, for an `OnDenoiser` (or an ensemble of them): it is not stored with it.

    Raises:
        UserError: missing, truncated, damaged or foreign file, another class than expected, weights that do not fit or
            are not finite, or a denoiser other than the one that the ratio was trained on.
    """
    tensors, header = load_tensors(path)
    description = header.get("network")
    name = description.get("class") if isinstance(description, dict) else None
    if not isinstance(description, dict) or not isinstance(name, str) or name not in REGISTRY:
        raise UserError(f"{path} holds no network of this project (class {name!r}); give a checkpoint made by `gtl`")
    wanted = expect if isinstance(expect, tuple) else (expect,) if expect else ()
    if wanted and name not in {cls.__name__ for cls in wanted}:
        names = " or ".join(cls.__name__ for cls in wanted)
        raise UserError(f"{path} holds a {name}, not a {names}; give the right checkpoint")
    try:
        _check_size(description, sum(tensor.numel() for tensor in tensors.values()), path)
        with seeded(0):
            network = build(description, denoiser)
        fresh = stored(network)
        if fresh.keys() != tensors.keys():
            raise KeyError(f"weights missing or left over: {', '.join(sorted(fresh.keys() ^ tensors.keys())[:3])}")
        if other := [key for key in fresh if fresh[key].dtype != tensors[key].dtype]:
            raise TypeError(f"{other[0]} is {tensors[other[0]].dtype}, not {fresh[other[0]].dtype}")
        network.load_state_dict(tensors, strict=False)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: weights and configuration do not fit ({reason(error)}); train it again") from error
    return network.eval()


def _check_size(description: dict[str, Any], stored: int, path: Path | str) -> None:
    """Refuse sizes of another kind, or for which there are not half the weights, before they take memory.

    Raises:
        UserError: naming the size.
        ValueError: more weights than are stored.
    """
    for member in description.get("members", ()):
        _check_size(member, stored, path)
    if "config" in description:
        config = record(description["config"], path, CONFIG)
        needed = config["width"] * (config["vocab_size"] + config["depth"] * config["width"])
        if needed > 2 * stored + _LEAST:
            raise ValueError(f"a network of {needed} weights and more, and {stored} in the file")


def read_meta(path: Path | str) -> dict[str, Any]:
    """The `meta` given to `save_network`.

    Raises:
        UserError: as `load_network`.
    """
    _, header = load_tensors(path)
    return record(header.get("meta", {}), path, ANY)


def describe(network: nn.Module) -> dict[str, Any]:
    """Class name and configuration of a network, JSON-able. A network that is more than its `config` has a `spec`."""
    spec = getattr(network, "spec", None)
    own = spec() if spec else {"config": asdict(cast(Any, network).config)}
    return {"class": type(network).__name__, **own}


def build(description: dict[str, Any], denoiser: Source | None = None) -> nn.Module:
    """A network of fresh weights from what `describe` gave.

    Raises:
        UserError: it reads a denoiser, and none or another one was given.
    """
    cls = REGISTRY[description["class"]]
    from_spec = getattr(cls, "from_spec", None)
    if from_spec:
        return cast(nn.Module, from_spec(description, denoiser))
    return cls(BackboneConfig(**description["config"]))


def stored(network: nn.Module) -> dict[str, Tensor]:
    """The weights that a checkpoint of a network holds; none of one that stays where it lies and is named."""
    return {} if getattr(network, "origin", None) else unshared(network.state_dict())


def unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without second names: tied weights share their memory, and safetensors stores a piece of it once."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        if value.data_ptr() not in seen:
            kept[name] = value
        seen.add(value.data_ptr())
    return kept
