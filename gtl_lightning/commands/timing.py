"""How fast it is: `gtl bench` and `gtl tradeoff`."""

from __future__ import annotations

from typing import Annotated

import typer

from gtl_lightning.workspace.opening import open_params

app = typer.Typer()


@app.command()
def bench(
    profile: Annotated[str | None, typer.Option(help="sizes of that profile (default: params.yaml)")] = None,
    only: Annotated[
        list[str], typer.Option(help="group to measure, repeatable (default: all)", show_default=False)
    ] = [],  # noqa: B006 - typer reads it
) -> None:
    """Time sampling and training here; writes reports/bench.json and docs/benchmarks.md."""
    params = open_params(profile)
    from gtl_lightning.stages import bench

    words = ["gtl bench", *([f"--profile {profile}"] if profile else []), *(f"--only {group}" for group in only)]
    bench.run_bench(params, " ".join(words), tuple(only))


@app.command()
def tradeoff() -> None:
    """Speed against quality of one trained cell, over positions per step and blocks; adds to the benchmarks."""
    params = open_params()
    from gtl_lightning.stages import tradeoff

    tradeoff.measure_tradeoff(params)
