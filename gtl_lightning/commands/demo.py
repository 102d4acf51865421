"""`gtl demo`: a first look."""

from __future__ import annotations

import typer

from gtl_lightning.workspace.opening import open_params

app = typer.Typer()


@app.command()
def demo() -> None:
    """A small transfer from generated texts to its report, in .demo/, within three minutes; nothing else is touched."""
    params = open_params("demo")
    from gtl_lightning.stages import demo

    demo.run_demo(params)
