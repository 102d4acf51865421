"""`gtl bench`: how fast sampling and training are on this machine, as rows, a table and a figure."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gtl_lightning.bench.results import PAGE, ROWS, measured, write_page
from gtl_lightning.bench.sampling import Bench, growth_rows
from gtl_lightning.bench.timing import hardware, matrix_rate
from gtl_lightning.bench.training import PRECISIONS, training_rows
from gtl_lightning.errors import UserError
from gtl_lightning.files import write_json
from gtl_lightning.workspace.corpus import device_of
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import log

GROUPS = ("batch", "length", "n_ratio", "k", "planner", "block", "guidance", "candidates", "counted", "training")
"""What is measured together: what the sampler's cases vary, and training."""
ALIKE = ("hardware", "torch", "sampling_precision", "denoiser_parameters", "ratio_parameters", "vocab_size")
"""What rows of one profile have in common."""


def run_bench(params: Params, command: str, only: tuple[str, ...] = ()) -> None:
    """Measure, then write reports/bench.json, docs/benchmarks.md and its figure.

    Rows are kept group by group, so that an interrupted run loses one group. Rows of other profiles stay, and of groups
    that were not asked for those that are alike (`ALIKE`): the page shows all that were measured.

    Args:
        params: sizes and cases; nothing is read from disk.
        command: what was asked for, for the page.
        only: groups to measure; all if empty.

    Raises:
        UserError: as `measure`; an unknown group, an unwritable folder.
    """
    if unknown := sorted(set(only) - set(GROUPS)):
        raise UserError(f"--only {unknown[0]} is no group of benchmarks; choose some of {', '.join(GROUPS)}")
    today = _today()
    for group, rows in measure(params, command, only or GROUPS):
        kept = measured()
        if group == "machine":
            kept = _of_alike(kept, params.profile, rows[0])
        others = [row for row in kept if (row["profile"], row["group"]) != (params.profile, group)]
        write_json(ROWS, [*others, *({"profile": params.profile, "date": today, **row} for row in rows)])
        write_page()
    log.info("benchmarks: %s and %s", PAGE, ROWS)


def _of_alike(rows: list[dict[str, Any]], profile: str, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Without the profile's times that are not alike (`ALIKE`), which the page would show as of this machine."""
    before = next((row for row in rows if row["profile"] == profile and row["part"] == "machine"), machine)
    if all(before.get(key) == machine[key] for key in ALIKE):
        return rows
    log.info("benchmarks of profile %s were measured otherwise and go: %s", profile, before.get("hardware"))
    return [row for row in rows if row["profile"] != profile or row["part"] == "quality"]


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def measure(params: Params, command: str, groups: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(group, its rows): the machine, then in the order of `GROUPS`, then what is derived.

    Raises:
        UserError: a case that does not fit the networks.
    """
    _check(params)
    device = device_of(params)
    subject = Bench(params, device)
    size, rounds = params.bench.matrix, 2 * params.bench.rounds
    rates = {name: matrix_rate(device, dtype, size, rounds) for name, dtype in PRECISIONS.items()}
    machine = {
        "part": "machine",
        "group": "machine",
        "hardware": hardware(device),
        "date": _today(),
        "torch": torch.__version__,
        "command": command,
        "sampling_precision": params.machine.sampling_precision,
        "gflops_fp32": rates["32-true"] / 1e9,
        "gflops_bf16": rates["bf16-mixed"] / 1e9,
        "denoiser_parameters": sum(weight.numel() for weight in subject.denoiser.parameters()),
        "ratio_parameters": sum(weight.numel() for weight in subject.ratios["token"].parameters()),
        "vocab_size": subject.vocab_size,
    }
    yield "machine", [machine]
    cases = list(subject.cases())
    for group in (name for name in GROUPS if name in groups):
        if group == "training":
            yield group, training_rows(subject)
        elif group == "counted":
            yield group, [subject.counted()]
        else:
            rows = [row for name, together in cases if name == group for row in subject.rows(group, together)]
            for row in rows:
                log.info("%s: %s batch %d, %.4f s", group, row["guidance"], row["batch"], row["seconds_per_step"])
            yield group, rows
    yield "growth", growth_rows([row for row in measured() if row["profile"] == params.profile])


def _check(params: Params) -> None:
    """Raise UserError for cases that cannot be."""
    settings, length = params.bench, params.tokenizer.length
    shortest = min(*settings.lengths, length)
    if max(settings.positions_per_step) > length:
        raise UserError(
            f"bench.positions_per_step = {max(settings.positions_per_step)} exceeds tokenizer.length = {length}; "
            "lower it"
        )
    if settings.blocks and max(settings.blocks) > shortest:
        raise UserError(f"bench.blocks = {max(settings.blocks)} exceeds the shortest text of {shortest}; lower it")
