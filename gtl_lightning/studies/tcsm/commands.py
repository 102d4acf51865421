"""`gtl tcsm ...`: the study's commands. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from gtl_lightning.studies.tcsm.settings import Tcsm
from gtl_lightning.workspace.opening import open_params
from gtl_lightning.workspace.params import Params

app = typer.Typer(help="The study of target concrete score matching.", no_args_is_help=True)


@app.command("configure")
def tcsm_configure(
    overrides: Annotated[list[str], typer.Option("--set", help="key=value, repeatable", show_default=False)] = [],  # noqa: B006 - typer reads it
) -> None:
    """Write the study's params.yaml: only what --set names, or without it as shipped; tells what changes."""
    from gtl_lightning.studies.tcsm import params as config

    for line in config.FILE.configure(tuple(overrides)):
        typer.echo(line)


@app.command("law")
def tcsm_law() -> None:
    """Every form of the objective beside its shortcuts, and rewards, on laws that are listed."""
    _, settings = _open()
    from gtl_lightning.studies.tcsm import law

    law.measure_law(settings)


@app.command("chains")
def tcsm_chains() -> None:
    """Distillation beside cross-entropy on Markov chains: examples, and the gradient's noise."""
    _, settings = _open()
    from gtl_lightning.studies.tcsm import chains

    chains.measure_chains(settings)


@app.command("text")
def tcsm_text() -> None:
    """Objective by noise on characters of abstracts, at an equal number of steps."""
    _, settings = _open()
    from gtl_lightning.studies.tcsm import text

    text.measure_text(settings)


@app.command("report")
def tcsm_report() -> None:
    """reports/tcsm.json, tcsm.md and the figures."""
    params, settings = _open()
    from gtl_lightning.studies.tcsm import page

    page.tcsm_report(settings, params)


def _open() -> tuple[Params, Tcsm]:
    """The parameters, which say where it is tracked, and the study's."""
    from gtl_lightning.studies.tcsm import params as config

    return open_params(), config.load_settings()
