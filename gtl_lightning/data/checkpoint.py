"""A pretrained decoder's folder, hub name or GGUF file: where it lies, what is refused of it, what its ids are for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.data.hub import at_revision, endpoint, hub_reachable, quiet, refusals, refuse_code
from gtl_lightning.data.tokenizer import fast_tokenizer
from gtl_lightning.errors import UserError
from gtl_lightning.files import decoded
from gtl_lightning.inputs import check_regular, read_text
from gtl_lightning.records import Values, read_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEEDED = ("*.json", "*.safetensors", "*.model", "*.txt")
"""Files that are fetched from a hub: no pickle and no code among them."""
RESERVED = re.compile(r"reserved|unused|dummy|extra_id", re.IGNORECASE)
NEW = {"mask": "<|mask|>", "pad": "<|pad|>"}
"""What an id is called that no token had."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on this disk.

    Attributes:
        name: as it was asked for; of a hub's, with its revision.
        folder: where its files lie.
        gguf: the file in it that is all of it; None where the folder is transformers' own form.
    """

    name: str
    folder: Path
    gguf: str | None = None

    @property
    def files(self) -> list[Path]:
        """All that is read of it: configuration, tokenizer and weights."""
        if self.gguf:
            return [self.folder / self.gguf]
        return sorted(path for kind in NEEDED for path in self.folder.glob(kind) if path.is_file())


def checkpoint(name: str, revision: str | None = None, *, pickled: bool = False) -> Checkpoint:
    """The model of a folder, a GGUF file or a hub; fetched from there if it is not on this disk. Nothing is executed.

    Args:
        name: a folder, a GGUF file, or OWNER/NAME of a hub, which may say its revision, OWNER/NAME@REVISION.
        revision: of a hub's: branch, tag or commit; None is what the cache has, else the main branch.
        pickled: whether a `pytorch_model.bin` in a folder will do, where its reader takes tensors alone. None is
            fetched from a hub.

    Raises:
        UserError: nothing of that name, a hub that cannot be reached, code of its own, no model, weights in a pickle
            alone, a GGUF file without the package that reads it.
    """
    if not name.strip():
        raise UserError("the name of the model is empty; give a folder, a GGUF file, or OWNER/NAME of a hub")
    if name.endswith(".gguf"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name} does not exist; give a GGUF file, a folder, or OWNER/NAME of a hub")
        check_gguf(name)
        return Checkpoint(name, path.parent, path.name)
    here = Path(name).is_dir()
    if here and revision is not None:
        raise UserError(f"{name} is a folder, which has no revisions; leave --revision out")
    folder, said = (Path(name), name) if here else _fetched(name, revision)
    if not (folder / "config.json").is_file():
        more = "; its GGUF file is given by its own name" if any(folder.glob("*.gguf")) else ""
        raise UserError(f"{name} is no model: it holds no config.json{more}; give the folder of one")
    if here:  # a hub's files are links into its store
        check_regular(folder)
    refuse_code(str(folder), local_only=True)
    _check_config(folder / "config.json")
    if not any(folder.glob("*.safetensors")) and not (pickled and here and any(folder.glob("pytorch_model*.bin"))):
        pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
        if pickles:
            raise UserError(
                f"{name} holds its weights in a pickle alone ({pickles[0]}), which can run code and is never opened; "
                "give one that has safetensors"
            )
        if not here:
            raise UserError(
                f"{said} has no safetensors, and pickles are not fetched from a hub; give one that has them"
            )
        raise UserError(f"{name} holds no weights (*.safetensors); give a whole checkpoint")
    return Checkpoint(said, folder)


def _check_config(path: Path) -> None:
    try:
        found = decoded(read_text(path))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object; give the whole folder of a model")


def check_gguf(name: str) -> None:
    """Refuse a GGUF file where the package that reads it is missing.

    Raises:
        UserError: naming the extra.
    """
    if find_spec("gguf") is None:
        raise UserError(
            f"{name} is read by the package gguf, which is not installed; pip install 'gtl-lightning[gguf]'"
        )


def _fetched(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a hub's model in the local cache, and its name with the revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    name, _, said = name.partition("@")
    if said and revision is not None:
        raise UserError(f"{name}@{said} says its revision already; leave --revision {revision} out")
    revision = revision or said or None
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(f"{name} is neither a folder nor OWNER/NAME of a hub; give one of them")
    fetch: Any = snapshot_download
    wanted = {"allow_patterns": NEEDED, "revision": revision}
    try:
        folder = Path(fetch(name, local_files_only=True, **wanted))
        if whole(folder):
            return folder, f"{name}@{folder.name}"
    except HFValidationError as error:
        raise UserError(f"{name} is neither a folder nor OWNER/NAME of a hub; give one of them") from error
    except OSError:  # not in the cache
        pass
    if not hub_reachable():
        raise UserError(
            f"{name!r} is no folder here, and {endpoint()} cannot be reached; give the folder of a model on this disk"
        )
    again = "give the same command, which goes on from the files that were fetched"
    with refusals(at_revision(name, revision), "fetched", again, again), quiet():
        refuse_code(name, local_only=False, revision=revision)
        folder = Path(fetch(name, etag_timeout=10, **wanted))
    return folder, f"{name}@{folder.name}"


def whole(folder: Path) -> bool:
    """Whether a folder has its weights, all shards that its index names: a download that was broken off has not."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    shards = read_record(index, {"weight_map": Values(str)})["weight_map"].values()
    return all((folder / Path(shard).name).is_file() for shard in shards)


@dataclass(frozen=True)
class Roles:
    """What the ids of a tokenizer are for.

    Attributes:
        mask_index: of the mask.
        pad_index: of the padding.
        start_index: of what stands before a text.
        end_index: of what ends it.
        excluded: ids that no text has, mask and padding apart.
        rows: that the embedding needs, at least those that it has.
        unread: of mask and padding, those that no text had: the tokenizer had no such token.
        said: where mask and padding come from, for people.
    """

    mask_index: int
    pad_index: int
    start_index: int
    end_index: int
    excluded: tuple[int, ...]
    rows: int
    unread: tuple[int, ...]
    said: str


def tokenizer_of(found: Checkpoint) -> PreTrainedTokenizerFast:
    """The tokenizer that comes with a model, as it is.

    Raises:
        UserError: there is none, or it has no fast form or no end token.
    """
    tokenizer = fast_tokenizer(str(found.folder), **({"gguf_file": found.gguf} if found.gguf else {}))
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {found.name} names no end token (eos_token); name one in its configuration")
    return tokenizer


def roles(tokenizer: PreTrainedTokenizerFast, rows: int) -> Roles:
    """Give the mask and the padding an id each that stands for nothing else; the tokenizer is told.

    Each is the tokenizer's own if it has one; else a token that is called reserved, a row of the embedding that no
    token has, a special token without a part to play, or a new row, the first that there is. A padding that is the end
    token too, a habit, could not be told apart from text.

    Args:
        tokenizer: of the model; its mask and padding tokens are set.
        rows: of the model's embedding.

    Raises:
        UserError: a token that texts may have is beyond the rows, or ids are numbered with gaps.
    """
    end: Any = tokenizer.eos_token_id
    start = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    played = {end, start, tokenizer.unk_token_id}
    _check_rows(tokenizer, played, rows)
    own = {"mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id}
    special = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    found: dict[str, int] = {}
    said = []
    for role, index in own.items():
        taken = played | set(found.values()) | {other for other in own.values() if other != index}
        if index is not None and index not in taken:
            found[role], where = index, "the tokenizer's own"
        else:
            index, token, where = _spare(special, taken, max(tokenizer.get_vocab().values()) + 1, rows, NEW[role])
            tokenizer.add_special_tokens({f"{role}_token": token})
            found[role] = int(getattr(tokenizer, f"{role}_token_id"))
            if found[role] != index:
                raise UserError(
                    f"the tokenizer numbers its tokens with gaps: {token} became id {found[role]}, not {index}; give "
                    "it a mask and a padding token of its own"
                )
        said.append(f"{role}: id {found[role]}, {getattr(tokenizer, f'{role}_token')} ({where})")
    rows = max(rows, *(index + 1 for index in found.values()))
    known = set(tokenizer.get_vocab().values())
    never = {*special, start, *(index for index in range(rows) if index not in known)}
    unread = tuple(index for role, index in found.items() if index != own[role])
    excluded = sorted(never - {end, tokenizer.unk_token_id, *found.values()})
    return Roles(found["mask"], found["pad"], start, end, tuple(excluded), rows, unread, "; ".join(said))


def _check_rows(tokenizer: PreTrainedTokenizerFast, played: set[int | None], rows: int) -> None:
    """Refuse a tokenizer that is not the model's: what a text has needs a row that was trained."""
    idle = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} - played
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows and index not in idle}
    if beyond:
        first = min(beyond)
        raise UserError(
            f"the tokenizer has {len(beyond)} tokens that the model has no row for (id {first}, {beyond[first]!r}, and "
            f"{rows} rows); give the tokenizer that belongs to it"
        )


def _spare(special: dict[int, str], taken: set[int | None], size: int, rows: int, new: str) -> tuple[int, str, str]:
    """(id, token, where it comes from) of an id that stands for nothing."""
    idle = {index: token for index, token in special.items() if index not in taken}
    reserved = [index for index, token in idle.items() if RESERVED.search(token)]
    if reserved:
        return max(reserved), idle[max(reserved)], "reserved"
    if size < rows:
        return size, new, "a row of the embedding that no token had"
    if idle:
        return max(idle), idle[max(idle)], "a special token without a part to play"
    return size, new, "a new row: the tokenizer has no id to spare"
