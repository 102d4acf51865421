"""What is trained and measured: `gtl train ...`, `gtl evaluate`, and what compares cells."""

from __future__ import annotations

from typing import Annotated

import typer

from gtl_lightning.methods import METHODS
from gtl_lightning.workspace.opening import open_params, open_point
from gtl_lightning.workspace.options import check_method
from gtl_lightning.workspace.params import Params

app = typer.Typer()
train_app = typer.Typer(help="Train one component; resumes where it was stopped.", no_args_is_help=True)
app.add_typer(train_app, name="train")

FractionOption = Annotated[float, typer.Option(help="share of the target training data, as in sweep.fractions")]
SeedOption = Annotated[int | None, typer.Option(help="repetition (default: the first of the sweep)")]


def _open(fraction: float | None, seed: int | None, method: str | None = None) -> tuple[Params, int]:
    """The parameters, whose grid has this point, and its repetition; a method that does not exist is refused first.

    Raises:
        UserError: as `check_method` and `open_point`.
    """
    if method is not None:
        check_method(method)
    repetition = open_params().sweep.seeds[0] if seed is None else seed
    return open_point(fraction, repetition, method), repetition


@train_app.command("source")
def train_source() -> None:
    """The source denoiser."""
    params = open_params()
    from gtl_lightning.stages import train

    train.train_source(params)


@train_app.command("causal")
def train_causal() -> None:
    """The causal model of the source domain, where source.kind reads one."""
    params = open_params()
    from gtl_lightning.stages import train

    train.train_causal(params)


@train_app.command("judge")
def train_judge() -> None:
    """The domain judge and the reference model."""
    params = open_params()
    from gtl_lightning.stages import train

    train.train_judge(params)


@train_app.command("planner")
def train_planner() -> None:
    """The learned reveal order."""
    params = open_params()
    from gtl_lightning.stages import train

    train.train_planner(params)


@train_app.command("classifier")
def train_classifier(fraction: FractionOption, seed: SeedOption = None) -> None:
    """The domain classifiers and the advisor's verdict."""
    params, repetition = _open(fraction, seed)
    from gtl_lightning.stages import train

    train.train_classifier(params, fraction, repetition)


def _cell_command(method: str, description: str) -> None:
    def command(fraction: FractionOption, seed: SeedOption = None) -> None:
        params, repetition = _open(fraction, seed)
        from gtl_lightning.stages import train

        train.train_cell(params, method, fraction, repetition)

    train_app.command(method, help=description)(command)


for _method in METHODS.values():
    _cell_command(_method.name, _method.help)


@app.command()
def evaluate(
    method: Annotated[str, typer.Argument(help="source, vanilla, finetune, lora, gtl, ...")],
    fraction: Annotated[float | None, typer.Option(help="share of the target; none for source")] = None,
    seed: SeedOption = None,
) -> None:
    """Select on validation data, read the test data once, sample, measure."""
    params, repetition = _open(fraction, seed, method)
    from gtl_lightning.stages import evaluate

    evaluate.evaluate_cell(params, method, fraction, repetition)


@app.command()
def real() -> None:
    """Measure real target text: what every cell is compared with."""
    params = open_params()
    from gtl_lightning.stages import real

    real.measure_real(params)


@app.command()
def ablation(seed: SeedOption = None) -> None:
    """Resample one trained ratio over gamma and n_ratio."""
    params, repetition = _open(None, seed)
    from gtl_lightning.stages import evaluate

    evaluate.ablation(params, repetition)


@app.command()
def report() -> None:
    """Tables, figures, report.md and report.html."""
    params = open_params()
    from gtl_lightning.stages import report

    report.make_report(params)


@app.command()
def register() -> None:
    """Register the best ratio network and denoiser of every fraction in MLflow."""
    params = open_params()
    from gtl_lightning.stages import register

    register.register_best(params)
