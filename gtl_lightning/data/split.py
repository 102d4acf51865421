"""Snapshot -> disjoint splits of two domains, stable under re-ordering of the file; what is left out is counted."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gtl_lightning.data.duplicates import group
from gtl_lightning.data.lines import Display, Progress, no_display
from gtl_lightning.data.quarantine import Problem, quarantine
from gtl_lightning.data.scan import Scan, scan
from gtl_lightning.errors import UserError
from gtl_lightning.fields import LEAST_SIMILARITY
from gtl_lightning.files import atomic_path, replacing, write_json
from gtl_lightning.records import COUNT, Shape, Values

SOURCE_SPLITS = ("source_train", "source_val", "judge_source")
TARGET_SPLITS = ("target_train", "target_val", "target_test", "judge_target")
SPLITS = SOURCE_SPLITS + TARGET_SPLITS
SHARES: Mapping[str, float] = {
    "source_val": 0.05,
    "judge_source": 0.05,
    "target_val": 0.1,
    "target_test": 0.1,
    "judge_target": 0.1,
}
NEAR_DUPLICATE = "near-duplicate"
QUARANTINE = "quarantine.jsonl"

_WRITE_ROWS = 4096


def fraction_size(n: int, fraction: float, min_examples: int = 1) -> int:
    """How many of `n` ranked examples fraction `fraction` keeps: the first ceil(fraction * n).

    Raises:
        UserError: the fraction lies outside (0, 1] or keeps fewer than `min_examples`.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction {fraction} lies outside (0, 1]; give a share of the target training data")
    # 0.07 * 100 is 7.000000000000001 in binary and must still keep 7
    size = math.ceil(round(fraction * n, 9))
    if size < min_examples:
        raise UserError(
            f"fraction {fraction:g} of {n} target examples keeps {size}, fewer than min_examples = {min_examples}; "
            "use a larger fraction, more data or a smaller min_examples"
        )
    return size


SUMMARY: Shape = {
    "records": COUNT,
    "splits": {name: Values(COUNT) for name in SPLITS},
    "quarantine": Values(COUNT),
    "unused": Values(COUNT),
    "archives?": Values(COUNT),
}


def split_snapshot(
    snapshot: Path | str,
    out: Path | str,
    *,
    source: Sequence[str],
    target: Sequence[str],
    seed: int = 0,
    shares: Mapping[str, float] = SHARES,
    near_duplicate: float = 0.8,
    max_bad_share: float = 0.01,
    target_share_in_source: float = 0.0,
    min_examples: int = 1,
    max_source: int | None = None,
    max_target: int | None = None,
    fields: Mapping[str, str] | None = None,
    display: Display = no_display,
) -> dict[str, Any]:
    """Split a snapshot by domain (archive of the primary category) into `SPLITS`, one parquet file each.

    A record's place is a keyed hash of its id: neither the order of the file nor other records move it, and the first
    records by rank of a split are a sample that larger samples contain. Duplicate ids and near-duplicate texts (across
    both domains) keep one record; of near-duplicates the one that comes first in hash order.

    Args:
        snapshot: what `read_records` reads.
        out: folder for the parquet files (id, archive, text, rank; rows by rank), quarantine.jsonl and summary.json.
        source: archives of the source domain.
        target: archives of the target domain.
        seed: key of the hash.
        shares: share of its domain for each split named; the rest is that domain's training split.
        near_duplicate: Jaccard similarity of word shingles from which two texts are duplicates, in [0.5, 1].
        max_bad_share: share of damaged records (malformed, missing field, empty abstract) above which to stop.
        target_share_in_source: share of the target's records that go to source_train instead (the paper's r).
        min_examples: fewest records of target_train.
        max_source: keep only that many source records, the first in hash order; mixed ones come on top.
        max_target: the same for the target; some of these are the mixed ones.
        fields: our field name -> the file's.
        display: of the progress.

    Returns:
        What summary.json holds: records, splits (records by archive), quarantine (by cause), unused (by reason).

    Raises:
        UserError: an unreadable snapshot, no record of a domain, overlapping domains, shares that leave nothing, too
            much damage, a split without records, or an unwritable folder.
    """
    _check_arguments(source, target, shares, near_duplicate, target_share_in_source)
    out = Path(out)
    # all files together, so that no failure leaves old and new splits side by side, with one text in both
    with replacing(out) as staged, tempfile.TemporaryFile(dir=staged) as spool, quarantine(staged) as damaged:
        with display("reading the snapshot") as progress:
            found = scan(snapshot, spool, damaged, {*source, *target}, seed, fields, progress)
        _check_domains(snapshot, found, source, target)
        with display("comparing texts") as progress:
            kept, doubles = _distinct(found, near_duplicate, progress)
        doubles += found.problems
        if damaged.causes.total() > max_bad_share * found.records:
            damaged.write(out / QUARANTINE, doubles)
            raise _too_much_damage(snapshot, found.records, damaged.causes, out, max_bad_share)
        domains = _domains(found, kept, source, target, target_share_in_source, max_source, max_target)
        plan = _assign(found, domains, shares)
        _check_sizes(plan, shares, min_examples)
        _check_plan(found, plan, {*source, *target} if target_share_in_source else {*source}, {*target})
        for name in SPLITS:
            _write_split(staged / f"{name}.parquet", found, plan[name])
        damaged.write(staged / QUARANTINE, doubles)
        causes = damaged.causes + Counter(problem.cause for problem in doubles)
        placed = sum(len(rows) for rows in plan.values())
        summary = {
            "records": found.records,
            "splits": {name: dict(Counter(found.archive[plan[name]].tolist())) for name in SPLITS},
            "quarantine": dict(sorted(causes.items())),
            "unused": {"over-maximum": len(kept) - placed, "other-archive": found.records - len(kept) - causes.total()},
            "archives": dict(found.archives.most_common()),
            "seed": seed,
            "source": list(source),
            "target": list(target),
        }
        write_json(staged / "summary.json", summary)
        return summary


def _check_arguments(
    source: Sequence[str],
    target: Sequence[str],
    shares: Mapping[str, float],
    near_duplicate: float,
    target_share_in_source: float,
) -> None:
    if both := sorted({*source} & {*target}):
        raise UserError(f"archive {both[0]!r} is in both source and target; the domains must not overlap")
    if not source or not target:
        raise UserError(f"{'target' if source else 'source'} names no archive; name at least one, for example physics")
    if not LEAST_SIMILARITY <= near_duplicate <= 1:
        raise UserError(
            f"near_duplicate = {near_duplicate} lies outside [{LEAST_SIMILARITY}, 1]; give a Jaccard similarity, as 0.8"
        )
    if not 0 <= target_share_in_source < 1:
        raise UserError(f"target_share_in_source = {target_share_in_source} lies outside [0, 1); give a share")
    if unknown := sorted(set(shares) - set(SHARES)):
        raise UserError(f"unknown split {unknown[0]!r} in the shares; name some of {', '.join(SHARES)}")
    for names in (SOURCE_SPLITS[1:], TARGET_SPLITS[1:]):
        given = {name: shares.get(name, 0.0) for name in names}
        if min(given.values()) < 0 or sum(given.values()) >= 1:
            text = ", ".join(f"{name} = {share:g}" for name, share in given.items())
            raise UserError(f"shares {text} must each be at least 0 and leave something for {names[0][:6]}_train")


def _check_domains(snapshot: Path | str, found: Scan, source: Sequence[str], target: Sequence[str]) -> None:
    for role, names in (("source", source), ("target", target)):
        for name in names:
            if not found.archives[name]:
                present = ", ".join(f"{known} ({n})" for known, n in found.archives.most_common(20)) or "none"
                raise UserError(f"{snapshot} has no record of the {role} archive {name!r}; archives present: {present}")


def _too_much_damage(
    snapshot: Path | str, records: int, causes: Counter[str], out: Path, max_bad_share: float
) -> UserError:
    counts = ", ".join(f"{cause} {n}" for cause, n in sorted(causes.items()))
    return UserError(
        f"{snapshot}: {causes.total()} of {records} records are damaged ({counts}), more than max_bad_share = "
        f"{max_bad_share:g}; see {out / QUARANTINE}, mend the file or raise the share"
    )


def _distinct(found: Scan, near_duplicate: float, progress: Progress) -> tuple[NDArray[np.int64], list[Problem]]:
    """Records in hash order without near-duplicates of an earlier one, and those near-duplicates."""
    ranked = found.ranked
    first = group(found.signature[ranked], lambda i: found.text(ranked[i]), near_duplicate, progress)
    alone = first == np.arange(len(ranked))
    doubles = [Problem(int(found.line[i]), NEAR_DUPLICATE, found.id[i]) for i in ranked[~alone].tolist()]
    return ranked[alone], doubles


def _domains(
    found: Scan,
    kept: NDArray[np.int64],
    source: Sequence[str],
    target: Sequence[str],
    target_share_in_source: float,
    max_source: int | None,
    max_target: int | None,
) -> dict[str, NDArray[np.int64]]:
    archive = found.archive[kept]
    of_target = kept[np.isin(archive, list(target))][:max_target]
    mixed = found.mix[of_target] < target_share_in_source
    of_source = kept[np.isin(archive, list(source))][:max_source]
    return {"source": of_source, "target": of_target[~mixed], "mixed": of_target[mixed]}


def _assign(
    found: Scan, domains: Mapping[str, NDArray[np.int64]], shares: Mapping[str, float]
) -> dict[str, NDArray[np.int64]]:
    """Split name -> record indices in rank order."""
    plan: dict[str, NDArray[np.int64]] = {}
    for domain, names in (("source", SOURCE_SPLITS), ("target", TARGET_SPLITS)):
        rows = domains[domain]
        bounds = np.cumsum([shares.get(name, 0.0) for name in names[1:]])
        part = np.searchsorted(bounds, found.place[rows], side="right")
        for index, name in enumerate(names[1:]):
            plan[name] = rows[part == index]
        plan[names[0]] = rows[part == len(names) - 1]
    # merged by hash order, so that a prefix of the training data has its share of mixed records
    position = np.empty(len(found.id), np.int64)
    position[found.ranked] = np.arange(len(found.ranked))
    train = np.concatenate([plan["source_train"], domains["mixed"]])
    plan["source_train"] = train[np.argsort(position[train])]
    return plan


def _check_sizes(plan: Mapping[str, NDArray[np.int64]], shares: Mapping[str, float], min_examples: int) -> None:
    least = {name: 1 for name in SPLITS if shares.get(name, 0.0) > 0}
    least |= {"source_train": 1, "target_train": max(min_examples, 1)}
    for name, fewest in least.items():
        if len(plan[name]) < fewest:
            raise UserError(
                f"split {name} has {len(plan[name])} records, fewer than {fewest}; "
                "give more data, change the shares or lower min_examples"
            )


def _check_plan(found: Scan, plan: Mapping[str, NDArray[np.int64]], source: set[str], target: set[str]) -> None:
    """Check the splits with pandera: ids unique across them, texts, archives of the domain, ranks a permutation.

    Raises:
        pandera.errors.SchemaError: a bug in this module, never the user's data.
    """
    import pandas as pd
    import pandera.pandas as pa

    class Splits(pa.DataFrameModel):
        """All splits, one row per record."""

        split: str = pa.Field(isin=SPLITS)
        id: str = pa.Field(unique=True)
        archive: str
        characters: int = pa.Field(gt=0)
        rank: int = pa.Field(ge=0)

        @pa.dataframe_check
        @classmethod
        def archive_of_the_domain(cls, frame: pd.DataFrame) -> pd.Series:
            """Source splits hold source archives, target splits target archives."""
            in_source = frame["split"].isin(SOURCE_SPLITS)
            return frame["archive"].isin(source).where(in_source, frame["archive"].isin(target))

        @pa.dataframe_check
        @classmethod
        def rank_is_a_permutation(cls, frame: pd.DataFrame) -> bool:
            """Every split's ranks are 0 .. n - 1, each once."""
            return all(set(ranks) == set(range(len(ranks))) for _, ranks in frame.groupby("split")["rank"])

    rows = np.concatenate([plan[name] for name in SPLITS])
    sizes = [len(plan[name]) for name in SPLITS]
    Splits.validate(
        pd.DataFrame(
            {
                "split": np.repeat(np.array(SPLITS), sizes),
                "id": [found.id[i] for i in rows.tolist()],
                "archive": found.archive[rows],
                "characters": np.diff(found.offset)[rows],
                "rank": np.concatenate([np.arange(size) for size in sizes]),
            }
        )
    )


def _write_split(path: Path, found: Scan, rows: NDArray[np.int64]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.string()), ("archive", pa.string()), ("text", pa.string()), ("rank", pa.int64())])
    options = {"compression": "zstd", "write_page_checksum": True}  # which `read_texts` compares
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for start in range(0, len(rows), _WRITE_ROWS):
            chunk = rows[start : start + _WRITE_ROWS].tolist()
            columns = [
                pa.array([found.id[i] for i in chunk], pa.string()),
                pa.array(found.archive[chunk].tolist(), pa.string()),
                pa.array([found.text(i) for i in chunk], pa.binary()).cast(pa.string()),
                pa.array(range(start, start + len(chunk)), pa.int64()),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
