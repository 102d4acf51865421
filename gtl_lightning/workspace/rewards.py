"""Rewards of texts by name, and those of a function of the user's own: what `gtl reward` asks for more of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError

Texts = Callable[[Sequence[str]], Any]
WORD, VOWELS, SENTENCE = re.compile(r"[^\W\d_]+"), re.compile(r"[aeiouy]+"), re.compile(r"[.!?]+")


def length(texts: Sequence[str]) -> list[float]:
    """Words of each text."""
    return [float(len(WORD.findall(text))) for text in texts]


def readability(texts: Sequence[str]) -> list[float]:
    """Flesch's reading ease, syllables taken for groups of vowels: the higher, the easier; 0 for no words."""
    found = []
    for text in texts:
        words = WORD.findall(text.lower())
        if not words:
            found.append(0.0)
            continue
        sentences = max(1, len(SENTENCE.findall(text)))
        syllables = sum(max(1, len(VOWELS.findall(word))) for word in words)
        found.append(206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words))
    return found


def share_of(term: str) -> Texts:
    """The share of each text's words that are `term`, in any case; of a term of several words, its occurrences."""
    wanted = term.lower()
    pattern = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")

    def share(texts: Sequence[str]) -> list[float]:
        return [len(pattern.findall(text.lower())) / max(1, len(WORD.findall(text))) for text in texts]

    return share


NAMED: dict[str, Texts] = {"length": length, "readability": readability}


def reward_of(name: str | None, term: str | None, module: str | None) -> Texts:
    """The reward that is meant: a name, a term, or FILE:FUNCTION, which runs that file, the user's own code.

    Raises:
        UserError: none or several of them, an unknown name, an empty term, no such file or function.
    """
    if sum(given is not None for given in (name, term, module)) != 1:
        raise UserError("give one of --reward, --term and --module: what the texts are to have more of")
    if term is not None:
        if not term.strip():
            raise UserError("--term is empty; give a word that texts are to have more of")
        return share_of(term.strip())
    if module is not None:
        return _own(module)
    if name not in NAMED:
        raise UserError(f"--reward {name} is unknown; choose one of {', '.join(NAMED)}, or give --term or --module")
    return NAMED[name]


def _own(module: str) -> Texts:
    path, colon, name = module.rpartition(":")
    if not colon or not path or not name:
        raise UserError(f"--module {module}: write it as FILE:FUNCTION, for example rewards.py:score")
    if not Path(path).is_file():
        raise UserError(f"--module {module}: there is no file {path}; give the path of a Python file of your own")
    space: dict[str, Any] = {"__name__": "reward", "__file__": path}
    try:
        exec(compile(Path(path).read_text(encoding="utf-8"), path, "exec"), space)
    except Exception as error:
        told = " ".join(str(error).split())
        raise UserError(f"--module {module}: {path} fails: {type(error).__name__}: {told}; mend it") from error
    function = space.get(name)
    if not callable(function):
        raise UserError(f"--module {module}: {path} has no function {name}; name one that takes a list of texts")
    own: Texts = function
    return own
