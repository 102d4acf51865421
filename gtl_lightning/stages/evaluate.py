"""Evaluation stages: select on validation data, read the test data once, sample, measure."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gtl_lightning.core.guidance import Guidance
from gtl_lightning.errors import UserError
from gtl_lightning.files import digest, write_json, write_text
from gtl_lightning.methods import guides
from gtl_lightning.records import read_record
from gtl_lightning.workspace.likelihood import gamma_choice, likelihoods
from gtl_lightning.workspace.metrics import memorisation_metrics, sample_metrics
from gtl_lightning.workspace.options import checked_cell
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import (
    ABLATION,
    CELLS,
    DATA,
    MODELS,
    ROW,
    ROWS,
    SAMPLES,
    Cell,
    data_hash,
    log,
    note_run,
    study,
)
from gtl_lightning.workspace.progress import progress_bar
from gtl_lightning.workspace.provenance import made_with
from gtl_lightning.workspace.real import SHOWN_TEXTS, RealText
from gtl_lightning.workspace.sampler import COST, Sampler, at_gamma, draw_lengths
from gtl_lightning.workspace.selection import choose_setting, trial_rows
from gtl_lightning.workspace.text import decode_all


def evaluate_cell(params: Params, method: str, fraction: float | None, seed: int) -> None:
    """One cell: cells/NAME/row.json, one flat row, and its samples.

    Raises:
        UserError: no point of the grid, networks of it are missing or damaged, or the tracker cannot be reached.
    """
    cell = checked_cell(method, fraction, seed)
    sampler = Sampler.open(params, cell)
    real = RealText.open(params, sampler.corpus)
    tags = {"method": method, "fraction": fraction, "seed": seed}
    settings = settings_of(params, guided=sampler.guidance is not None)
    key = f"{cell.name}-{digest([sampler.versions, settings, asdict(real.measured)])}"
    tracked = study(params)
    note = f"{cell}, evaluated: metrics of held-out target texts and of samples. Its trainings lie below."
    with tracked.child("cell", cell.name, key, tags, note) as run:
        tracked.adopt(run.run_id, tracked.runs({"kind": "train", **tags}))
        run.log_params(settings | {"domains": sampler.corpus.domains})
        train, val = sampler.corpus.target(fraction or 1.0, params.data.min_examples)
        row: dict[str, Any] = {
            "method": method,
            "fraction": fraction,
            "seed": seed,
            "examples": len(train) if fraction is not None else 0,
            "val_examples": len(val) if fraction is not None else 0,
        }
        row |= likelihoods(params, sampler, val)
        setting, trials = choose_setting(params, sampler, val, row["gamma"], seed)
        row |= {"temperature": setting.temperature, "sample_gamma": setting.gamma, "trials": trial_rows(trials)}
        guidance = at_gamma(params, sampler.guidance, setting.gamma)
        lengths = draw_lengths(train.lengths, real.samples, seed)
        sampled, texts, seconds = _samples(setting.applied(params), sampler, guidance, lengths, seed)
        row |= sampler.passes(params, lengths, guidance)
        row |= sample_metrics(params, sampler.corpus, real, texts, sampled)
        row |= memorisation_metrics(sampler.corpus, real, sampled, texts, train if fraction is not None else None)
        row |= {
            "samples": len(texts),
            "n_ratio": guidance.n_ratio if guidance else None,
            **{key: sampler.training.get(key) for key in (*COST, "best_step", "lr")},
            "verdict": _verdict(cell),
            "made_with": made_with(sampler.device.type, params.machine.sampling_precision),
            "trained_with": sampler.training.get("made_with"),
            "source": sampler.source,
            "settings": digest(settings_of(params, guided=False)),
            "guidance_settings": digest(settings) if sampler.guidance is not None else None,
        }
        _write_cell(CELLS / cell.name, row, texts, sampler.versions, seed)
        took = {"sample_seconds": round(seconds, 2)}
        note_run(CELLS / cell.name / ROW, {**took, "mlflow_run": run.run_id})
        run.log_metrics(row | took)
        run.log_data("arxiv-target", data_hash(), str(DATA))
        chosen = {"gamma": row["gamma"], "sample_gamma": setting.gamma, "temperature": setting.temperature}
        run.log_params({name: value for name, value in chosen.items() if value is not None})
        shown = enumerate(texts[:SHOWN_TEXTS])
        run.log_table([{"index": index, "text": text} for index, text in shown], "samples.json")
        if trials:
            run.log_table(row["trials"], "trials.json")
        run.set_tags({"verdict": row["verdict"] or "", "gamma": row["gamma"], "made_with": row["made_with"]})
    log.info(
        "%s: test NELBO %.4f (gamma %s), MAUVE %.3f (gamma %s, temperature %g)",
        *(cell.name, row["nelbo"], row["gamma"], row["mauve"], setting.gamma, setting.temperature),
    )


GUIDANCE = {"gammas", "sample_gammas", "gamma_end", "n_ratio", "n_ratio_sequence"}
"""What of params.sampling concerns guidance alone: a change of it makes no unguided cell another."""


def settings_of(params: Params, *, guided: bool) -> dict[str, Any]:
    """All that an evaluated cell depends on beside its networks and real text: what its run is found again by."""
    return {
        "schedule": params.schedule,
        "sampling": params.sampling.model_dump(exclude=set() if guided else GUIDANCE),
        "evaluation": params.evaluation.model_dump(exclude={"neighbours"}),  # of real text alone
    }


def ablation(params: Params, seed: int) -> None:
    """Resample one trained ratio over gamma and over n_ratio; scores are of validation data, nothing is trained."""
    settings = params.ablation
    cell = Cell(settings.method, settings.fraction, seed)
    sampler = Sampler.open(params, cell)
    if sampler.guidance is None:
        raise UserError(f"ablation.method = {settings.method} has no ratio to guide with; choose one of sweep.ratios")
    train, val = sampler.corpus.target(settings.fraction, params.data.min_examples)
    real = RealText.open(params, sampler.corpus)
    n_ratio, lengths = sampler.guidance.n_ratio, draw_lengths(train.lengths, real.samples, cell.seed)
    points = [("gamma", gamma, n_ratio) for gamma in settings.gammas]
    points += [("n_ratio", 1.0, count) for count in settings.n_ratios]
    rows: list[dict[str, Any]] = []
    took: list[dict[str, Any]] = []
    whose = {"method": cell.method, "fraction": cell.fraction, "seed": cell.seed}
    asked = [settings, settings_of(params, guided=True), asdict(real.measured)]
    key = f"ablation-{cell.name}-{digest([sampler.versions, *asked])}"
    note = f"{cell}: samples over gamma and over n_ratio; nothing is trained."
    with study(params).child("ablation", f"ablation {cell.name}", key, whose, note) as run:
        curve = gamma_choice(params, sampler, val, settings.gammas).curve
        for step, (axis, gamma, count) in enumerate(points):
            guidance = replace(at_gamma(params, sampler.guidance, gamma), n_ratio=count)
            sampled, texts, seconds = _samples(params, sampler, guidance, lengths, cell.seed)
            row = {
                **whose,
                "axis": axis,
                "gamma": gamma,
                "n_ratio": count,
                "nelbo_val": curve[gamma].nats_per_token if axis == "gamma" else None,
            }
            row |= sample_metrics(params, sampler.corpus, real, texts, sampled)
            row |= {"made_with": made_with(sampler.device.type, params.machine.sampling_precision)}
            rows.append(row)
            took.append({"sample_seconds": round(seconds, 2)})
            told = {f"{axis}.{key}": value for key, value in (row | took[-1]).items() if key not in whose}
            run.log_metrics(told, step)
        run.log_table(rows, "ablation.json")
    write_json(ABLATION / ROWS, rows)
    note_run(ABLATION / ROWS, {"rows": took})


def _samples(
    params: Params, sampler: Sampler, guidance: Guidance | None, lengths: list[int], seed: int
) -> tuple[list[Tensor], list[str], float]:
    start = time.perf_counter()
    with progress_bar("sampling") as progress:
        sampled = sampler.draw(params, lengths, guidance=guidance, seed=seed, progress=progress)
    seconds = time.perf_counter() - start
    return sampled, decode_all(sampled), seconds


def _verdict(cell: Cell) -> str | None:
    if guides(cell.method) != "source":  # the overlap is that of target and source
        return None
    path = MODELS / Cell("classifier", cell.fraction, cell.seed).name / "advisor.json"
    return str(read_record(path, {"verdict": str})["verdict"])


def _write_cell(folder: Path, row: dict[str, Any], texts: list[str], versions: dict[str, str], seed: int) -> None:
    lines = [
        json.dumps({"text": text, "seed": seed, "index": index, "models": versions}) for index, text in enumerate(texts)
    ]
    write_text(folder / SAMPLES, "\n".join(lines) + "\n")
    write_json(folder / ROW, row)
