"""The command line: one command per stage function. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gtl_lightning.errors import UserError
from gtl_lightning.resources import keep_freed_memory, limit_threads

app = typer.Typer(
    help="Guided transfer learning for discrete diffusion models.", no_args_is_help=True, pretty_exceptions_enable=False
)
data_app = typer.Typer(help="Put records into data/, versioned by data.dvc.", no_args_is_help=True)
train_app = typer.Typer(help="Train one component; resumes where it was stopped.", no_args_is_help=True)
markov_app = typer.Typer(help="The study on Markov chains, where everything is known exactly.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(markov_app, name="markov")
app.add_typer(train_app, name="train")

FractionOption = Annotated[float, typer.Option(help="share of the target training data, as in sweep.fractions")]
SeedOption = Annotated[int, typer.Option(help="repetition, as in sweep.seeds")]
FieldOption = Annotated[
    list[str], typer.Option("--field", help="name of a record field in the source, as ours=theirs", show_default=False)
]


@app.command()
def configure(
    profile: Annotated[str, typer.Option(help="default, or a file in profiles/")] = "default",
    overrides: Annotated[list[str], typer.Option("--set", help="key=value, repeatable", show_default=False)] = [],  # noqa: B006 - typer reads it
) -> None:
    """Write params.yaml: the defaults, then the profile, then each --set."""
    from gtl_lightning import config

    params = config.configure(profile, tuple(overrides))
    config.write_params(params)
    typer.echo(f"params.yaml written: profile {params.profile}, {len(overrides)} override(s)")


@data_app.command("sample")
def data_sample(seed: Annotated[int, typer.Option(help="seed of the generator")] = 0) -> None:
    """Generate the embedded sample: artificial abstracts with an exactly known density."""
    from gtl_lightning import stages

    stages.data_sample(seed=seed)


@data_app.command("import")
def data_import(
    path: Annotated[Path, typer.Argument(help="a file, a pipe, or - for standard input")],
    field: FieldOption = [],  # noqa: B006 - typer reads it
) -> None:
    """Take a metadata snapshot as Kaggle publishes it: JSON lines, plain or in gzip, xz, bzip2 or zip."""
    from gtl_lightning import stages

    stages.data_import(path, fields=_pairs(field))


@data_app.command("download")
def data_download(
    dataset: str,
    split: Annotated[str, typer.Option(help="split of the hub data set")] = "train",
    limit: Annotated[int | None, typer.Option(help="most records to take")] = None,
    field: FieldOption = [],  # noqa: B006 - typer reads it
) -> None:
    """Stream a hub data set; goes on where it stopped."""
    from gtl_lightning import stages

    stages.data_download(dataset, split=split, limit=limit, fields=_pairs(field))


@app.command()
def split() -> None:
    """Cut the records into disjoint splits by domain."""
    from gtl_lightning import stages

    stages.split(_params())


@app.command()
def tokenize() -> None:
    """Make the tokenizer and the token arrays."""
    from gtl_lightning import stages

    stages.tokenize(_params())


@train_app.command("source")
def train_source() -> None:
    """The source denoiser."""
    from gtl_lightning import stages

    stages.train_source(_params())


@train_app.command("judge")
def train_judge() -> None:
    """The domain judge and the reference model."""
    from gtl_lightning import stages

    stages.train_judge(_params())


@train_app.command("planner")
def train_planner() -> None:
    """The learned reveal order."""
    from gtl_lightning import stages

    stages.train_planner(_params())


@train_app.command("classifier")
def train_classifier(fraction: FractionOption, seed: SeedOption = 0) -> None:
    """The domain classifiers and the advisor's verdict."""
    from gtl_lightning import stages

    stages.train_classifier(_params(), fraction, seed)


def _cell_command(method: str, description: str) -> None:
    def command(fraction: FractionOption, seed: SeedOption = 0) -> None:
        from gtl_lightning import stages

        stages.train_cell(_params(), method, fraction, seed)

    train_app.command(method, help=description)(command)


for _method, _description in {
    "vanilla": "A denoiser from scratch on the target.",
    "finetune": "The source denoiser, every weight fine-tuned.",
    "lora": "The source denoiser, fine-tuned at low rank.",
    "gtl": "The token-level ratio, eqs. 9 and 9': a small network of its own.",
    "gtl-head": "The token-level ratio as a head on the frozen denoiser's features.",
    "gtl-warm": "The token-level ratio as the difference of a warm-started copy and the frozen denoiser.",
    "gtl-sequence-gkl": "The sequence-level ratio network, generalised KL.",
    "gtl-sequence-bce": "The sequence-level ratio network, cross-entropy.",
    "gtl-sequence-log-mse": "The sequence-level ratio network, the published loss.",
}.items():
    _cell_command(_method, _description)


@app.command()
def evaluate(
    method: Annotated[str, typer.Argument(help="source, vanilla, finetune, lora, gtl, ...")],
    fraction: Annotated[float | None, typer.Option(help="share of the target; none for source")] = None,
    seed: SeedOption = 0,
) -> None:
    """Select on validation data, read the test data once, sample, measure."""
    from gtl_lightning import stages

    stages.evaluate(_params(), method, fraction, seed)


@app.command()
def ablation() -> None:
    """Resample one trained ratio over gamma and n_ratio."""
    from gtl_lightning import stages

    stages.ablation(_params())


@app.command()
def report() -> None:
    """Tables, figures, report.md and report.html."""
    from gtl_lightning import stages

    stages.report(_params())


@markov_app.command("source")
def markov_source() -> None:
    """The source denoiser of the chains."""
    from gtl_lightning import stages

    stages.markov_source(_params())


@markov_app.command("cells")
def markov_cells(seed: Annotated[int, typer.Option(help="repetition, as in markov.seeds")] = 0) -> None:
    """Every method at every size, one repetition."""
    from gtl_lightning import stages

    stages.markov_cells(_params(), seed)


@markov_app.command("overlap")
def markov_overlap() -> None:
    """The target moved away from the source, and the advisor's word on it."""
    from gtl_lightning import stages

    stages.markov_overlap(_params())


@markov_app.command("report")
def markov_report() -> None:
    """reports/markov.json, markov.md and the figures."""
    from gtl_lightning import stages

    stages.markov_report(_params())


@app.command()
def register() -> None:
    """Register the best ratio network and denoiser of every fraction in MLflow."""
    from gtl_lightning import stages

    stages.register(_params())


@app.command()
def bench(
    profile: Annotated[str | None, typer.Option(help="sizes of that profile (default: params.yaml)")] = None,
    only: Annotated[
        list[str], typer.Option(help="group to measure, repeatable (default: all)", show_default=False)
    ] = [],  # noqa: B006 - typer reads it
) -> None:
    """Time sampling and training here; writes reports/bench.json and docs/benchmarks.md."""
    from gtl_lightning import stages

    params = _params(profile)
    stages.bench(params, f"gtl bench --profile {profile}" if profile else "gtl bench", tuple(only))


@app.command()
def tradeoff() -> None:
    """Speed against quality of one trained cell, over positions per step and blocks; adds to the benchmarks."""
    from gtl_lightning import stages

    stages.tradeoff(_params())


@app.command()
def sample(
    method: Annotated[
        str | None, typer.Option(help="which trained cell: source, finetune, gtl, ... [default: gtl]")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="its share of the target (default: the largest of the sweep)")
    ] = None,
    model_seed: Annotated[int | None, typer.Option(help="its repetition (default: the first of the sweep)")] = None,
    count: Annotated[int, typer.Option(min=1, help="sequences")] = 8,
    length: Annotated[int | None, typer.Option(help="tokens (default: lengths as in the target data)")] = None,
    gamma: Annotated[float | None, typer.Option(help="guidance strength (default: as validation chose)")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="of the revealed tokens (default: as validation chose)")
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
    from gtl_lightning import stages

    asked: dict[str, Any] = {
        "count": count,
        "length": length,
        "gamma": gamma,
        "temperature": temperature,
        "n_ratio": n_ratio,
        "prompt": prompt,
        "seed": seed,
    }
    asked["out"] = out
    if model is None:
        texts = stages.sample_cell(_params(), method or "gtl", fraction, model_seed, **asked)
    elif (method, fraction, model_seed) == (None, None, None):
        texts = stages.sample_model(model, **asked)
    else:
        raise UserError(
            "--model names a registered model, --method, --fraction and --model-seed a cell: give one of them"
        )
    for text in texts:
        typer.echo(text)


def _params(profile: str | None = None) -> Any:
    from gtl_lightning import config

    params = config.configure(profile) if profile else config.load_params()
    limit_threads(params.machine.threads)  # here: torch is not imported yet
    return params


def _pairs(values: list[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        ours, equals, theirs = value.partition("=")
        if not equals:
            raise UserError(f"--field {value}: write it as ours=theirs, for example --field abstract=text")
        pairs[ours] = theirs
    return pairs


def main() -> None:
    """Run the command line; a UserError is one line on standard error and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "alembic", "mlflow", "lightning", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    keep_freed_memory()
    try:
        app()
    except UserError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("stopped; the same command goes on from the last checkpoint", fg=typer.colors.YELLOW, err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
