"""`gtl data ...`, and what the data become: splits and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtl_lightning.errors import UserError
from gtl_lightning.workspace.opening import open_params

app = typer.Typer()
data_app = typer.Typer(help="Put records into data/, versioned by data.dvc.", no_args_is_help=True)
app.add_typer(data_app, name="data")

TABLE = "texts of the {} domain: .jsonl, .txt, .csv, .tsv or .parquet, or a hub data set, NAME or NAME:SPLIT"
FieldOption = Annotated[
    list[str], typer.Option("--field", help="name of a record field in the source, as ours=theirs", show_default=False)
]


@data_app.command("sample")
def data_sample(seed: Annotated[int, typer.Option(help="seed of the generator")] = 0) -> None:
    """Generate the embedded sample: artificial abstracts with an exactly known density."""
    from gtl_lightning.stages import data

    data.data_sample(seed=seed)


@data_app.command("import")
def data_import(
    path: Annotated[
        Path | None, typer.Argument(help="a file, a pipe, or - for standard input", show_default=False)
    ] = None,
    source: Annotated[str | None, typer.Option(help=TABLE.format("source"), show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help=TABLE.format("target"), show_default=False)] = None,
    text: Annotated[str | None, typer.Option(help="column of the texts in both tables", show_default=False)] = None,
    field: FieldOption = [],  # noqa: B006 - typer reads it
) -> None:
    """Take PATH, a metadata snapshot as Kaggle publishes it: JSON lines, plain or in gzip, xz, bzip2 or zip.

    Or take two tables, --source and --target, with nothing but texts; columns id and date are taken where they are.
    """
    from gtl_lightning.stages import data

    if path is not None and source is None and target is None and text is None:
        data.data_import(path, fields=pairs(field))
    elif path is None and source and target and not field:
        data.data_import_pair(source, target, text=text)
    else:
        raise UserError("give either a snapshot, with --field, or both --source and --target, with --text")


@data_app.command("download")
def data_download(
    dataset: str,
    split: Annotated[str, typer.Option(help="split of the hub data set")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="most records to take")] = None,
    field: FieldOption = [],  # noqa: B006 - typer reads it
) -> None:
    """Stream a hub data set; goes on where it stopped."""
    from gtl_lightning.stages import data

    for option, value in (("DATASET", dataset), ("--split", split)):
        if not value.strip():
            raise UserError(f"{option} is empty; give the name of a data set and of one of its splits")
    data.data_download(dataset, split=split, limit=limit, fields=pairs(field))


@app.command()
def split() -> None:
    """Cut the records into disjoint splits by domain."""
    params = open_params(needs_torch=False)
    from gtl_lightning.stages import data

    data.split(params)


@app.command()
def tokenize() -> None:
    """Make the tokenizer and the token arrays."""
    params = open_params(needs_torch=False)
    from gtl_lightning.stages import data

    data.tokenize(params)


def pairs(values: list[str]) -> dict[str, str]:
    """ours=theirs, each once."""
    found = {}
    for value in values:
        ours, equals, theirs = value.partition("=")
        if not equals or not theirs or ours in found:
            raise UserError(f"--field {value}: write each field once, as ours=theirs: --field abstract=text")
        found[ours] = theirs
    return found
