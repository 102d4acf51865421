"""`gtl methods`: what there is to compare."""

from __future__ import annotations

import typer

app = typer.Typer()


@app.command()
def methods() -> None:
    """What can be trained: name, its list in params.yaml, what it trains, and what it is."""
    from gtl_lightning.methods import METHODS

    rows = [("NAME", "LIST", "TRAINS", "")]
    rows += [(method.name, f"sweep.{method.roll}", f"a {method.kind}", method.help) for method in METHODS.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        typer.echo("  ".join([*(part.ljust(width) for part, width in zip(row, widths, strict=False)), row[3]]).rstrip())
