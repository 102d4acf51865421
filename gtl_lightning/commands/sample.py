"""`gtl sample`: texts from a trained cell or a registered model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtl_lightning.errors import UserError
from gtl_lightning.resources import check_address_space
from gtl_lightning.workspace.opening import open_params

app = typer.Typer()


@app.command()
def sample(
    method: Annotated[
        str | None, typer.Option(help="which trained cell: source, finetune, gtl, ... [default: gtl]")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="its share of the target (default: the largest of the sweep)")
    ] = None,
    model_seed: Annotated[int | None, typer.Option(help="its repetition (default: the first of the sweep)")] = None,
    count: Annotated[int, typer.Option(help="sequences")] = 8,
    length: Annotated[int | None, typer.Option(help="tokens (default: lengths as in the target data)")] = None,
    gamma: Annotated[float | None, typer.Option(help="guidance strength (default: as validation chose)")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="of the revealed tokens (default: as validation chose)")
    ] = None,
    n_ratio: Annotated[int | None, typer.Option(help="tokens the ratio scores (default: params.yaml)")] = None,
    prompt: Annotated[str | None, typer.Option(help="text to begin with; [MASK] marks a gap to fill")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="in place of a cell: NAME@ALIAS of the registry, an exported FOLDER, or a hub's OWNER/NAME"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the sampler")] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="page (HTML) of how the texts came about, a guided cell's beside the unguided")
    ] = None,
    beside: Annotated[
        str | None, typer.Option(help="with --trace: the method to show beside it, at the same share and repetition")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="show the texts in the terminal as they come about")] = False,
    out: Annotated[Path, typer.Option(help="folder for samples.txt and samples.jsonl")] = Path("samples"),
) -> None:
    """Sample from a trained cell, a registered or an exported model; writes text and JSON lines."""
    from gtl_lightning.workspace.options import SampleRequest, asked_cell

    asked = SampleRequest(count, length, gamma, temperature, n_ratio, prompt, seed, out, trace, beside, watch)
    if model is not None and (method, fraction, model_seed) != (None, None, None):
        raise UserError(
            "--model names a registered model, --method, --fraction and --model-seed a cell: give one of them"
        )
    if model is None:
        params = open_params()
        cell = asked_cell(params, method or "gtl", fraction, model_seed)
        asked.check_applies(cell.method)
        from gtl_lightning.stages.sample import sample_cell

        texts = sample_cell(params, cell, asked)
    else:
        check_address_space()
        from gtl_lightning.stages.sample import sample_model

        texts = sample_model(model, asked)
    for text in texts:
        typer.echo(text)
