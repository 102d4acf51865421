"""`gtl ar2diff`: a pretrained decoder becomes a denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtl_lightning.workspace.opening import open_params

app = typer.Typer()


@app.command()
def ar2diff(
    name: Annotated[str, typer.Option("--from", help="folder or GGUF file of a decoder, or OWNER/NAME of a hub")],
    steps: Annotated[int, typer.Option(help="steps of the continuation; 0: the weights as they are")],
    out: Annotated[Path, typer.Option(help="folder of the denoiser")] = Path("models/ar2diff"),
    domain: Annotated[str, typer.Option(help="source or target: whose texts it is continued on")] = "target",
    length: Annotated[int, typer.Option(help="most tokens of a text")] = 128,
    prefix: Annotated[int, typer.Option(help="tokens at the front of each text that are given, not learned")] = 0,
    batch: Annotated[int, typer.Option(help="texts a step")] = 8,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = 3e-4,
    warmup: Annotated[int, typer.Option(help="steps of linear warm-up, at most a quarter of all")] = 50,
    check_every: Annotated[
        int | None, typer.Option(help="steps between checks and resumable states", show_default="50, or all steps")
    ] = None,
    shift: Annotated[bool, typer.Option(help="a state predicts the token after the one it stands at")] = True,
    sink: Annotated[
        bool | None,
        typer.Option(
            "--sink/--no-sink", help="the start reads itself alone, as it did", show_default="sink, with shift"
        ),
    ] = None,
    anneal: Annotated[float, typer.Option(help="share of the steps over which later tokens are let in")] = 0.0,
    lora: Annotated[int, typer.Option(help="rank of low-rank updates, which alone train; 0: every weight")] = 0,
    checkpointing: Annotated[bool, typer.Option(help="less memory, more time: compute states again")] = False,
    precision: Annotated[
        str | None, typer.Option(help="auto, 32-true or bf16-mixed", show_default="machine.precision")
    ] = None,
    seed: Annotated[int, typer.Option(help="of order and noise")] = 0,
) -> None:
    """Make a denoiser of a pretrained Llama, Qwen2, Qwen3 or GPT-2; transformers alone loads what it writes."""
    params = open_params()
    from gtl_lightning.stages.ar2diff import convert
    from gtl_lightning.workspace.converting import ConversionRequest

    convert(
        params,
        ConversionRequest(
            name, out, steps, domain, length, prefix, batch, lr, warmup, check_every, shift, sink, anneal,
            lora, checkpointing, precision, seed,
        ),
    )  # fmt: skip
