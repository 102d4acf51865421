"""`gtl source ...`: somebody's denoiser as the source of the pipeline, and what it is worth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gtl_lightning.resources import check_address_space
from gtl_lightning.workspace.opening import open_params

if TYPE_CHECKING:
    from gtl_lightning.stages.source import Conformance

app = typer.Typer()
source_app = typer.Typer(help="A denoiser of other people as the source: take it, or look at it.", no_args_is_help=True)
app.add_typer(source_app, name="source")

NameArgument = Annotated[str, typer.Argument(help="folder of a denoiser, or OWNER/NAME of a hub")]
RevisionOption = Annotated[
    str | None, typer.Option(help="of a hub's: branch, tag or commit", show_default="what the cache has, else main")
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="folder or hub name, where the model has none", show_default="the model's own")
]
ShiftOption = Annotated[
    bool | None,
    typer.Option(
        "--shift/--no-shift", help="a state predicts the token after its own", show_default="as the model's kind does"
    ),
]


@source_app.command("import")
def source_import(
    name: NameArgument,
    revision: RevisionOption = None,
    tokenizer: TokenizerOption = None,
    shift: ShiftOption = None,
    copied: Annotated[bool, typer.Option("--copy", help="keep the weights in models/source too")] = False,
) -> None:
    """Say in params.yaml that this denoiser is the source, by name, revision and hash; `gtl sweep` does the rest."""
    params = open_params()
    from gtl_lightning.stages.source import DenoiserRequest, import_source

    for line in import_source(params, DenoiserRequest(name, revision, tokenizer, shift), copied):
        typer.echo(line)


@source_app.command("check")
def source_check(
    name: NameArgument,
    revision: RevisionOption = None,
    tokenizer: TokenizerOption = None,
    shift: ShiftOption = None,
    texts: Annotated[
        Path | None, typer.Option(help="a text a line, of what it is to be the source of", show_default=False)
    ] = None,
    length: Annotated[int, typer.Option(min=4, help="most tokens of a text")] = 64,
    count: Annotated[int, typer.Option(min=1, help="most texts that are read")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="of the masks")] = 0,
    json: Annotated[Path | None, typer.Option(help="where the report goes as JSON", show_default=False)] = None,
) -> None:
    """Say what a denoiser is worth: its law, padding, shift, NELBO and calibration by noise level, speed, memory."""
    check_address_space()
    from gtl_lightning.stages.source import DenoiserRequest, check_source

    asked = DenoiserRequest(name, revision, tokenizer, shift)
    _show(check_source(asked, texts, length=length, count=count, seed=seed, out=json))


def _show(report: Conformance) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    checks = Table(title=f"{report.name}, read by {report.adapter}", title_justify="left")
    for head in ("check", "holds", "found"):
        checks.add_column(head)
    for check in report.checks:
        checks.add_row(check.name, {True: "yes", False: "NO", None: "-"}[check.holds], check.found)
    console.print(checks)
    if report.levels:
        table = Table(title=f"by masked share, {report.texts} texts", title_justify="left")
        for head in ("masked", "places", "nats a place", "confidence", "accuracy", "temperature"):
            table.add_column(head, justify="right")
        for level in report.levels:
            table.add_row(
                f"{level.low:.0%} to {level.high:.0%}",
                str(level.positions),
                *(f"{value:.3f}" for value in (level.nats, level.confidence, level.accuracy, level.temperature)),
            )
        console.print(table)
        error = report.standard_error
        spread = f" +- {error:.3f}" if error is not None and math.isfinite(error) else " (one text, no standard error)"
        typer.echo(f"NELBO {report.nelbo:.3f}{spread} nats a token")
    typer.echo(
        f"{report.parameters / 1e6:.1f} M parameters, {report.weights_mb:.0f} MB; {report.tokens_per_second:.0f} "
        f"tokens a second; {report.peak_mb:.0f} MB at most"
    )
    typer.echo(report.verdict)
