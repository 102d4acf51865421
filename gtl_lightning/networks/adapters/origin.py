"""Where the weights of a denoiser lie that is read and not copied, and that they are those that were imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from gtl_lightning.errors import UserError
from gtl_lightning.files import digest, sha256_file
from gtl_lightning.records import Shape

ORIGIN: Shape = {"name": str, "revision?": (str, type(None)), "sha256": str}
"""An `Origin` as it is stored."""

READ = ["*.json", "*.safetensors"]
"""Files of a hub's model that are read here."""
NOTE = "denoiser.json"
"""What a folder says of a denoiser beside transformers' own files: how its ids are read."""
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
"""Files that say that a folder has a tokenizer."""
MEANING = (*TOKENIZERS, "merges.txt", "special_tokens_map.json", "added_tokens.json", NOTE)
"""Files beside configuration and weights that decide what an id means."""


@dataclass(frozen=True)
class Origin:
    """A model that stays where it lies.

    Attributes:
        name: a folder, or OWNER/NAME of a hub.
        revision: of the hub's, the commit; None for a folder.
        sha256: of its configuration, weights and tokenizer (`files_hash`).
    """

    name: str
    revision: str | None
    sha256: str

    def __str__(self) -> str:
        at = f"@{self.revision[:12]}" if self.revision else ""
        return f"{self.name}{at}, sha256 {self.sha256[:12]}"

    @property
    def published(self) -> str:
        """As it is told to others: of a path of this machine the last name alone."""
        return str(replace(self, name=Path(self.name).name) if Path(self.name).is_absolute() else self)

    @property
    def folder(self) -> Path:
        """Where it lies on this disk, once its files are found to be those.

        Raises:
            UserError: it is not there, or another model is.
        """
        folder = Path(self.name) if self.revision is None else _cached(self.name, self.revision)
        if not (folder / "config.json").is_file():
            raise UserError(f"the source denoiser {self.name} is not there any more; bring it back, or import another")
        if (found := files_hash(folder)) != self.sha256:
            raise UserError(
                f"{self.name} is another model than the one that was imported (sha256 {found[:12]}, not "
                f"{self.sha256[:12]}); bring that back, or import this one: gtl source import {self.name}"
            )
        return folder


def files_hash(folder: Path) -> str:
    """Hash of a model's configuration, weights and tokenizer, by name and content; once for files that stay.

    Of the same weights another order of the vocabulary makes another model.
    """
    weights = [*folder.glob("*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    meaning = [folder / name for name in MEANING if (folder / name).is_file()]
    files = sorted([folder / "config.json", *weights, *meaning])
    return digest({path.name: _hash(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files}, 64)


@cache
def _hash(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)


def _cached(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=READ))
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"the source denoiser {name}@{revision} is not on this disk; fetch it: gtl source import {name} "
            f"--revision {revision}"
        ) from error
