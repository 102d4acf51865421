"""The whole command line: the stages' commands, and those that need Prefect.

`gtl` starts here, in the topmost layer: the package below must not know the flows, and the flows use its commands.
Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from gtl_lightning.cli import app, main

__all__ = ["app", "main"]

DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
OWN_SERVER = {
    DATABASE: "sqlite+aiosqlite:///{folder}/sweep.db",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "OMP_WAIT_POLICY": "PASSIVE",  # stages side by side must not take the processors from one another by spinning
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}
"""What a sweep sets, where it is not set already, before Prefect reads it: a server of its own keeps to the project's
folder and to itself. With a server that is configured (PREFECT_API_URL) the database is that server's affair."""


@app.command()
def sweep() -> None:
    """The sweep in params.yaml: what is out of date, independent stages side by side; needs no running server."""
    from gtl_lightning.files import make_folder
    from gtl_lightning.workspace.params import load_params

    load_params()  # before anything is made or started
    folder = Path.cwd() / ".prefect"
    make_folder(folder)
    for name, value in OWN_SERVER.items():
        os.environ.setdefault(name, value.format(folder=folder))
    logging.getLogger().handlers.clear()  # Prefect's console, which names time and task, yields to one that is there
    from flows.flows import run_sweep
    from flows.remote import server_url

    own = server_url() is None and os.environ[DATABASE] == OWN_SERVER[DATABASE].format(folder=folder)
    raise typer.Exit(run_sweep(folder / "sweep.db" if own else None))


@app.command()
def status() -> None:
    """What exists, what is stale, what runs where."""
    from rich.console import Console

    from flows.grid import read_grid
    from flows.remote import connect, server_url
    from flows.tables import process_table, running_stages, server_tables, stage_table, unlike_cells
    from gtl_lightning.workspace.params import load_params

    root = Path.cwd()
    console = Console(highlight=False)
    running = running_stages(root)
    grid = read_grid(load_params(), root)
    console.print(stage_table(grid, root, running))
    for sentence in unlike_cells(grid, root):
        console.print(sentence, style="yellow", soft_wrap=True)
    console.print(process_table(running))
    if server_url() is None:
        console.print("No Prefect server is configured (PREFECT_API_URL).", soft_wrap=True)
        return
    with connect() as client:
        console.print(server_tables(client))


@app.command()
def reconcile(
    lost_host: Annotated[
        list[str], typer.Option(help="host that will not come back, with all that ran there; repeatable")
    ] = [],  # noqa: B006 - typer reads it
    crashed: Annotated[
        bool, typer.Option(help="also retry what ended Crashed within a day and was not run again")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="change nothing, only tell")] = False,
) -> None:
    """After a killed worker or server: end the runs without a live process, in MLflow too; release slots, retry."""
    from flows.lockfile import DAMAGED, lives, mend_lockfile
    from flows.reconcile import reconcile as bring_back
    from flows.remote import connect, server_url
    from gtl_lightning.errors import UserError
    from gtl_lightning.workspace.lost import end_lost
    from gtl_lightning.workspace.params import PARAMS, Params, load_params

    if not all(host.strip() for host in lost_host):
        raise UserError("--lost-host names no host; leave it out or give the name that `gtl status` shows")
    if not dry_run and mend_lockfile(Path.cwd()):
        typer.echo(f"dvc.lock was half-written: moved to {DAMAGED}; the next run restores it from DVC's run-cache")
    tracking = (load_params() if PARAMS.exists() else Params()).tracking
    try:
        for run in end_lost(tracking.uri, lives, lost_hosts=lost_host, dry_run=dry_run):
            typer.echo(f"{run.name}: {'would be ended' if dry_run else 'ended'} in MLflow ({run.reason})")
    except UserError as error:  # Prefect's runs are brought back all the same
        if server_url() is None:
            raise
        typer.echo(f"MLflow's runs are as they were: {error}")
    if server_url() is None:
        typer.echo("No Prefect server is configured (PREFECT_API_URL): MLflow's runs alone were looked at.")
        return
    with connect() as client:
        verdicts = bring_back(client, lost_hosts=lost_host, crashed=crashed, dry_run=dry_run)
    for verdict in verdicts:
        typer.echo(f"{verdict.run.name}: {verdict.action} ({verdict.reason})")
    for host in set(lost_host).difference(verdict.whereabouts.host for verdict in verdicts):
        typer.echo(f"no unfinished run is on {host}: check the name")
    acted = sum(verdict.action != "left alone" for verdict in verdicts)
    would = "would be " if dry_run else ""
    typer.echo(f"{len(verdicts)} run(s) looked at, {acted} {would}brought back to what is true")


if __name__ == "__main__":
    main()
