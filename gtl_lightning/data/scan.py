"""One pass over a snapshot: ids, hash order and signatures stay in memory, the texts go to an unlinked spool file."""

from __future__ import annotations

import hashlib
import mmap
import zlib
from array import array
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from gtl_lightning.data.duplicates import BANDS, ROWS, signatures
from gtl_lightning.data.lines import Progress, unseen
from gtl_lightning.data.quarantine import Problem, Quarantine
from gtl_lightning.data.snapshot import read_records

DUPLICATE_ID = "duplicate-id"

_DIGEST_BYTES = 24  # three numbers of 64 bits: order, place, mix
_BATCH_BYTES = 1 << 17  # one batch's arrays stay in the processor's cache


@dataclass
class Scan:
    """The records of the wanted archives, n of them in file order, and counts of all others.

    `problems` are records whose id another one has.
    `ranked` holds indices in hash order, duplicate ids left out; `place` and `mix` are uniform numbers in [0, 1) that
    depend on the id and the seed alone.
    """

    records: int
    problems: list[Problem]
    archives: Counter[str]
    id: list[str]
    archive: NDArray[np.str_]
    line: NDArray[np.int64]
    place: NDArray[np.float64]
    mix: NDArray[np.float64]
    signature: NDArray[np.uint32]
    ranked: NDArray[np.int64]
    offset: NDArray[np.int64]
    spool: IO[bytes]

    def text(self, index: int) -> bytes:
        """UTF-8 text of a record."""
        return self._texts[self.offset[index] : self.offset[index + 1]]

    @cached_property
    def _texts(self) -> mmap.mmap:
        return mmap.mmap(self.spool.fileno(), 0, access=mmap.ACCESS_READ)


def scan(
    snapshot: Path | str,
    spool: IO[bytes],
    quarantine: Quarantine,
    archives: Collection[str],
    seed: int,
    fields: Mapping[str, str] | None = None,
    progress: Progress = unseen,
) -> Scan:
    """Read a snapshot once: the texts of the wanted `archives` go to `spool`, damaged lines to `quarantine`.

    Of records with the same id the one with the least content hash is kept, so that their order in the file does not
    matter; the others become problems.

    Raises:
        UserError: a snapshot that `read_records` refuses.
    """
    key = f"gtl split {seed}".encode()
    seen: Counter[str] = Counter()
    digests, content = bytearray(), array("Q")
    line, used = array("q"), array("q")
    ids: list[str] = []
    names: list[str] = []
    offset = array("q", [0])
    parts: list[NDArray[np.uint32]] = [np.empty((0, BANDS * ROWS), np.uint32)]
    batch: list[bytes] = []
    pending = records = 0
    for record in read_records(snapshot, fields, progress):
        records += 1
        if isinstance(record, Problem):
            quarantine.add(record)
            continue
        name = record.archive
        seen[name] += 1
        text = record.abstract.encode()
        digests += hashlib.blake2b(record.id.encode(), digest_size=_DIGEST_BYTES, key=key).digest()
        content.append(zlib.crc32(text, zlib.crc32(record.categories.encode())))
        line.append(record.line)
        used.append(len(ids) if name in archives else -1)
        if name not in archives:
            continue
        ids.append(record.id)
        names.append(name)
        offset.append(offset[-1] + len(text))
        batch.append(text)
        pending += len(text)
        if pending >= _BATCH_BYTES:
            parts.append(_spool(batch, spool))
            batch, pending = [], 0
    parts.append(_spool(batch, spool))
    spool.flush()
    lines, wanted = np.asarray(line, np.int64), np.asarray(used, np.int64)
    hashes, place, mix = np.frombuffer(digests, "<u8").reshape(-1, 3).T.astype(np.uint64)
    by_hash = np.lexsort((lines, np.asarray(content), hashes))
    repeated = np.zeros(len(by_hash), bool)
    repeated[1:] = hashes[by_hash[1:]] == hashes[by_hash[:-1]]
    is_wanted = wanted >= 0
    again = _ids_at(by_hash[repeated], wanted, ids)
    problems = [Problem(int(lines[i]), DUPLICATE_ID, again.get(int(i))) for i in by_hash[repeated]]
    ranked = wanted[by_hash[~repeated]]
    return Scan(
        records=records,
        problems=problems,
        archives=seen,
        id=ids,
        archive=np.array(names, dtype=np.str_),
        line=lines[is_wanted],
        place=place[is_wanted] / 2.0**64,
        mix=mix[is_wanted] / 2.0**64,
        signature=np.concatenate(parts),
        ranked=ranked[ranked >= 0],
        offset=np.asarray(offset, np.int64),
        spool=spool,
    )


def _spool(batch: list[bytes], spool: IO[bytes]) -> NDArray[np.uint32]:
    spool.write(b"".join(batch))
    return signatures(batch)


def _ids_at(rows: NDArray[np.int64], wanted: NDArray[np.int64], ids: list[str]) -> dict[int, str]:
    return {int(row): ids[wanted[row]] for row in rows if wanted[row] >= 0}
