"""Data stages: records into data/, then splits, then tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gtl_lightning.data.download import download
from gtl_lightning.data.origin import check_fields, domains, recorded_fields
from gtl_lightning.data.packed import STANDARD_INPUT
from gtl_lightning.data.pair import check_pair, import_pair
from gtl_lightning.data.recorded import check_snapshot
from gtl_lightning.data.sample import write_sample
from gtl_lightning.data.snapshot import import_snapshot
from gtl_lightning.data.split import split_snapshot
from gtl_lightning.data.tokens import tokenize_splits
from gtl_lightning.errors import UserError, lacks_memory
from gtl_lightning.files import make_folder, settle, write_text, writing
from gtl_lightning.workspace.checks import check_corpus, check_featurizer
from gtl_lightning.workspace.options import check_seed
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import DATA, SNAPSHOT, SPLITS, STATE, TOKENS, log
from gtl_lightning.workspace.progress import progress_bar


def data_sample(*, seed: int) -> None:
    """The embedded sample, generated; every record says so."""
    check_seed("--seed", seed)
    _replace_data(lambda: write_sample(DATA, seed=seed))


def data_import(path: Path, *, fields: dict[str, str]) -> None:
    """A snapshot as Kaggle publishes it: a file, a pipe or, as "-", standard input.

    Raises:
        UserError: missing, empty, truncated, no JSON lines, or no usable record.
    """
    check_fields(fields)
    if str(path) != STANDARD_INPUT and not path.exists():
        raise UserError(f"{path} does not exist; give a file, a pipe, or - for standard input")
    _replace_data(lambda: import_snapshot(path, DATA, fields, progress_bar))


def data_import_pair(source: str, target: str, *, text: str | None) -> None:
    """Texts of one's own: a table of the source domain's, and one of the target's.

    Raises:
        UserError: a table that is not there, of no known form or without texts, or both the same.
    """
    check_pair(source, target)
    _replace_data(lambda: import_pair(source, target, DATA, text=text, display=progress_bar))


def data_download(dataset: str, *, split: str, limit: int | None, fields: dict[str, str]) -> None:
    """A hub data set, streamed.

    Raises:
        UserError: the hub or the data set cannot be reached, or a field is missing.
    """
    check_fields(fields)
    _replace_data(lambda: download(dataset, DATA, split=split, limit=limit, fields=fields))


def split(params: Params) -> None:
    """Disjoint, nested, stable splits by domain, and the quarantine."""
    data = params.data
    with _in_memory(f"splitting {SNAPSHOT}", SPLITS):
        settle(DATA)
        check_snapshot(DATA)
        source, target = domains(DATA, data.source, data.target)
        if (source, target) != (data.source, data.target):
            log.info("the domains are the two tables of %s; data.source and data.target are not used", DATA)
        summary = split_snapshot(
            SNAPSHOT,
            SPLITS,
            source=source,
            target=target,
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
            fields=recorded_fields(DATA),
            display=progress_bar,
        )
    left_out = {**summary["quarantine"], **summary["unused"]}
    log.info(
        "%d records, %d of them in the splits; left out: %s",
        summary["records"],
        sum(sum(archives.values()) for archives in summary["splits"].values()),
        ", ".join(f"{cause} {count}" for cause, count in left_out.items() if count) or "none",
    )


def tokenize(params: Params) -> None:
    """The tokenizer and every split's token arrays.

    Raises:
        UserError: the parameters ask for more than the splits hold (`check_corpus`), or for a featurizer that is not
            there.
    """
    check_featurizer(params)  # which is needed last, when everything is trained
    with _in_memory(f"tokenising {SPLITS}", TOKENS):
        meta = tokenize_splits(
            SPLITS,
            TOKENS,
            name=params.tokenizer.name,
            vocab_size=params.tokenizer.vocab_size,
            length=params.tokenizer.length,
        )
    sizes = {name: found["examples"] for name, found in meta["splits"].items()}
    check_corpus(params, meta["vocab_size"], sizes)  # now, not after minutes of training


def _replace_data(take: Callable[[], dict[str, Any]]) -> None:
    """Let `take` put records into data/ and version them: one command at a time, from the first byte to data.dvc."""
    with _in_memory("taking these records", DATA):
        make_folder(STATE)
        try:
            with FileLock(STATE / "data.lock", timeout=0):
                try:
                    provenance = take()
                except KeyboardInterrupt:
                    log.warning("stopped before %s was replaced: it holds what it held", DATA)
                    raise
                _version(_counted(provenance))
        except Timeout as error:
            raise UserError(f"{DATA} is being replaced by another `gtl data` command; wait for it to end") from error


@contextmanager
def _in_memory(doing: str, folder: Path) -> Iterator[None]:
    """What a machine refuses while `folder` is written becomes one line.

    Raises:
        UserError: too little memory, or any OSError.
    """
    try:
        with writing(folder):
            yield
    except (MemoryError, ImportError) as error:
        # a library that finds no room to be loaded in is an ImportError to Python
        if not lacks_memory(error):
            raise
        raise UserError(
            f"not enough memory for {doing}; {folder} is as it was: free memory, or take fewer records "
            "(`gtl data download --limit`, fewer lines to `gtl data import -`)"
        ) from error


def _counted(provenance: Mapping[str, Any]) -> str:
    """`5000 records`, or how many of them can be used and why the others cannot."""
    records, damaged = provenance["records"], provenance.get("damaged", {})
    if not damaged:
        return f"{records} records"
    bad = sum(damaged.values())
    causes = ", ".join(f"{cause} {n}" for cause, n in sorted(damaged.items()))
    return f"{records} records, {records - bad} usable and {bad} damaged: {causes}"


def _leave_sample_store(path: Path) -> None:
    """The shipped data.dvc names the store that came with it, where `dvc push` would put other records too."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if not line.startswith("  remote:")))


def _version(records: str) -> None:
    """Put data/ under DVC: data.dvc then says which snapshot this is."""
    command = [sys.executable, "-m", "dvc", "add", str(DATA)]
    _leave_sample_store(Path(f"{DATA}.dvc"))
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        failed, said = done.returncode != 0, done.stderr
    except OSError as error:
        failed, said = True, str(error)
    if failed:
        lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise UserError(
            f"{DATA} is replaced, whole and checked ({records}), but {DATA}.dvc still names what it held "
            f"before, for `dvc add {DATA}` failed ({reason}); mend that and run `dvc add {DATA}`"
        )
    log.info("%s written (%s) and versioned: %s.dvc changed, commit it to share them", DATA, records, DATA)
