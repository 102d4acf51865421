"""The command line: the commands in one application, and what their faults become.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from gtl_lightning.commands import (
    ar2diff,
    budget,
    cells,
    configure,
    data,
    demo,
    explore,
    methods,
    reward,
    sample,
    scale,
    share,
    source,
    timing,
)
from gtl_lightning.errors import EXTRAS, UserError, environment_fault, extra, not_installed
from gtl_lightning.resources import keep_freed_memory
from gtl_lightning.studies.ar2diff import commands as ar2diff_study
from gtl_lightning.studies.markov import commands as markov
from gtl_lightning.studies.tcsm import commands as tcsm
from gtl_lightning.workspace.watched import watched

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for _group in (
    demo,
    configure,
    data,
    budget,
    cells,
    sample,
    explore,
    share,
    source,
    ar2diff,
    reward,
    timing,
    scale,
    methods,
):
    app.add_typer(_group.app)
app.add_typer(markov.app, name="markov")
app.add_typer(tcsm.app, name="tcsm")
app.add_typer(ar2diff_study.app, name="ar2diff-study")

INTERRUPTED = 130
WITHOUT_EXTRA = ("methods",)
"""Commands that the package alone serves."""


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gtl-lightning {version('gtl-lightning')}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and exit.")
    ] = False,
) -> None:
    """Guided transfer learning for discrete diffusion models."""
    command = context.invoked_subcommand
    if command is None or command in WITHOUT_EXTRA or "--help" in sys.argv:
        return
    with extra(f"gtl {command}", *EXTRAS["pipeline"], *EXTRAS["report"]):
        pass


def main() -> None:
    """Run the command line: what a person or the machine has to mend is one line on standard error, no traceback.

    Exit codes: 2 for a UserError and for options that typer refuses, 1 for a fault of the machine, 130 for Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "alembic", "mlflow", "lightning", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    keep_freed_memory()
    try:
        with watched(sys.argv[1:]) as check_inputs:
            code = app(standalone_mode=False)
            if not code:
                check_inputs()
    except typer.TyperException as error:
        code = _refused(error.format_message(), 2)
    except UserError as error:
        code = _refused(str(error), 2)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except ModuleNotFoundError as error:
        if (line := not_installed(error, "this command")) is None:
            raise
        code = _refused(line, 2)
    except Exception as error:
        if (line := environment_fault(error)) is None:
            raise
        code = _refused(line, 1)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code
        typer.secho("stopped; the same command goes on from what it has kept", fg=typer.colors.YELLOW, err=True)
    sys.exit(code)


def _refused(line: str, code: int) -> int:
    if line.strip():  # help was shown where a command was missing
        # One line, whatever a file's name or content puts into it: no second one, nothing that a terminal obeys.
        plain = "".join(
            letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(line.split())
        )
        typer.secho(f"error: {plain}", fg=typer.colors.RED, err=True)
    return code


if __name__ == "__main__":
    main()
