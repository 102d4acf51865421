"""A study's own params.yaml: read, asked for anew, written, for whichever study."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from gtl_lightning.errors import UserError
from gtl_lightning.fields import Section
from gtl_lightning.files import write_text
from gtl_lightning.workspace.params import changes, validated
from gtl_lightning.workspace.yamlfile import read_values

Settings = TypeVar("Settings", bound=Section)
Values = dict[str, Any]


@dataclass(frozen=True)
class StudyFile(Generic[Settings]):
    """How a study keeps its parameters.

    Attributes:
        kind: their type; without arguments as shipped.
        path: of the file.
        command: that writes it.
        overlaid: (the file's values, `key=value` overrides, the file) -> the parameters; raises UserError.
        whole: what a file that may hold wrong values says, completed and unchecked.
        text: the parameters as the file has them.
    """

    kind: type[Settings]
    path: Path
    command: str
    overlaid: Callable[[Values, tuple[str, ...], Path | str], Settings]
    whole: Callable[[Values], Values]
    text: Callable[[Settings], str]

    def load(self, path: Path | str | None = None) -> Settings:
        """Read and validate.

        Raises:
            UserError: missing, not YAML, an unknown key or a value out of range; the line names file and key.
        """
        path = self.path if path is None else path
        return validated(self.kind, read_values(path, self.command), path)

    def requested(self, overrides: tuple[str, ...], path: Path | str | None = None) -> tuple[Settings, list[str]]:
        """What the file is to hold, and a line `key: old -> new` for every value of it that changes.

        With overrides these are laid over the file, every other value stays; without any it is as shipped, and the
        lines say what is dropped.

        Raises:
            UserError: an unreadable file, an unknown key or a value out of range.
        """
        path = self.path if path is None else path
        if overrides:
            values = read_values(path, self.command)
            asked = self.overlaid(values, overrides, path)
            return asked, self._told(self.whole(values), asked)
        asked = self.kind()
        if not Path(path).exists():
            return asked, []
        try:
            return asked, [f"dropped {line}" for line in self._told(self.load(path).model_dump(mode="json"), asked)]
        except UserError as error:
            return asked, [f"dropped, as it could not be read: {error}"]

    def write(self, settings: Settings, path: Path | str | None = None) -> None:
        """Write the file atomically."""
        write_text(self.path if path is None else path, self.text(settings))

    def configure(self, overrides: tuple[str, ...]) -> Iterator[str]:
        """Write what is requested, where it differs; yields what to tell.

        Raises:
            UserError: as `requested`.
        """
        settings, told = self.requested(overrides)
        anew = bool(told) or not overrides
        if anew:
            self.write(settings)
        yield from told
        yield f"{self.path} {'written' if anew else 'is so already'}"

    def _told(self, held: Values, asked: Settings) -> list[str]:
        return list(changes(held, asked.model_dump(mode="json")).values())
