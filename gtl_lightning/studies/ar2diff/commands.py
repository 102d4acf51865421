"""`gtl ar2diff-study ...`: the study's commands. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from gtl_lightning.studies.ar2diff.settings import AR2Diff
from gtl_lightning.workspace.opening import open_params
from gtl_lightning.workspace.params import Params

app = typer.Typer(help="The study of AR2Diff: a causal model, continued as a denoiser.", no_args_is_help=True)


@app.command("configure")
def ar2diff_configure(
    overrides: Annotated[list[str], typer.Option("--set", help="key=value, repeatable", show_default=False)] = [],  # noqa: B006 - typer reads it
) -> None:
    """Write the study's params.yaml: only what --set names, or without it as shipped; tells what changes."""
    from gtl_lightning.studies.ar2diff import params as config

    for line in config.FILE.configure(tuple(overrides)):
        typer.echo(line)


@app.command("chains")
def ar2diff_chains() -> None:
    """Steps from a causal model beside as many from nothing, on Markov chains."""
    _, settings = _open()
    from gtl_lightning.studies.ar2diff import chains

    chains.measure_chains(settings)


@app.command("text")
def ar2diff_text() -> None:
    """The same on text, by shift, annealing and loss; then both tasks, prefix to target."""
    _, settings = _open()
    from gtl_lightning.studies.ar2diff import text

    text.measure_text(settings)


@app.command("speed")
def ar2diff_speed() -> None:
    """Time of decoding against length, with quality beside it."""
    _, settings = _open()
    from gtl_lightning.studies.ar2diff import speed

    speed.measure_speed(settings)


@app.command("report")
def ar2diff_report() -> None:
    """reports/ar2diff.json, ar2diff.md and the figures."""
    params, settings = _open()
    from gtl_lightning.studies.ar2diff import page

    page.ar2diff_report(settings, params)


def _open() -> tuple[Params, AR2Diff]:
    """The parameters, which say where it is tracked, and the study's."""
    from gtl_lightning.studies.ar2diff import params as config

    return open_params(), config.load_settings()
