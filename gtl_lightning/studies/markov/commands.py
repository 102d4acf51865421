"""`gtl markov ...`: the study's commands. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.workspace.opening import open_params
from gtl_lightning.workspace.params import Params

app = typer.Typer(help="The study on Markov chains, where everything is known exactly.", no_args_is_help=True)


@app.command("configure")
def markov_configure(
    overrides: Annotated[list[str], typer.Option("--set", help="key=value, repeatable", show_default=False)] = [],  # noqa: B006 - typer reads it
) -> None:
    """Write the study's params.yaml: only what --set names, or without it as shipped; tells what changes."""
    from gtl_lightning.studies.markov import params as config

    for line in config.FILE.configure(tuple(overrides)):
        typer.echo(line)


@app.command("source")
def markov_source() -> None:
    """The source denoiser of the chains."""
    _, settings = _open()
    from gtl_lightning.studies.markov import study

    study.markov_source(settings)


@app.command("cells")
def markov_cells(seed: Annotated[int, typer.Option(help="repetition, as in seeds of the study")] = 0) -> None:
    """Every method at every size, one repetition."""
    params, settings = _open(seed)
    from gtl_lightning.studies.markov import study

    study.markov_cells(settings, seed, params)


@app.command("repeats")
def markov_repeats() -> None:
    """The token-level ratio alone, many repetitions: how its figures scatter."""
    _, settings = _open()
    from gtl_lightning.studies.markov import study

    study.markov_repeats(settings)


@app.command("overlap")
def markov_overlap() -> None:
    """The target moved away from the source, and the advisor's word on it."""
    _, settings = _open()
    from gtl_lightning.studies.markov import overlap

    overlap.measure_overlap(settings)


@app.command("report")
def markov_report() -> None:
    """reports/markov.json, markov.md and the figures."""
    params, settings = _open()
    from gtl_lightning.studies.markov import page

    page.markov_report(settings, params)


def _open(seed: int | None = None) -> tuple[Params, Markov]:
    """The parameters, which say where it runs and is tracked, and the study's, whose grid has this repetition."""
    from gtl_lightning.studies.markov import params as config
    from gtl_lightning.workspace.options import in_grid

    params, settings = open_params(), config.load_settings()
    if seed is not None:
        in_grid("--seed", seed, "seeds", settings.seeds, config.PARAMS)
    return params, settings
