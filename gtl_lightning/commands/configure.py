"""`gtl configure`: write params.yaml, or show what it comes to."""

from __future__ import annotations

from typing import Annotated

import typer

from gtl_lightning.errors import UserError

app = typer.Typer()


def each_once(changes: list[str]) -> list[str]:
    """What --set asks for, if no key is given twice: of two values one would be dropped without a word.

    Raises:
        UserError: naming the key.
    """
    keys = [change.partition("=")[0].strip() for change in changes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--set {twice} is given more than once; give it once")
    return changes


SetOption = Annotated[
    list[str], typer.Option("--set", help="key=value, repeatable", show_default=False, callback=each_once)
]


@app.command()
def configure(
    profile: Annotated[
        str | None, typer.Option(help="default, or a file in profiles/ [default: default, without --set]")
    ] = None,
    overrides: SetOption = [],  # noqa: B006 - typer reads it
    show: Annotated[bool, typer.Option("--show", help="print every value that holds; write nothing")] = False,
    prefix: Annotated[
        str | None, typer.Argument(help="with --show: these alone, train or methods.gtl", show_default=False)
    ] = None,
) -> None:
    """Write params.yaml: a profile anew, or only what --set names; tells what changes and what a profile drops.

    --show prints what params.yaml comes to (or would, with --profile and --set), each value with its meaning. A star is
    what differs from the default: because the method says so, or because params.yaml does.
    """
    from gtl_lightning.workspace import params as config
    from gtl_lightning.workspace import reconfigure, written

    if show:
        for shown in written.shown(reconfigure.requested_params(profile, tuple(overrides)), prefix):
            typer.echo(str(shown))
        return
    if prefix is not None:
        raise UserError(f"{prefix} stands alone, as a key does after --show; a --set that has blanks needs quotes")
    anew = profile if profile is not None or overrides else "default"
    params = reconfigure.requested_params(anew, tuple(overrides))
    told = reconfigure.describe_changes(anew, params)
    if told or anew is not None:
        config.write_params(params)
    for line in told:
        typer.echo(line)
    typer.echo(f"{config.PARAMS} {'written' if told or anew else 'is so already'}: profile {params.profile}")
