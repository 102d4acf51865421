"""What is asked of params.yaml, against what it holds: no value is lost unsaid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.params import (
    PARAMS,
    PROFILES,
    Params,
    changes,
    configure,
    full,
    load_params,
    overlaid,
)
from gtl_lightning.workspace.stated import unstated
from gtl_lightning.workspace.yamlfile import read_values


def requested_params(
    profile: str | None, overrides: tuple[str, ...], path: Path | str = PARAMS, profiles: Path = PROFILES
) -> Params:
    """What params.yaml is to hold: a profile, or where none is named the file as it is; then the overrides.

    Raises:
        UserError: an unknown profile, an unreadable file, an unknown key or a value out of range.
    """
    if profile is not None:
        return configure(profile, overrides, profiles)
    return overlaid(read_values(path), overrides, path)


def describe_changes(
    profile: str | None, asked: Params, path: Path | str = PARAMS, profiles: Path = PROFILES
) -> list[str]:
    """One line for every value of the file at `path` that `asked` changes, or that a profile drops with it.

    A profile's own values are what was asked for. What is told is what somebody had set on top of the profile before.
    """
    new = asked.model_dump(mode="json")
    if profile is None:
        held_here = read_values(path)
        told = [f"{key}: stands in the file now, and of all else what differs from it" for key in unstated(held_here)]
        return [*told, *changes(full(held_here), new).values()]
    set_here = changes(_values_of(profile, profiles), new)
    told = list(set_here.values())
    if not Path(path).exists():
        return told
    try:
        old = load_params(path)
    except UserError as error:
        return [f"dropped, as it could not be read: {error}", *told]
    held = old.model_dump(mode="json")
    try:
        by_hand = changes(_values_of(old.profile, profiles), held)
    except UserError:  # the profile it was made from is gone: any value may have been set by hand
        by_hand = changes({}, held)
    lost = by_hand.keys() - set_here.keys() - {"profile"}
    return [*(f"dropped {line}" for key, line in changes(held, new).items() if key in lost), *told]


def _values_of(profile: str, profiles: Path) -> dict[str, Any]:
    return configure(profile, profiles=profiles).model_dump(mode="json")
