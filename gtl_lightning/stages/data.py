"""Data stages: records into data/, then splits, then tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gtl_lightning.config import Params
from gtl_lightning.errors import UserError
from gtl_lightning.stages.asked import known_seed
from gtl_lightning.stages.checks import check_corpus
from gtl_lightning.stages.common import DATA, SNAPSHOT, SPLITS, TOKENS, log


def data_sample(*, seed: int) -> None:
    """The embedded sample, generated; every record says so."""
    from gtl_lightning.data.sample import write_sample

    known_seed("--seed", seed)
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
    from gtl_lightning.data.download import download

    download(dataset, DATA, split=split, limit=limit, fields=fields)
    _version()


def split(params: Params) -> None:
    """Disjoint, nested, stable splits by domain, and the quarantine."""
    from gtl_lightning.data.split import split_snapshot

    data = params.data
    split_snapshot(
        SNAPSHOT,
        SPLITS,
        source=data.source,
        target=data.target,
        seed=data.seed,
        shares={
            "source_val": data.source_val,
            "judge_source": data.source_judge,
            "target_val": data.target_val,
            "target_test": data.target_test,
            "judge_target": data.target_judge,
        },
        near_duplicate=data.near_duplicate,
        max_bad_share=data.max_bad_share,
        target_share_in_source=data.target_share_in_source,
        min_examples=data.min_examples,
        max_source=data.max_source,
        max_target=data.max_target,
    )


def tokenize(params: Params) -> None:
    """The tokenizer and every split's token arrays.

    Raises:
        UserError: the parameters ask for more than the splits hold (`check_corpus`).
    """
    from gtl_lightning.data.tokens import tokenize_splits

    meta = tokenize_splits(
        SPLITS,
        TOKENS,
        name=params.tokenizer.name,
        vocab_size=params.tokenizer.vocab_size,
        length=params.tokenizer.length,
    )
    sizes = {name: found["examples"] for name, found in meta["splits"].items()}
    check_corpus(params, meta["vocab_size"], sizes)  # now, not after minutes of training


def _version() -> None:
    """Put data/ under DVC: data.dvc then says which snapshot this is."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "add", "--quiet", str(DATA)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"data/ is written, but `dvc add data` failed: {reason}")
    log.info("data/ written and versioned: data.dvc changed, commit it to share this snapshot")
