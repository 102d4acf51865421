"""The Markov study's stages: the source once, all cells of a seed, the report (docs/markov.md)."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.files import digest, write_json
from gtl_lightning.studies.markov.cell import SECONDS, Row, evaluate, model_kl, timeless
from gtl_lightning.studies.markov.domains import (
    SCORE_STREAM,
    SOURCE,
    SOURCE_HELD_OUT,
    chains,
    generator,
    load_source,
    source_sequences,
)
from gtl_lightning.studies.markov.models import METHODS, SEQUENCE_LOSSES, Problem
from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import NETWORK, RESULT, log, note_run, state_dir
from gtl_lightning.workspace.spread import spread

if TYPE_CHECKING:
    from gtl_lightning.workspace.tracking import Study

FOLDER = Path("markov")
OVERLAP = FOLDER / "overlap.json"
REPEATS = FOLDER / "repeats.json"
SIDE_BY_SIDE = (
    ("classifier", *SEQUENCE_LOSSES),  # all of them read the classifiers
    ("lora",),
    ("finetune",),
    ("vanilla", "source", "bigram"),
    ("gtl-token", "vanilla-local"),
)
"""What runs in one process, the longest first."""


def cells_file(seed: int) -> Path:
    """Where the results of one repetition lie."""
    return FOLDER / "cells" / f"{seed}.json"


def markov_source(settings: Markov) -> None:
    """The source denoiser: markov/source.

    Raises:
        UserError: a bad matrix.
    """
    training = settings.source
    source, _ = chains(settings)  # refuses a bad matrix before seconds of imports

    import torch

    from gtl_lightning.modules.base import OptimiserConfig
    from gtl_lightning.modules.fit import fit
    from gtl_lightning.networks import MaskedDenoiser, save_network
    from gtl_lightning.networks.block import NO_PAD, BackboneConfig, seeded
    from gtl_lightning.studies.markov.folds import FoldData
    from gtl_lightning.studies.markov.stacked import StackedDenoiser

    rows = torch.cat(source_sequences(settings, source))
    config = BackboneConfig(
        vocab_size=settings.states + 1,
        length=settings.length,
        mask_index=settings.states,
        pad_index=NO_PAD,
        **settings.denoiser.model_dump(),
    )
    with seeded(0):
        module = StackedDenoiser([MaskedDenoiser(config)], None, OptimiserConfig.of(training, training.lr))
    kept, held_out = torch.arange(len(rows)).split([settings.source_sequences, SOURCE_HELD_OUT])
    data = FoldData(
        rows,
        [(kept, held_out)],
        rows,
        rows[:1],
        batch=training.batch,
        steps_per_epoch=training.check_every,
        rows_scored=SOURCE_HELD_OUT,
        seed=0,
        refit=False,
    )
    key: dict[str, Any] = {"network": settings.denoiser.model_dump(), "training": training.model_dump()}
    key |= {"source": source.transition.tolist(), "shape": list(rows.shape)}
    result = fit(
        module,
        data,
        steps=training.steps,
        check_every=training.check_every,
        patience=training.patience,
        state_dir=state_dir("markov-source", key, code=__name__),
        precision="32-true",
        ema_decay=training.ema,
        accelerator="cpu",
    )
    network = module.network.member(0)
    excess = model_kl(source, network, settings.length, settings.kl_draws, generator(0, 0, SCORE_STREAM))
    summary = {"steps": result.best_step, "nelbo": result.best_score, "kl": excess}
    save_network(SOURCE / NETWORK, network, summary)
    write_json(SOURCE / RESULT, summary)
    note_run(SOURCE / RESULT, {"seconds": round(result.seconds, 2)})
    log.info("markov source: KL %.4f nats per sequence at step %d", excess, result.best_step)


def markov_cells(settings: Markov, seed: int, params: Params) -> None:
    """Every method at every size, one repetition: markov/cells/SEED.json; `params` say where it is tracked.

    Raises:
        UserError: a bad matrix, or no source denoiser yet.
    """
    chains(settings)  # refuses a bad matrix before any process starts
    jobs = [(settings, n, seed, methods) for methods in SIDE_BY_SIDE for n in settings.sizes]

    def track(pairs: list[tuple[Row, list[Row]]]) -> None:
        with_runs(settings, params, [row for row, _ in pairs], "markov-cell")

    found = [pair for pairs in spread(f"chains, seed {seed}", _cells, jobs, track) for pair in pairs]
    place = {(n, method): k for k, (n, method) in enumerate(product(settings.sizes, ("source", "bigram", *METHODS)))}
    found.sort(key=lambda pair: place[pair[0]["n"], pair[0]["method"]])
    calibration = [error for _, errors in found for error in errors]
    write_json(cells_file(seed), {"rows": [timeless(row) for row, _ in found], "calibration": calibration})
    took = [{key: value for key, value in row.items() if key.endswith(SECONDS)} for row, _ in found]
    note_run(cells_file(seed), {"rows": took})


def markov_repeats(settings: Markov) -> None:
    """The token-level ratio at every size, many repetitions: markov/repeats.json.

    Raises:
        UserError: a bad matrix, or no source denoiser yet.
    """
    chains(settings)  # refuses a bad matrix before any process starts
    jobs = [(settings, n, seed, ("gtl-token",)) for n in settings.sizes for seed in settings.repeats]
    found = [row for pairs in spread("chains, token-level ratio", _cells, jobs) for row, _ in pairs]
    write_json(REPEATS, [timeless(row) for row in found])


def _cells(settings: Markov, n: int, seed: int, methods: tuple[str, ...]) -> list[tuple[Row, list[Row]]]:
    problem = Problem(settings, *chains(settings), load_source(), n, seed)
    return [evaluate(problem, method) for method in methods]


def with_runs(settings: Markov, params: Params, rows: list[Row], kind: str) -> None:
    """One tracked child run for each row.

    Raises:
        UserError: the tracker cannot be reached.
    """
    parent = study(params)
    for row in rows:
        name = f"{row['method']} n={row['n']} seed={row['seed']}"
        tags = {"method": row["method"], "n": row["n"], "seed": row["seed"]}
        with parent.child(kind, name, digest({"row": name, "settings": settings.model_dump(mode="json")}), tags) as run:
            run.log_metrics(row)


def study(params: Params) -> Study:
    """The MLflow study on Markov chains of this profile."""
    from gtl_lightning.workspace.tracking import Study

    tracking = params.tracking
    return Study(tracking.uri, f"{tracking.experiment}-markov", {"profile": params.profile, "data_hash": "markov"})
