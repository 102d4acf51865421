"""`gtl explore`: a page to type into, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from gtl_lightning.commands.share import CellArgument
from gtl_lightning.workspace.opening import open_params
from gtl_lightning.workspace.options import check_method, named_cell

app = typer.Typer()


@app.command()
def explore(
    cell: CellArgument,
    beside: Annotated[
        str | None, typer.Option(help="method beside it, at the same share and repetition (default: it unguided)")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of 127.0.0.1; 0 takes a free one")] = 0,
    browser: Annotated[bool, typer.Option(help="open the page")] = True,
) -> None:
    """A page on loopback: type a prompt, move gamma and temperature, see two runs side by side; Ctrl-C ends it."""
    named = named_cell(cell)
    if beside is not None:
        check_method(beside)
    params = open_params()
    from gtl_lightning.stages import explore

    explore.explore_cell(params, named, beside, port, browser)
