"""`gtl budget`: what trainings cost, and steps of equal cost."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from gtl_lightning.workspace.opening import open_params

app = typer.Typer()


@app.command()
def budget(
    share: Annotated[float, typer.Option(min=0.001, max=1000, help="share of fine-tuning's cost")] = 1.0,
    timed: Annotated[
        bool, typer.Option("--timed", help="processor seconds of steps on this machine in place of operations")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="write these steps into params.yaml")] = False,
) -> None:
    """Cost of each method's training, and the steps that make it cost as much as fine-tuning, or a share of it.

    It needs the texts (`dvc repro tokenize`) and no network. Steps are the most of a fit, which stops early as ever.
    """
    params = open_params()
    from gtl_lightning.stages import budget
    from gtl_lightning.workspace.corpus import device_of
    from gtl_lightning.workspace.params import changes, write_params

    seconds = partial(budget.processor_seconds, device=device_of(params))
    found = budget.budgets(params, share, seconds if timed else budget.operations)
    whole = next(one.spent for one in found if one.method == budget.FINETUNED)
    unit = "SECONDS A STEP" if timed else "GFLOP A STEP"
    rows = [("METHOD", unit, "FITS", "STEPS", "OF FINE-TUNING'S", f"STEPS AT {share:g}")]
    rows += [
        (one.method, f"{one.per_step:.3f}", f"{one.fits}", f"{one.steps}", f"{one.spent / whole:.2f}", f"{one.equal}")
        for one in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *numbers in rows:
        typer.echo("  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]))
    if write:
        asked = budget.at_equal_cost(params, found)
        write_params(asked)
        for line in changes(params.model_dump(mode="json"), asked.model_dump(mode="json")).values():
            typer.echo(line)
