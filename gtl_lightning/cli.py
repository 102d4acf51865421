"""The command line: one command per stage function. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gtl_lightning.errors import UserError, environment_fault
from gtl_lightning.methods import METHODS
from gtl_lightning.resources import check_address_space, keep_freed_memory, limit_threads

app = typer.Typer(
    help="Guided transfer learning for discrete diffusion models.", no_args_is_help=True, pretty_exceptions_enable=False
)
data_app = typer.Typer(help="Put records into data/, versioned by data.dvc.", no_args_is_help=True)
train_app = typer.Typer(help="Train one component; resumes where it was stopped.", no_args_is_help=True)
markov_app = typer.Typer(help="The study on Markov chains, where everything is known exactly.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(markov_app, name="markov")
app.add_typer(train_app, name="train")

INTERRUPTED = 130
FractionOption = Annotated[float, typer.Option(help="share of the target training data, as in sweep.fractions")]
SeedOption = Annotated[int, typer.Option(help="repetition, as in sweep.seeds")]
FieldOption = Annotated[
    list[str], typer.Option("--field", help="name of a record field in the source, as ours=theirs", show_default=False)
]


@app.command()
def configure(
    profile: Annotated[
        str | None, typer.Option(help="default, or a file in profiles/ [default: default, without --set]")
    ] = None,
    overrides: Annotated[list[str], typer.Option("--set", help="key=value, repeatable", show_default=False)] = [],  # noqa: B006 - typer reads it
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


@data_app.command("sample")
def data_sample(seed: Annotated[int, typer.Option(help="seed of the generator")] = 0) -> None:
    """Generate the embedded sample: artificial abstracts with an exactly known density."""
    from gtl_lightning.stages import data

    data.data_sample(seed=seed)


@data_app.command("import")
def data_import(
    path: Annotated[Path, typer.Argument(help="a file, a pipe, or - for standard input")],
    field: FieldOption = [],  # noqa: B006 - typer reads it
) -> None:
    """Take a metadata snapshot as Kaggle publishes it: JSON lines, plain or in gzip, xz, bzip2 or zip."""
    from gtl_lightning.stages import data

    data.data_import(path, fields=_pairs(field))


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
    data.data_download(dataset, split=split, limit=limit, fields=_pairs(field))


@app.command()
def split() -> None:
    """Cut the records into disjoint splits by domain."""
    params = _params(needs_torch=False)
    from gtl_lightning.stages import data

    data.split(params)


@app.command()
def tokenize() -> None:
    """Make the tokenizer and the token arrays."""
    params = _params(needs_torch=False)
    from gtl_lightning.stages import data

    data.tokenize(params)


@train_app.command("source")
def train_source() -> None:
    """The source denoiser."""
    params = _params()
    from gtl_lightning.stages import train

    train.train_source(params)


@train_app.command("judge")
def train_judge() -> None:
    """The domain judge and the reference model."""
    params = _params()
    from gtl_lightning.stages import train

    train.train_judge(params)


@train_app.command("planner")
def train_planner() -> None:
    """The learned reveal order."""
    params = _params()
    from gtl_lightning.stages import train

    train.train_planner(params)


@train_app.command("classifier")
def train_classifier(fraction: FractionOption, seed: SeedOption = 0) -> None:
    """The domain classifiers and the advisor's verdict."""
    params = _point(fraction, seed)
    from gtl_lightning.stages import train

    train.train_classifier(params, fraction, seed)


def _cell_command(method: str, description: str) -> None:
    def command(fraction: FractionOption, seed: SeedOption = 0) -> None:
        params = _point(fraction, seed)
        from gtl_lightning.stages import train

        train.train_cell(params, method, fraction, seed)

    train_app.command(method, help=description)(command)


for _method in METHODS.values():
    _cell_command(_method.name, _method.help)


@app.command()
def evaluate(
    method: Annotated[str, typer.Argument(help="source, vanilla, finetune, lora, gtl, ...")],
    fraction: Annotated[float | None, typer.Option(help="share of the target; none for source")] = None,
    seed: SeedOption = 0,
) -> None:
    """Select on validation data, read the test data once, sample, measure."""
    params = _point(fraction, seed, method)
    from gtl_lightning.stages import evaluate

    evaluate.evaluate_cell(params, method, fraction, seed)


@app.command()
def real() -> None:
    """Measure real target text: what every cell is compared with."""
    params = _params()
    from gtl_lightning.stages import real

    real.measure_real(params)


@app.command()
def ablation(
    seed: Annotated[int | None, typer.Option(help="repetition (default: the first of the sweep)")] = None,
) -> None:
    """Resample one trained ratio over gamma and n_ratio."""
    params = _params() if seed is None else _point(None, seed)
    from gtl_lightning.stages import evaluate

    evaluate.ablation(params, params.sweep.seeds[0] if seed is None else seed)


@app.command()
def report() -> None:
    """Tables, figures, report.md and report.html."""
    params = _params()
    from gtl_lightning.stages import report

    report.make_report(params)


@markov_app.command("configure")
def markov_configure(
    overrides: Annotated[list[str], typer.Option("--set", help="key=value, repeatable", show_default=False)] = [],  # noqa: B006 - typer reads it
) -> None:
    """Write the study's params.yaml: only what --set names, or without it as shipped; tells what changes."""
    from gtl_lightning.studies.markov import params as config

    settings, told = config.requested(tuple(overrides))
    if told or not overrides:
        config.write_settings(settings)
    for line in told:
        typer.echo(line)
    typer.echo(f"{config.PARAMS} {'written' if told or not overrides else 'is so already'}")


@markov_app.command("source")
def markov_source() -> None:
    """The source denoiser of the chains."""
    _, settings = _markov()
    from gtl_lightning.studies.markov import study

    study.markov_source(settings)


@markov_app.command("cells")
def markov_cells(seed: Annotated[int, typer.Option(help="repetition, as in seeds of the study")] = 0) -> None:
    """Every method at every size, one repetition."""
    params, settings = _markov(seed)
    from gtl_lightning.studies.markov import study

    study.markov_cells(settings, seed, params)


@markov_app.command("overlap")
def markov_overlap() -> None:
    """The target moved away from the source, and the advisor's word on it."""
    _, settings = _markov()
    from gtl_lightning.studies.markov import overlap

    overlap.measure_overlap(settings)


@markov_app.command("report")
def markov_report() -> None:
    """reports/markov.json, markov.md and the figures."""
    params, settings = _markov()
    from gtl_lightning.studies.markov import page

    page.markov_report(settings, params)


@app.command()
def register() -> None:
    """Register the best ratio network and denoiser of every fraction in MLflow."""
    params = _params()
    from gtl_lightning.stages import register

    register.register_best(params)


@app.command()
def bench(
    profile: Annotated[str | None, typer.Option(help="sizes of that profile (default: params.yaml)")] = None,
    only: Annotated[
        list[str], typer.Option(help="group to measure, repeatable (default: all)", show_default=False)
    ] = [],  # noqa: B006 - typer reads it
) -> None:
    """Time sampling and training here; writes reports/bench.json and docs/benchmarks.md."""
    params = _params(profile)
    from gtl_lightning.stages import bench

    bench.run_bench(params, f"gtl bench --profile {profile}" if profile else "gtl bench", tuple(only))


@app.command()
def tradeoff() -> None:
    """Speed against quality of one trained cell, over positions per step and blocks; adds to the benchmarks."""
    params = _params()
    from gtl_lightning.stages import tradeoff

    tradeoff.measure_tradeoff(params)


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
        str | None, typer.Option(help="a model of the registry in place of a cell: NAME@ALIAS, gtl-transfer-ratio@best")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the sampler")] = 0,
    out: Annotated[Path, typer.Option(help="folder for samples.txt and samples.jsonl")] = Path("samples"),
) -> None:
    """Sample from a trained cell or a registered model; writes text and JSON lines."""
    from gtl_lightning.workspace.options import SampleRequest, asked_cell

    asked = SampleRequest(count, length, gamma, temperature, n_ratio, prompt, seed, out)
    if model is not None and (method, fraction, model_seed) != (None, None, None):
        raise UserError(
            "--model names a registered model, --method, --fraction and --model-seed a cell: give one of them"
        )
    if model is None:
        params = _params()
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


def _params(profile: str | None = None, needs_torch: bool = True) -> Any:
    """The parameters; what has to be set or refused before torch is imported is done."""
    from gtl_lightning.workspace import params as config

    params = config.load_params() if profile is None else config.configure(profile)
    limit_threads(params.machine.threads)
    if needs_torch:
        check_address_space()
    return params


def _markov(seed: int | None = None) -> tuple[Any, Any]:
    """The parameters, which say where it runs and is tracked, and the study's, whose grid has this repetition."""
    from gtl_lightning.studies.markov import params as config
    from gtl_lightning.workspace.options import in_grid

    params, settings = _params(), config.load_settings()
    if seed is not None:
        in_grid("--seed", seed, "seeds", settings.seeds, config.PARAMS)
    return params, settings


def _point(fraction: float | None, seed: int, method: str | None = None) -> Any:
    """The parameters, whose grid has this point; a method that does not exist is refused before torch is imported."""
    from gtl_lightning.workspace.options import check_point, checked_cell

    params = _params()
    check_point(params, fraction, seed)
    if method is not None:
        checked_cell(method, fraction, seed)
    return params


def _pairs(values: list[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        ours, equals, theirs = value.partition("=")
        if not equals or not theirs or ours in pairs:
            raise UserError(f"--field {value}: write each field once, as ours=theirs: --field abstract=text")
        pairs[ours] = theirs
    return pairs


def main() -> None:
    """Run the command line: what a person or the machine has to mend is one line on standard error, no traceback.

    Exit codes: 2 for a UserError and for options that typer refuses, 1 for a fault of the machine, 130 for Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "alembic", "mlflow", "lightning", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    keep_freed_memory()
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        code = _refused(error.format_message(), 2)
    except UserError as error:
        code = _refused(str(error), 2)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if (line := environment_fault(error)) is None:
            raise
        code = _refused(line, 1)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code
        typer.secho("stopped; the same command goes on from the last checkpoint", fg=typer.colors.YELLOW, err=True)
    sys.exit(code)


def _refused(line: str, code: int) -> int:
    if line.strip():  # help was shown where a command was missing
        typer.secho(f"error: {line}", fg=typer.colors.RED, err=True)
    return code


if __name__ == "__main__":
    main()
