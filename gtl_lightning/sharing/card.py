"""What a model says of itself to people: Markdown, with the fields that a hub reads in front (its model card)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

CARD = "README.md"
LIBRARY = "gtl-lightning"
TAGS = ("discrete-diffusion", "masked-diffusion", "text-generation")
LICENSES = frozenset((
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0",
    "odc-by", "odbl", "isc", "unlicense", "openrail", "gemma", "llama2", "llama3", "llama3.1", "llama3.2",
))  # fmt: skip
"""Names of licences that hubs know; any other is their `other`, with its name beside."""
LIMITS = "What it writes is not true, and is not checked. Weights are safetensors; nothing in this folder is executed."


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        title: the heading.
        about: what it is, a paragraph.
        facts: (what, value): data, method, strength, seeds, commit.
        measured: (what, number) of held-out data.
        use: Python that loads it.
        also: how else it is used.
        limits: what it cannot do.
        license: of what it was made from, as its owner names it; None where nobody says.
        datasets: names on a hub.
        base: repository of the model that it was made from.
        tags: beside those of every model.
    """

    title: str
    about: str = "A discrete diffusion model of text: it fills masked positions; from masks alone it writes a text."
    facts: tuple[tuple[str, str], ...] = ()
    measured: tuple[tuple[str, float], ...] = ()
    use: str = ""
    also: str = ""
    limits: str = LIMITS
    license: str | None = None
    datasets: tuple[str, ...] = ()
    base: str | None = None
    tags: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """What a hub reads."""
        found: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": "text-generation"}
        found["tags"] = list(dict.fromkeys((*TAGS, *self.tags)))
        if self.license is not None:
            known = self.license.lower()
            found |= (
                {"license": known} if known in LICENSES else {"license": "other", "license_name": _plain(self.license)}
            )
        if self.base is not None:
            found["base_model"] = self.base
        if self.datasets:
            found["datasets"] = list(self.datasets)
        return found

    def text(self) -> str:
        """The Markdown below the fields."""
        licence = self.license or "unknown: find it out before you pass this on"
        parts = [f"# {_plain(self.title)}", self.about]
        parts.append(_table("what", "", (*self.facts, ("licence of what it was made from", licence))))
        if self.measured:
            parts.append(_table("measured", "", tuple((what, f"{value:.4f}") for what, value in self.measured)))
        if self.use:
            parts += ["## Use", f"```python\n{self.use.strip()}\n```"]
        parts += [self.also] if self.also else []
        parts += ["## Limits", self.limits]
        return "\n\n".join(parts) + "\n"

    def markdown(self) -> str:
        """The whole card."""
        return f"---\n{yaml.safe_dump(self.fields(), sort_keys=False, allow_unicode=True)}---\n\n{self.text()}"


def _table(first: str, second: str, rows: tuple[tuple[str, str], ...]) -> str:
    body = [f"| {_plain(what)} | {_plain(value)} |" for what, value in rows]
    return "\n".join([f"| {first} | {second} |", "|:--|:--|", *body])


def _plain(text: str) -> str:
    """One line that ends no cell of a table and opens no tag."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
