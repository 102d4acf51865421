"""A hub that speaks as Hugging Face's: whether it answers, a repository's files from there, a folder's files to there.

Whether it can be reached is asked once and briefly, for its clients retry for most of a minute. What a client says is
told in a line of our own: its messages hold addresses and a server's words, and a token could be among them.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import sys
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from gtl_lightning.errors import UserError
from gtl_lightning.files import temporary_folder, writing
from gtl_lightning.inputs import read_text
from gtl_lightning.sharing.card import CARD
from gtl_lightning.sharing.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PROBE_SECONDS = 3.0
FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.yaml", "*.md", "MLmodel")
"""Files that are fetched: no pickle and no code among them."""
LOG_IN = "log in (`hf auth login`) or set HF_TOKEN to one with the right to it"
_OF_DISK = (errno.ENOSPC, errno.EDQUOT)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def endpoint() -> str:
    """Address of the hub, as it may be shown: HF_ENDPOINT without user and password, or the public one."""
    address = _address()
    with suppress(ValueError):
        parts = urlsplit(address)
        if "@" in parts.netloc:
            return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return address


def hub_reachable(timeout: float = _PROBE_SECONDS) -> bool:
    """Whether the hub accepts a connection within `timeout` seconds; False when HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return False
    try:
        address = urlsplit(_address())
        port = address.port or (80 if address.scheme == "http" else 443)
        if address.scheme in urllib.request.getproxies():
            return True  # behind a proxy a direct connection says nothing; leave the verdict to the client
        with socket.create_connection((address.hostname or "", port), timeout):
            return True
    except (OSError, ValueError):  # the latter: HF_ENDPOINT is no address
        return False


def at_revision(name: str, revision: str | None) -> str:
    """OWNER/NAME, with the revision where one is asked for."""
    return f"{name}@{revision}" if revision else name


def check_repository(name: str) -> None:
    """Raise UserError for what cannot name a repository of a hub."""
    if not _NAME.fullmatch(name) or len(name) > 96 or ".." in name or "--" in name or name.endswith(".git"):
        raise UserError(
            f"{name!r} is no OWNER/NAME of a hub: letters, digits, `.`, `_` and `-` on either side of one /"
        )


def licence_of(name: str) -> str | None:
    """The licence that the card of a folder, or of a hub's repository, names; None where it cannot be learned."""
    found: Any = None
    with suppress(Exception):  # what a card holds, and what a hub answers, is anything
        if Path(name).is_dir():
            found = yaml.safe_load(read_text(Path(name) / CARD).split("---\n")[1])
        elif hub_reachable():
            from huggingface_hub import HfApi

            with quiet():
                found = HfApi(endpoint=_address()).model_info(name, timeout=10).card_data
        named = found["license"]
        named = found.get("license_name") or named if named == "other" else named
        return str(named) if named else None
    return None


@contextmanager
def located(name: Path | str, revision: str | None = None, token: str | None = None) -> Iterator[Path]:
    """A folder as it is, or a hub's repository in a folder of its own, which is gone afterwards.

    Raises:
        UserError: neither; a revision of a folder; what `fetched` refuses.
    """
    if not Path(name).is_dir():
        with fetched(str(name), revision, token) as folder:
            yield folder
        return
    if revision is not None:
        raise UserError(f"{name} is a folder, and has no revision {revision!r}; leave it out")
    yield Path(name)


@contextmanager
def fetched(name: str, revision: str | None = None, token: str | None = None) -> Iterator[Path]:
    """The files of a repository, as they were pushed, in a folder that is gone afterwards; no link, pickle or code.

    They are kept in the hub's cache, which serves where the hub does not answer. Of a repository that has a manifest
    what it lists comes, and no file of an earlier push.

    Raises:
        UserError: no such repository or revision, no right to it, the hub cannot be reached, a full disk.
    """
    check_repository(name)
    from huggingface_hub import snapshot_download

    with refusals(at_revision(name, revision), "fetched", "run it again, or give a folder"), quiet():
        kept = Path(
            snapshot_download(
                name,
                revision=revision,
                token=token,
                endpoint=_address(),
                allow_patterns=list(FETCHED),
                local_files_only=not hub_reachable(),
                etag_timeout=10,
            )
        )
    with temporary_folder() as folder:
        try:
            _fill(folder, kept)
            yield folder
        except UserError as error:  # of the repository, not of folders that nobody knows
            told = str(error)
            for place in (folder, kept):
                told = told.replace(f"{place}/", f"{name}: ").replace(str(place), name)
            raise UserError(told) from error


def _fill(folder: Path, kept: Path) -> None:
    """What the hub's cache has of a repository, as files: what its manifest lists, else all.

    Raises:
        UserError: a manifest that is none, or a file of it that did not come.
    """
    listed = {MANIFEST, *read_manifest(kept)["files"]} if (kept / MANIFEST).is_file() else None
    for path in sorted(kept.rglob("*")):
        place = path.relative_to(kept)
        if path.is_file() and (listed is None or place.as_posix() in listed):
            _without_link(path, folder / place)
    if missing := sorted(file for file in listed or () if not (folder / file).exists()):
        raise UserError(f"{folder / missing[0]} was not fetched with the rest; see that the hub has it, and try again")


def push(
    make: Callable[[Path], object], name: str, *, private: bool = False, token: str | None = None, message: str
) -> str:
    """Make a folder and put it into a repository of the hub, by one commit: all of it is seen, or nothing.

    Files of an earlier push that the folder no longer has go with the same commit; any other file there stays.

    Args:
        make: writes the folder.
        name: OWNER/NAME; made if it is not there.
        private: whether it is to be seen by its owner alone.
        token: None takes HF_TOKEN, or that of `hf auth login`.
        message: of the commit.

    Returns:
        Address of the commit.

    Raises:
        UserError: no such name; no token, or one without the right; a public repository that was to be private; the
            hub cannot be reached, or breaks off.
    """
    check_repository(name)
    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if not token:
        raise UserError(f"{name} cannot be pushed without a token; {LOG_IN}")
    if not hub_reachable():
        raise UserError(f"{name} was not pushed: {endpoint()} cannot be reached; check the network and HF_ENDPOINT")
    with temporary_folder() as place, quiet():
        make(place / "model")
        api = HfApi(endpoint=_address(), token=token)
        with refusals(name, "pushed", "nothing was changed, run the same command again"):
            fresh = _made(api, name, private)
        made = "the repository was made; " if fresh else ""
        with refusals(name, "pushed", f"{made}what is there is whole as it was, run the same command again"):
            gone = [] if fresh else _no_longer(api, name, place)
            done = api.upload_folder(
                repo_id=name, folder_path=place / "model", commit_message=message, delete_patterns=gone or None
            )
    return str(done.commit_url)


def _made(api: HfApi, name: str, private: bool) -> bool:
    """Whether the repository was made now; one that was there is as private as it was asked to be."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(name, private=private or None)
        return True
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    if private and not api.repo_info(name).private:
        raise UserError(
            f"{name} is there already and everybody sees it; make it private on its page, or push elsewhere"
        )
    return False


def _no_longer(api: HfApi, name: str, place: Path) -> list[str]:
    """The files that an earlier push left there and the folder `model` of this place has not."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        api.hf_hub_download(name, MANIFEST, local_dir=place / "before")
    except EntryNotFoundError:
        return []
    with suppress(UserError):  # another program's list
        files = read_manifest(place / "before")["files"]
        return [file for file in files if not (place / "model" / file).exists()]
    return []


@contextmanager
def refusals(name: str, done: str, remedy: str, again: str = "run it again") -> Iterator[None]:
    """What the client raises inside is one line of this project's words.

    Args:
        name: of the repository.
        done: what was not done with it.
        remedy: where the hub broke off, or answers what nobody expects.
        again: where the disk was full.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

    try:
        yield
    except UserError:
        raise
    except RevisionNotFoundError:
        raise UserError(
            f"{name} was not {done}: the hub has no such revision; give a branch, a tag or a commit"
        ) from None
    except LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            reason = _of_status(error.__cause__.response.status_code, remedy)
        else:
            reason = f"it is not on this disk, and {endpoint()} cannot be reached; check the network and HF_ENDPOINT"
        raise UserError(f"{name} was not {done}: {reason}") from None
    except HfHubHTTPError as error:
        raise UserError(f"{name} was not {done}: {_of_status(error.response.status_code, remedy)}") from None
    except Exception as error:  # its client raises whatever its parts raise
        if isinstance(error, OSError) and error.errno in _OF_DISK:
            raise UserError(f"{name} was not {done}: {error.strerror}; make room, then {again}") from None
        raise UserError(f"{name} was not {done}: {endpoint()} broke off ({type(error).__name__}); {remedy}") from None


def _of_status(status: int, remedy: str) -> str:
    told = {
        401: f"the hub does not know the token, or there is no such repository; {LOG_IN}",
        403: f"the token has no right to it; {LOG_IN}",
        404: "the hub has no such repository or revision; check the name",
    }
    return told.get(status, f"the hub answers {status}; {remedy}")


@contextmanager
def quiet() -> Iterator[None]:
    """No word of the client: it would show addresses that are signed, warnings beside ours, bars where nobody looks."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx2", "httpcore2")]
    levels, bars = [logger.level for logger in loggers], not are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            enable_progress_bars()


def _address() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _without_link(path: Path, place: Path) -> None:
    """A file of the hub's cache, which links into its store, as a file: a second name of it where that can be."""
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        whole: Any = path.resolve()
        try:
            os.link(whole, place)
        except OSError:  # another disk, or one without such names
            shutil.copyfile(whole, place)
