"""What leaves the project: `gtl export`, `gtl push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtl_lightning.workspace.opening import open_params
from gtl_lightning.workspace.options import named_cell

app = typer.Typer()

CellArgument = Annotated[str, typer.Argument(metavar="CELL", help="a folder below cells/: gtl-0.05-0")]
LicenceOption = Annotated[
    str | None, typer.Option("--license", help="of what the source was made from, for the model card: cc-by-4.0, mit")
]


@app.command()
def export(
    cell: CellArgument,
    folder: Annotated[Path, typer.Argument(help="a new folder; GuidedModel.from_pretrained and --model read it")],
    license: LicenceOption = None,
) -> None:
    """Write a finished cell as a folder that stands alone, with its model card."""
    named = named_cell(cell)
    params = open_params()
    from gtl_lightning.stages import share

    share.export_cell(params, named, folder, license)


@app.command()
def push(
    cell: CellArgument,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="repository of the hub; made if it is not there")],
    private: Annotated[bool, typer.Option("--private", help="seen by its owner alone")] = False,
    license: LicenceOption = None,
) -> None:
    """Put what `gtl export` writes into a repository of a hub, by one commit; the token is HF_TOKEN or a login's."""
    named = named_cell(cell)
    params = open_params()
    from gtl_lightning.stages import share

    share.push_cell(params, named, name, private=private, licence=license)
