"""Data stages: records into data/, then splits, then tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gtl_lightning.config import Params
from gtl_lightning.errors import UserError
from gtl_lightning.stages.common import DATA, SNAPSHOT, SPLITS, TOKENS, log


def data_sample(*, seed: int) -> None:
    """The embedded sample, generated; every record says so."""
    from gtl_lightning.data.sample import write_sample

    write_sample(DATA, seed=seed)
    _version()


def data_import(path: Path, *, fields: dict[str, str]) -> None:
    """A snapshot file as Kaggle publishes it.

    Raises:
        UserError: missing, empty, truncated, or no JSON lines.
    """
    from gtl_lightning.data.snapshot import import_snapshot

    import_snapshot(path, DATA, fields=fields)
    _version()


def data_download(dataset: str, *, split: str, limit: int | None, fields: dict[str, str]) -> None:
    """A hub data set, streamed.

    Raises:
        UserError: the hub or the data set cannot be reached, or a field is missing.
    """
    from gtl_lightning.data.hub import download

    download(dataset, DATA, split=split, limit=limit, fields=fields)
    _version()


def split(params: Params) -> None:
    """Disjoint, nested, stable splits by domain, and the quarantine."""
    from gtl_lightning.data.split import split_snapshot

    split_snapshot(SNAPSHOT, SPLITS, **_split_arguments(params))


def tokenize(params: Params) -> None:
    """The tokenizer and every split's token arrays."""
    from gtl_lightning.data.tokens import tokenize_splits

    tokenize_splits(
        SPLITS,
        TOKENS,
        name=params.tokenizer.name,
        vocab_size=params.tokenizer.vocab_size,
        length=params.tokenizer.length,
    )


def _version() -> None:
    """Put data/ under DVC: data.dvc then says which snapshot this is."""
    done = subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", str(DATA)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"data/ is written, but `dvc add data` failed: {reason}")
    log.info("data/ written and versioned: data.dvc changed, commit it to share this snapshot")
