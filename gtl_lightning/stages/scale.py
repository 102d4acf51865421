"""`gtl scale`: the whole comparison on one machine, in parts of some minutes, into one folder."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gtl_lightning.bench.results import ROWS
from gtl_lightning.data.origin import check_fields
from gtl_lightning.data.snapshot import import_snapshot
from gtl_lightning.errors import UserError
from gtl_lightning.files import make_folder, sha256_file, write_json
from gtl_lightning.modules.callbacks import LAST
from gtl_lightning.modules.state import RESULT
from gtl_lightning.records import AMOUNT, Shape, Values, read_record
from gtl_lightning.stages.bench import measure
from gtl_lightning.stages.whole import Step, whole, working_in
from gtl_lightning.workspace.closure import ROOT, code_hash
from gtl_lightning.workspace.corpus import check_machine, device_of
from gtl_lightning.workspace.fitting import TRAINING
from gtl_lightning.workspace.origin import commit_of
from gtl_lightning.workspace.params import PARAMS, Params, changes, load_params, override, write_params
from gtl_lightning.workspace.paths import DATA, REPORTS, STATE, log
from gtl_lightning.workspace.progress import progress_bar

NOTE = Path("scale.json")
NOTED: Shape = {
    "data": {"name": str, "sha256": str, "fields": Values(str)},
    "code": str,
    "commit": str,
    "done": Values(AMOUNT),
}
"""Whose run the folder holds, and the seconds of each step that has ended."""
RESERVE = 0.05
"""Share of the minutes that is left to end in: a training writes nothing when it is stopped, MLflow its last rows."""
SPEED_LENGTH = 512
"""Tokens of the texts that speed is measured on: those of the published set-up."""
SPEED_GROUPS = ("guidance", "training")


def run_scale(params: Params, data: Path, fields: dict[str, str], folder: Path, minutes: float, command: str) -> bool:
    """One part: go on where the last one ended, and stop before the minutes are over. Whether everything is done.

    When the time is up it is as if a person had pressed Ctrl-C: a training goes on from its last check, any other step
    begins anew in the next part.

    Args:
        params: of the whole run; the folder keeps them.
        data: a metadata snapshot, and what its `fields` are called, as `import_snapshot` takes them.
        fields: our name -> the file's.
        folder: everything lies there; new or empty, or of this very run.
        minutes: of this part.
        command: that goes on.

    Raises:
        UserError: minutes that are none, no data file, a folder of anything else, no GPU where one is asked for, or a
            part in which nothing came about that the next could go on from.
    """
    began, deadline = time.time(), time.monotonic() + 60 * minutes * (1 - RESERVE)
    if not minutes > 0:
        raise UserError(f"--minutes {minutes:g}; give more than 0: a training goes on from its last check")
    if not data.is_file():
        raise UserError(f"{data} does not exist or is no file; give a snapshot, one JSON object a line")
    check_fields(fields)
    device_of(params)
    check_machine(params)
    data, note = data.resolve(), _begun(params, data, fields, folder)
    before = len(note["done"])
    with working_in(folder):
        steps = whole(params, ("the records", partial(import_snapshot, data, DATA, fields, progress_bar)))
        steps.append(("speed", partial(_measure_speed, params, command)))
        _run(steps, note, deadline)
        left = [what for what, _ in steps if what not in note["done"]]
        kept = [path for name in (LAST, RESULT) for path in STATE.glob(f"*/{name}") if path.stat().st_mtime >= began]
    if not left:
        log.info("everything is done, in %s of work: %s", _said(sum(note["done"].values())), folder / REPORTS)
        return True
    if len(note["done"]) == before and not kept:
        raise UserError(
            f"nothing of {minutes:g} minutes could be kept: {left[0]!r} takes longer, and goes on from nothing; raise "
            "--minutes, or lower the check_every of its training"
        )
    log.info("%d of %d steps are done; next: %s", len(steps) - len(left), len(steps), left[0])
    log.info("go on with: %s", command)
    return False


def _run(steps: list[Step], note: dict[str, Any], deadline: float) -> None:
    """What is not done yet, until then; `note` and its file say what is."""
    try:
        with _interrupted_at(deadline):
            for number, (what, run) in enumerate(steps, 1):
                if what in note["done"]:
                    continue
                log.info("[%d of %d] %s", number, len(steps), what)
                started = time.monotonic()
                run()
                note["done"][what] = round(time.monotonic() - started, 2)
                write_json(NOTE, note)
    except KeyboardInterrupt:
        if time.monotonic() < deadline:  # a person's
            raise


@contextmanager
def _interrupted_at(deadline: float) -> Iterator[None]:
    """Inside, what Ctrl-C does comes by itself at that time of the monotonic clock."""
    numbers = (signal.SIGALRM, signal.SIGINT)  # Lightning ignores the second once it has stopped
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, deadline - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _begun(params: Params, data: Path, fields: dict[str, str], folder: Path) -> dict[str, Any]:
    """What the folder notes of this run, which has been begun here now or before.

    Raises:
        UserError: it holds something else, or a run of other parameters, data or code.
    """
    own = {
        "data": {"name": data.name, "sha256": sha256_file(data), "fields": fields},
        "code": f"{code_hash(__name__)}-{code_hash(TRAINING)}",
        "commit": commit_of(ROOT) or "unknown",
        "done": {},
    }
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder, new or of this run")
    path = folder / NOTE
    if not path.exists() and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run of `gtl scale`; name another folder")
    note = read_record(path, NOTED) if path.exists() else own
    if note["done"]:
        others = list(
            changes(load_params(folder / PARAMS).model_dump(mode="json"), params.model_dump(mode="json")).values()
        )
        others += [f"{key}: {note[key]} -> {own[key]}" for key in ("data", "code") if note[key] != own[key]]
        if others:
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            raise UserError(f"{folder} holds another run ({others[0]}{more}); name another folder, or ask for that one")
        return note
    make_folder(folder)
    write_params(params, folder / PARAMS)
    write_json(path, own)
    return own


def _measure_speed(params: Params, command: str) -> None:
    """reports/bench.json: rows as `gtl bench` has them, of the run's networks on texts of `SPEED_LENGTH`."""
    long = override(params, (f"tokenizer.length={SPEED_LENGTH}",))
    groups = measure(long, command, SPEED_GROUPS)
    write_json(ROWS, [{"profile": params.profile, **row} for _, rows in groups for row in rows])


def _said(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"
