"""Versions of registered models: made from a run's artifact, fetched by name and alias."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.addresses import check_reachable, exists, resolve_uri
from gtl_lightning.workspace.mlflow_client import one_line, open_client
from gtl_lightning.workspace.yamlfile import read_values

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_NAME = re.compile(r"\w[\w .-]{0,254}")
ALIAS = re.compile(r"[\w-]{1,255}")
DOWNLOADED = "registered_model_meta"
"""File that MLflow puts into a version's folder where it downloads it: which version it is."""


def register_version(
    client: MlflowClient,
    name: str,
    run_id: str,
    folder: str,
    key: str,
    tags: Mapping[str, Any],
    aliases: Sequence[str],
    card: str,
) -> str:
    """A version of the registered model `name` from a run's artifact folder; the aliases move to it.

    Args:
        client: of the tracker.
        name: made if it does not exist.
        run_id: whose artifact it is.
        folder: artifact folder.
        key: of the content; a version that has it already is taken in place of a new one.
        tags: of the version.
        aliases: to set.
        card: what it is, in Markdown: the description on its page.

    Raises:
        UserError: a name or an alias that cannot be one, or the registry refuses.
    """
    check_model(name)
    for alias in aliases:
        check_model(name, alias)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    known = {version.tags.get("key"): version for version in client.search_model_versions(f"name = '{name}'")}
    source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
    texts = {"key": key, **{tag: str(value) for tag, value in tags.items()}}
    version = known.get(key) or client.create_model_version(name, source, run_id, tags=texts)
    for tag, text in texts.items() - version.tags.items():  # of a version from before there was such a tag
        client.set_model_version_tag(name, version.version, tag, text)
    client.update_model_version(name, version.version, card)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


def fetch_model(uri: str, name: str, alias: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Download a registered model's artifact folder, and its version's tags; nothing in it is loaded or executed.

    Raises:
        UserError: no such model or alias, or the tracker cannot be reached.
    """
    check_model(name, alias)
    uri = resolve_uri(uri)
    check_reachable(uri)
    if not exists(uri):
        raise UserError(
            f"model {name}@{alias} cannot be fetched: there is no {uri}; set MLFLOW_TRACKING_URI to the tracker that "
            "has it, or make both there (`gtl register`)"
        )
    from mlflow import artifacts

    try:
        client = open_client(uri)
        version = client.get_model_version_by_alias(name, alias)
        source = client.get_model_version_download_uri(name, version.version)
        with one_line(uri):
            made = Path(artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri))
        return made, dict(version.tags)
    except UserError as error:
        raise UserError(f"model {name}@{alias} cannot be fetched: {error}; `gtl register` makes it") from error


def registered_tags(folder: Path) -> dict[str, str] | None:
    """The registry's tags of the version that MLflow has downloaded into a folder; None for any other folder.

    Raises:
        UserError: the registry cannot be reached.
    """
    from mlflow import get_tracking_uri

    if not (folder / DOWNLOADED).exists():
        return None
    meta = read_values(folder / DOWNLOADED, "mlflow")
    version = open_client(get_tracking_uri()).get_model_version(meta["model_name"], str(meta["model_version"]))
    return dict(version.tags)


def check_model(name: str, alias: str = "best") -> None:
    """Refuse what cannot be the name or the alias of a registered model, before it enters a query or a path.

    Raises:
        UserError: naming it, and what it may hold.
    """
    if not MODEL_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a registered model: letters, digits, spaces, `.`, `_` and `-` can; write "
            "NAME@ALIAS, or change tracking.experiment, with which names begin"
        )
    if not ALIAS.fullmatch(alias):
        raise UserError(f"{alias!r} cannot be an alias of {name}: letters, digits, `_` and `-` can; `best` is one")
