"""`gtl scale`: the whole comparison in parts, on a machine that is lent for minutes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from gtl_lightning.commands.configure import SetOption
from gtl_lightning.commands.data import FieldOption, pairs
from gtl_lightning.resources import check_address_space, limit_threads

app = typer.Typer()


@app.command()
def scale(
    data: Annotated[Path, typer.Argument(help="a metadata snapshot, as `gtl data import` takes it")],
    folder: Annotated[Path, typer.Argument(help="where everything goes; new, or to go on with")],
    minutes: Annotated[float, typer.Option(help="of this part; the same command goes on with the next")] = 8.0,
    profile: Annotated[str, typer.Option(help="default, or a file in profiles/")] = "gpu",
    field: FieldOption = [],  # noqa: B006 - typer reads it
    overrides: SetOption = [],  # noqa: B006 - typer reads it
) -> None:
    """Records to report and speed, every step in one process and all of it in FOLDER, in parts of some minutes.

    A part stops by itself before its minutes are over and says what remains; the same command goes on. No other
    machine, server or checkout is needed. In the end there are FOLDER/reports (transfer.json, report.md, figures, and
    bench.json: samples a second at 512 tokens, guided over unguided, share of a matrix product's rate, steps of
    training), params.yaml and, in scale.json, the commit and the seconds of each step.
    """
    from gtl_lightning.workspace.params import configure

    params = configure(profile, tuple(overrides))
    limit_threads(params.machine.threads)
    check_address_space()
    from gtl_lightning.stages import scale

    scale.run_scale(params, data, pairs(field), folder, minutes, shlex.join(["gtl", *sys.argv[1:]]))
