"""The weights of a model's folder, by name: safetensors, or a pickle that holds tensors alone; and a model of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gtl_lightning.errors import UserError, reason
from gtl_lightning.networks.families import check_complete, loading, quiet
from gtl_lightning.records import Values, read_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""A model in one file, the better form first; in shards it has an index of the same name."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Name -> tensor on the CPU, as stored.

    A pickle is opened by torch's weights-only reader, which makes tensors and plain containers and nothing else.

    Raises:
        UserError: no weights, a shard that is missing, a file that is damaged or holds more than weights.
    """
    state: dict[str, Tensor] = {}
    for path in _files(folder):
        state |= _safe(path) if path.suffix == ".safetensors" else _pickled(path)
    if not state:
        raise UserError(f"{folder} holds no weights; give a whole checkpoint")
    return state


def _files(folder: Path) -> list[Path]:
    for name in WHOLE:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            index = read_record(folder / f"{name}.index.json", {"weight_map": Values(str)})
            shards = sorted({folder / Path(shard).name for shard in index["weight_map"].values()})
            if missing := [path.name for path in shards if not path.is_file()]:
                raise UserError(
                    f"{folder} lacks {len(missing)} of its {len(shards)} files of weights ({missing[0]}); fetch it "
                    "again, whole"
                )
            return shards
    return sorted(folder.glob("*.safetensors"))


def _safe(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({reason(error)}); fetch it again") from error


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is a pickle that holds more than weights, or is damaged; nothing of it was run: give a checkpoint "
            "in safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no weights by name; give a checkpoint in safetensors")
    return state


def filled(name: str, config: Any, state: dict[str, Tensor], folder: Path, spare: tuple[str, ...] = ()) -> Any:
    """A model of transformers with these weights, in fp32 and eval mode.

    Args:
        name: of the class.
        config: of transformers.
        state: weights by the class's own names.
        folder: where they came from, for messages.
        spare: parts of names that the class has no place for and need none.

    Raises:
        UserError: a weight is missing, left over or of another shape.
    """
    import transformers

    cls: Any = getattr(transformers, name)
    with loading(folder), quiet():
        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            output_loading_info=True,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    check_complete(info, folder, name)
    left = sorted(key for key in info["unexpected_keys"] if not any(part in key for part in spare))
    if spare and left:
        raise UserError(f"{folder} holds weights that a {name} has no place for ({left[0]}); it is another model")
    return cast("PreTrainedModel", model.eval())
