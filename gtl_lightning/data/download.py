"""Any Hugging Face data set -> a snapshot: streamed in parts, so that a broken download goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from gtl_lightning.data.hub import endpoint, hub_reachable
from gtl_lightning.data.lines import open_gzip
from gtl_lightning.data.origin import FIELDS, SNAPSHOT, check_fields, write_provenance
from gtl_lightning.data.snapshot import survey
from gtl_lightning.errors import UserError, reason
from gtl_lightning.files import atomic_path, read_json, replacing, write_json, writing
from gtl_lightning.inputs import open_regular

_PARTS = ".download"
_COPY = 1 << 20


def download(
    dataset: str,
    folder: Path | str,
    *,
    split: str = "train",
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    part_records: int = 10000,
) -> dict[str, Any]:
    """Stream a data set to `folder`/snapshot.jsonl.gz under our field names, with its provenance.

    Finished parts of `part_records` records and the stream's position lie in `folder`/.download until all is there;
    the same call goes on after the last whole part, any other call starts anew.

    Args:
        dataset: name on the hub, or a local folder of data files.
        folder: where the pipeline looks for data.
        split: of the data set.
        fields: our field name -> the data set's; fields we do not know are left out.
        limit: most records; None takes all.
        part_records: records per part.

    Returns:
        The provenance.

    Raises:
        UserError: hub unreachable, no such data set or split, fields that are not there, a stream that breaks, no
            usable record, damaged parts, or an unwritable folder.
    """
    names = check_fields(fields)
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} takes no record; give at least 1, or leave it out to take all")
    parts = Path(folder) / _PARTS
    request = {"dataset": dataset, "split": split, "fields": names, "limit": limit, "part_records": part_records}
    state = _saved(parts, request)
    if not state["complete"]:
        _fetch(_stream(parts, state), parts, state, names)
    if not state["records"]:
        raise UserError(f"data set {dataset!r}, split {split!r}, has no records; choose another split")
    with replacing(folder) as staged:
        with open(staged / SNAPSHOT, "wb") as out:
            for part in range(state["parts"]):  # gzip files joined are a gzip file
                with open_regular(_part(parts, part)) as file:
                    shutil.copyfileobj(file, out, _COPY)
        try:
            found = survey(staged / SNAPSHOT, name=f"data set {dataset!r} as fetched")
            if found.records != state["records"]:
                raise UserError(f"{found.records} of {state['records']} records of {dataset!r} lie in {parts}")
        except UserError as error:
            shutil.rmtree(parts, ignore_errors=True)  # otherwise the same call would find them again
            raise UserError(f"{error}; nothing was replaced, the same command fetches anew") from error
        origin = {"dataset": dataset, "split": split, "fields": names, "limit": limit}
        provenance = write_provenance(staged, kind="download", found=found, **origin)
    shutil.rmtree(parts, ignore_errors=True)
    return provenance


def _fetch(stream: Any, parts: Path, state: dict[str, Any], names: Mapping[str, str]) -> None:
    """Write part after part, saving the state after each."""
    request = state["request"]
    records = iter(stream)
    while not state["complete"]:
        left = None if request["limit"] is None else request["limit"] - state["records"]
        size = request["part_records"] if left is None else min(request["part_records"], left)
        try:
            rows = list(islice(records, size))
        except Exception as error:  # whatever the reader of that format or the network raises
            raise UserError(
                f"data set {request['dataset']!r} broke off after {state['records']} records ({reason(error)}); "
                "run the same command again to go on"
            ) from error
        if rows and not state["records"]:
            _check_columns(request["dataset"], rows[0], names)
        if rows:
            with atomic_path(_part(parts, state["parts"])) as temporary, open_gzip(temporary) as file:
                file.writelines(_lines(rows, names))
            state["parts"] += 1
            state["records"] += len(rows)
        state["complete"] = len(rows) < request["part_records"] or state["records"] == request["limit"]
        state["position"] = stream.state_dict()
        write_json(parts / "state.json", state)


def open_stream(dataset: str, split: str) -> Any:
    """The records of a data set, streamed.

    Raises:
        UserError: the hub cannot be reached, or no such data set or split.
    """
    local = Path(dataset).exists()
    if not local and not hub_reachable():
        raise UserError(
            f"data set {dataset!r} is not a local folder and {endpoint()} cannot be reached; check the network, or use "
            "`gtl data import PATH` or `gtl data sample`"
        )
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(dataset, split=split, streaming=True)
    except Exception as error:  # datasets raises whatever its builders, the hub and the network raise
        raise UserError(f"data set {dataset!r}, split {split!r}, cannot be opened ({reason(error)})") from error


def _saved(parts: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """State of an unfinished download of the same request, else a fresh one in an empty folder."""
    with suppress(UserError, OSError, LookupError, TypeError):  # a state of any other shape is none
        state = read_json(parts / "state.json")
        if state["request"] == request and all(_part(parts, part).is_file() for part in range(state["parts"])):
            return {key: state[key] for key in ("request", "parts", "records", "position", "complete")}
    with writing(parts):
        if parts.exists():
            shutil.rmtree(parts)
        parts.mkdir(parents=True)
    return {"request": dict(request), "parts": 0, "records": 0, "position": None, "complete": False}


def _stream(parts: Path, state: Mapping[str, Any]) -> Any:
    """The data set's records, from where the state says on."""
    stream = open_stream(state["request"]["dataset"], state["request"]["split"])
    if state["position"] is not None:
        try:
            stream.load_state_dict(state["position"])
        except Exception as error:  # whatever the reader of that format makes of it
            shutil.rmtree(parts, ignore_errors=True)
            raise UserError(
                f"{parts} held no usable position ({reason(error)}); run the same command to start anew"
            ) from error
    return stream


def _check_columns(dataset: str, row: Mapping[str, Any], names: Mapping[str, str]) -> None:
    for ours, theirs in names.items():
        if ours != "title" and theirs not in row:
            raise UserError(
                f"data set {dataset!r} has no field {theirs!r} for our {ours!r}; its fields are {', '.join(row)}"
            )


def _lines(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> Iterable[bytes]:
    for row in rows:
        record = {ours: row.get(names[ours]) for ours in FIELDS}
        if row.get("generated") is True:  # generated data stays marked wherever it goes
            record["generated"] = True
        yield json.dumps(record, default=str).encode() + b"\n"


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:05d}.jsonl.gz"
