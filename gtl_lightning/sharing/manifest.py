"""The list of a folder's files with their hashes: what lies there is what was written, no less and no more.

The hashes tell damage. They are no signature: whoever can write a file can write the list too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gtl_lightning.errors import UserError
from gtl_lightning.files import sha256_file, write_json
from gtl_lightning.records import ANY, Shape, read_record

MANIFEST = "bundle.json"
_HASH = re.compile(r"[0-9a-f]{64}")


def write_manifest(folder: Path, said: Mapping[str, Any] = ANY) -> dict[str, Any]:
    """List what lies in a folder, with what else is `said` of it; return the manifest.

    Raises:
        UserError: the folder cannot be written.
    """
    made = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    manifest = {**said, "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in made}}
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path, said: Shape = ANY) -> dict[str, Any]:
    """What `write_manifest` left; it is not held against the files.

    Args:
        folder: whose it is.
        said: keys that stand in it beside the files, and their kinds.

    Raises:
        UserError: none, one of another shape, or a path that leads elsewhere.
    """
    manifest = read_record(folder / MANIFEST, {**said, "files": dict})
    for name, value in manifest["files"].items():
        if not within(name):
            raise UserError(f"{MANIFEST}: {name!r} is no path within the bundle")
        if not isinstance(value, str) or not _HASH.fullmatch(value):
            raise UserError(f"{MANIFEST}: the hash of {name} is none")
    return manifest


def check_files(folder: Path, files: Mapping[str, str], beside: Collection[str] = ()) -> None:
    """Hold a folder against its list.

    Args:
        folder: the folder.
        files: path in it -> sha256.
        beside: names of files there that are not part of it and are not read.

    Raises:
        UserError: a file that is missing, changed or not listed, or a link.
    """
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UserError(f"{name} is a link, which no bundle has")
        if path.is_file() and name not in (MANIFEST, *beside):
            found[name] = sha256_file(path)
    for name in sorted(files.keys() | found.keys()):
        if files.get(name) != found.get(name):
            what = "missing" if name not in found else "not part of it" if name not in files else "damaged"
            raise UserError(f"{name} is {what}")


def within(name: str) -> bool:
    """Whether a name is a plain path that stays within its folder."""
    plain = PurePosixPath(name)
    inside = bool(plain.parts) and not plain.is_absolute() and ".." not in plain.parts
    return inside and str(plain) == name and "\\" not in name
