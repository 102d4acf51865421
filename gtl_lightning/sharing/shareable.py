"""`save_pretrained`, `from_pretrained`, `push_to_hub`: one folder, whichever of this project's models it holds.

`config.json` says which file is what, and how they go together; `bundle.json` has the hash of every file; `README.md`
is the model card; weights are safetensors that say their own class and sizes. The hub's own mixin is not taken: it
fills a constructor with a configuration that nobody looked at, and every stage would import its client.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from gtl_lightning.errors import UserError
from gtl_lightning.files import replacing, write_json, write_text
from gtl_lightning.records import ANY, Shape, Values, read_record
from gtl_lightning.sharing.card import CARD, LIBRARY, Card
from gtl_lightning.sharing.hub import located, push
from gtl_lightning.sharing.manifest import MANIFEST, check_files, read_manifest, within, write_manifest

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
DENOISER, RATIO, CAUSAL, TOKENIZER = "denoiser", "ratio", "causal", "tokenizer"
"""Parts of a folder."""


class Shareable(ABC):
    """A model that is a folder; a new one owes `write_to` and `read_from`.

    Attributes:
        file: of the folder, that all of it is in; None where it is another library's, which reads the folder.
    """

    file: ClassVar[str | None] = WEIGHTS

    @abstractmethod
    def write_to(self, folder: Path) -> None:
        """Write weights and `config.json` into a folder, which is there."""

    @classmethod
    @abstractmethod
    def read_from(cls, folder: Path) -> Self:
        """What `write_to` wrote, or the part of it that is of this class, on the CPU and in eval mode."""

    def save_pretrained(self, folder: Path | str, card: Card | None = None) -> None:
        """Write the model as a folder, whole or not at all; files of these names that lie there are replaced.

        Args:
            folder: made if need be.
            card: what is said of it; None says how it is loaded.

        Raises:
            UserError: it holds what cannot be stored, or the folder cannot be written.
        """
        with replacing(folder) as staged:
            self._fill(staged, card, "FOLDER")

    def push_to_hub(
        self, name: str, *, private: bool = False, token: str | None = None, card: Card | None = None
    ) -> str:
        """Put the model into the repository OWNER/NAME of a hub, by one commit; return its address.

        Args:
            name: OWNER/NAME; made if it is not there.
            private: whether its owner alone sees it.
            token: None takes HF_TOKEN, or that of `hf auth login`.
            card: as in `save_pretrained`.

        Raises:
            UserError: as `save_pretrained`; no token, no right, no hub, or one that breaks off.
        """

        def make(folder: Path) -> None:
            folder.mkdir()
            self._fill(folder, card, name)

        return push(make, name, private=private, token=token, message=f"{type(self).__name__} of {LIBRARY}")

    @classmethod
    def from_pretrained(
        cls, name: Path | str, *, revision: str | None = None, token: str | None = None, **given: Any
    ) -> Self:
        """The model of a folder, or of a repository of a hub; nothing that it holds is executed.

        Args:
            name: the folder, or OWNER/NAME.
            revision: branch, tag or commit of the repository; None its newest.
            token: for a private one; None takes HF_TOKEN, or that of `hf auth login`.
            given: what is not stored with it: `denoiser`, for a ratio that reads one.

        Raises:
            UserError: no such folder, repository or revision; a file that is missing, damaged or foreign; a model of
                another kind.
        """
        with located(name, revision, token) as folder:
            if (folder / MANIFEST).is_file():
                check_listed(folder)
            read: Callable[..., Self] = cls.read_from
            return read(folder, **given)

    def _fill(self, folder: Path, card: Card | None, name: str) -> None:
        self.write_to(folder)
        kind = type(self)
        use = f'from {kind.__module__} import {kind.__name__}\n\nmodel = {kind.__name__}.from_pretrained("{name}")'
        write_text(folder / CARD, (card or Card(kind.__name__, use=use)).markdown())
        write_manifest(folder)


def check_listed(folder: Path) -> None:
    """Hold the files that a folder's manifest lists against it; others that lie there are not read."""
    files = read_manifest(folder)["files"]
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    check_files(folder, files, found - files.keys())


def write_config(folder: Path, parts: Mapping[str, str], **said: Any) -> None:
    """Write which file of the folder is what, and what else is said of them."""
    write_json(folder / CONFIG, {"library_name": LIBRARY, "parts": dict(parts), **said})


def read_config(folder: Path, said: Shape = ANY) -> tuple[dict[str, Path], dict[str, Any]]:
    """The parts of a folder by name, and what is said of them.

    Args:
        folder: what `write_config` wrote into.
        said: keys that are asked for; others are not looked at.

    Raises:
        UserError: none, one of another program or shape, or a part that lies elsewhere.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no {CONFIG}; give a folder or repository that save_pretrained or gtl wrote")
    found = read_record(path)
    if found.get("library_name") != LIBRARY:
        raise UserError(f"{path} is of another library than {LIBRARY}; load it with the one that wrote it")
    found = read_record(path, {**said, "library_name": str, "parts": Values(str)})
    if foreign := [name for name in found["parts"].values() if not within(name)]:
        raise UserError(f"{path}: {foreign[0]!r} is no path within the folder")
    return {part: folder / name for part, name in found.pop("parts").items()}, found


def part_of(folder: Path, part: str, said: Shape = ANY) -> Path:
    """Where a part of a folder lies.

    Raises:
        UserError: as `read_config`; it has no such part.
    """
    parts, _ = read_config(folder, said)
    if part not in parts:
        raise UserError(f"{folder} holds no {part}, but {' and '.join(sorted(parts)) or 'nothing'}; give another")
    return parts[part]
