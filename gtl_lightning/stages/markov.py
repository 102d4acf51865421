"""The Markov study's stages: the source once, all cells of a seed, the overlap study (docs/markov.md)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.config import Params
from gtl_lightning.files import digest, read_json, write_json
from gtl_lightning.stages.common import NETWORK, REPORTS, RESULT, log, state_dir
from gtl_lightning.stages.markov_models import (
    METHODS,
    REWEIGHTED,
    SAMPLE_STREAM,
    SCORE_STREAM,
    SOURCE,
    SOURCE_HELD_OUT,
    Model,
    Problem,
    chain,
    chains,
    generator,
    held,
    mixed,
    sample_model,
    source_sequences,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from torch import Tensor

    from gtl_lightning.evaluation.advisor import Advice
    from gtl_lightning.modules.stacked import StackedModule
    from gtl_lightning.networks import MaskedDenoiser
    from gtl_lightning.tracking import Study

Row = dict[str, Any]

FOLDER = Path("markov")
OVERLAP = FOLDER / "overlap.json"
SMOOTHING = 0.5
"""Count added to each bigram of the statistical limit (Jeffreys' prior)."""
CALIBRATION_ROWS = 400
CALIBRATION_SHARES = (0.05, 0.25, 0.5, 0.75, 1.0)
ADVISOR_SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)
OVERLAP_METHODS = (REWEIGHTED, "gtl-sequence-gkl", "gtl-token")


def cells_file(seed: int) -> Path:
    """Where the results of one repetition lie."""
    return FOLDER / "cells" / f"{seed}.json"


def markov_source(params: Params) -> None:
    """The source denoiser: markov/source.

    Raises:
        UserError: a bad matrix.
    """
    import torch

    from gtl_lightning.data.folds import FoldData
    from gtl_lightning.modules.fit import fit
    from gtl_lightning.modules.stacked import StackedDenoiser
    from gtl_lightning.networks import MaskedDenoiser, save_network
    from gtl_lightning.networks.backbone import NO_PAD, BackboneConfig, seeded

    settings, training = params.markov, params.markov.source
    source, _ = chains(settings)
    rows = torch.cat(source_sequences(settings, source))
    config = BackboneConfig(
        vocab_size=settings.states + 1,
        length=settings.length,
        mask_index=settings.states,
        pad_index=NO_PAD,
        **settings.denoiser.model_dump(),
    )
    with seeded(0):
        module = StackedDenoiser([MaskedDenoiser(config)], None, held(training))
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
        state_dir=state_dir("markov-source", key),
        precision="32-true",
        ema_decay=training.ema,
        accelerator="cpu",
    )
    network = module.network.member(0)
    excess = _model_kl(source, network, settings.length, settings.kl_draws, generator(0, 0, SCORE_STREAM))
    summary = {"steps": result.best_step, "nelbo": result.best_score, "kl": excess, "seconds": result.seconds}
    save_network(SOURCE / NETWORK, network, summary)
    write_json(SOURCE / RESULT, summary)
    log.info("markov source: KL %.4f nats per sequence at step %d", excess, result.best_step)


def markov_cells(params: Params, seed: int) -> None:
    """Every method at every size, one repetition: markov/cells/SEED.json.

    Raises:
        UserError: a bad matrix, or no source denoiser yet.
    """
    settings = params.markov
    source, target = chains(settings)
    denoiser = load_source()
    rows: list[Row] = []
    calibration: list[Row] = []
    for n in settings.sizes:
        problem = Problem(params, source, target, denoiser, n, seed)
        for method in ("source", "bigram", *METHODS):
            row, errors = evaluate(problem, method)
            rows.append(row)
            calibration += errors
    with_runs(params, rows, "markov-cell")
    write_json(cells_file(seed), {"rows": rows, "calibration": calibration})


def markov_overlap(params: Params) -> None:
    """The target moved away from the source: transfer error, overlap and the advisor's word on it.

    Raises:
        UserError: a bad matrix, or no source denoiser yet.
    """
    settings = params.markov
    source, _ = chains(settings)
    denoiser = load_source()
    rows = []
    for diagonal in settings.overlap.diagonals:
        target = chain("target", diagonal, None, settings.states)
        for seed in settings.overlap.seeds:
            problem = Problem(params, source, target, denoiser, settings.overlap.n, seed)
            # First the advisor, from the folds' classifier and data it has not seen: nothing has been sampled yet.
            advice, reweighting, exact = _advice(problem)
            clean, half = (next(x for x in advice.levels if x.masked_share == share) for share in (0.0, 0.5))
            shared = {
                "diagonal_target": diagonal,
                "seed": seed,
                "n": problem.n,
                "verdict": advice.verdict,
                "verdict_reweighting": reweighting.verdict,
                "sentence": reweighting.sentence,
                "ess_share": half.ess_share,
                "ess_share_clean": clean.ess_share,
                "ess_share_exact": exact,
                "mean_weight_clean": clean.mean_weight,
                "ece": half.calibration_error,
                "auc": half.auc,
                "kl_source": target.kl(source, settings.length),
            }
            log.info("diagonal %.2f: %s", diagonal, reweighting.sentence)
            for method in ("source", "bigram", *OVERLAP_METHODS):
                row, _ = evaluate(problem, method)
                rows.append(row | shared)
    write_json(OVERLAP, rows)


def markov_report(params: Params) -> None:
    """reports/markov.json, markov_calibration.json, markov_overlap.json, markov.md and the figures in reports/markov.

    Raises:
        UserError: a repetition or the overlap study is missing.
    """
    from gtl_lightning.report.markov import means, write_markov_report

    settings = params.markov
    cells = [read_json(cells_file(seed)) for seed in settings.seeds]
    rows = [row for cell in cells for row in cell["rows"]]
    calibration = [row for cell in cells for row in cell["calibration"]]
    overlap = read_json(OVERLAP)
    write_json(REPORTS / "markov.json", rows)
    write_json(REPORTS / "markov_calibration.json", calibration)
    write_json(REPORTS / "markov_overlap.json", overlap)
    target = chains(settings)[1].transition.tolist()
    written = write_markov_report(REPORTS, rows, calibration, overlap, target, settings.model_dump(mode="json"))
    summary = {
        f"{method}.{n}.{metric}": means(rows, metric, method=method, n=n)[0]
        for method in dict.fromkeys(row["method"] for row in rows)
        for n in settings.sizes
        for metric in ("row_kl", "diagonal", "kl")
    }
    with study(params).parent() as run:
        run.log_metrics(summary)
        for path in written:
            run.log_file(path, "report")
    log.info("markov report: %s", written[0])


def evaluate(problem: Problem, method: str) -> tuple[Row, list[Row]]:
    """Train, select, sample and measure one cell: its row, and the calibration of its ratio by noise level."""
    from gtl_lightning.data.chain_metrics import measure_samples
    from gtl_lightning.data.markov import MarkovChain

    settings, began = problem.settings, time.monotonic()
    seed = mixed(problem.seed, problem.n, SAMPLE_STREAM)
    row: Row = {"method": method, "n": problem.n, "seed": problem.seed}
    errors: list[Row] = []
    if method == "bigram":
        limit = MarkovChain.fit(problem.data, settings.states, SMOOTHING)
        x = limit.sample(settings.samples, settings.length, generator(seed))
        row |= {"kl": problem.target.kl(limit, settings.length), "parameters": settings.states**2 - 1}
    else:
        model = Model(problem.denoiser, None, 0, None, 0, 0.0) if method == "source" else problem.fit(method)
        trained = time.monotonic()
        x = sample_model(model, settings, seed)
        row |= {
            "gamma": model.guidance.gamma if model.guidance else None,
            "steps": model.steps,
            "nelbo_val": model.nelbo,
            "parameters": model.parameters,
            "train_seconds": round(model.seconds, 2),
            "sample_seconds": round(time.monotonic() - trained, 2),
        }
        draws = generator(problem.seed, problem.n, SCORE_STREAM)
        row["kl"] = _model_kl(problem.target, conditionals(model), settings.length, settings.kl_draws, draws)
        if model.guidance is not None and method != "vanilla-local":
            errors = [{**row, **error} for error in _calibration(problem, model)]
    found = measure_samples(x, problem.target)
    row |= {
        "row_kl": found.row_kl,
        "diagonal": found.diagonal,
        "nll": found.nll,
        "nll_target": problem.target.entropy(settings.length) / settings.length,
        "transition": found.transition.tolist(),
    }
    seconds = time.monotonic() - began
    log.info(
        "diagonal %.2f, n = %d, seed %d, %s: row-KL %.4f, %.1f s",
        float(problem.target.transition[0, 0]),
        problem.n,
        problem.seed,
        method,
        found.row_kl,
        seconds,
    )
    return row, errors


def conditionals(model: Model) -> Callable[[Tensor, Tensor], Tensor]:
    """(x_t, t) -> Float[b,l,v]: log-probabilities of the next token at every masked position, as the sampler draws it.

    A sequence ratio is asked for every token at every masked position.
    """
    import torch

    from gtl_lightning.gtl import guided_log_probs

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        t = t.float()
        with torch.no_grad():
            log_p = model.denoiser(x_t, t)
            if model.guidance is None:
                return log_p
            masked = x_t == log_p.shape[-1] - 1
            row, position = masked.nonzero(as_tuple=True)
            tokens = torch.arange(log_p.shape[-1], device=x_t.device).expand(len(row), -1)
            log_r = model.guidance.ratio.score(x_t, t, t, row, position, tokens, model.guidance.chunk)
            assert not callable(model.guidance.gamma)
            log_p[row, position] = guided_log_probs(log_p[row, position], log_r, model.guidance.gamma)
            return log_p

    return guided


def load_source() -> MaskedDenoiser:
    """The source denoiser of the study.

    Raises:
        UserError: it is not trained yet.
    """
    from gtl_lightning.networks import MaskedDenoiser, load_network

    network = load_network(SOURCE / NETWORK, expect=MaskedDenoiser)
    assert isinstance(network, MaskedDenoiser)
    return network


def with_runs(params: Params, rows: list[Row], kind: str) -> None:
    """One tracked child run for each row.

    Raises:
        UserError: the tracker cannot be reached.
    """
    parent = study(params)
    for row in rows:
        name = f"{row['method']} n={row['n']} seed={row['seed']}"
        settings = params.markov.model_dump(mode="json")
        tags = {"method": row["method"], "n": row["n"], "seed": row["seed"]}
        with parent.child(kind, name, digest({"row": name, "settings": settings}), tags) as run:
            run.log_metrics(row)


def study(params: Params) -> Study:
    """The MLflow study on Markov chains of this profile."""
    from gtl_lightning.tracking import Study

    tracking = params.tracking
    return Study(tracking.uri, f"{tracking.experiment}-markov", {"profile": params.profile, "data_hash": "markov"})


def _model_kl(law: Any, network: Any, length: int, draws: int, random: torch.Generator) -> float:
    """Upper bound on KL(law || model), nats per sequence; sequence ratios make it dear, so chunks are small."""
    import torch

    from gtl_lightning.data.enumerated import any_order_kl

    with torch.no_grad():
        return any_order_kl(law, network, n=draws, length=length, generator=random)[0]


def _calibration(problem: Problem, model: Model) -> list[Row]:
    import torch

    from gtl_lightning.data.chain_metrics import tilt_errors

    settings, guidance = problem.settings, model.guidance
    assert guidance is not None

    def scores(x_t: Tensor, position: Tensor) -> Tensor:
        row, t = torch.arange(len(x_t)), (x_t == settings.states).float().mean(1)
        tokens = torch.arange(settings.states).expand(len(x_t), -1)
        with torch.no_grad():
            return guidance.ratio.score(x_t, t, t, row, position, tokens, guidance.chunk)

    levels = sorted({max(1, round(share * settings.length)) for share in CALIBRATION_SHARES})
    found = tilt_errors(
        problem.source,
        problem.target,
        scores,
        length=settings.length,
        levels=levels,
        rows=CALIBRATION_ROWS,
        generator=generator(problem.seed, problem.n, SCORE_STREAM, 1),
    )
    return [{"level": error.masked / settings.length, "slope": error.slope, "rmse": error.rmse} for error in found]


def _advice(problem: Problem) -> tuple[Advice, Advice, float]:
    """The advisor's word from the noised classifier, and the effective share of the exact ratio at half masked.

    Twice: for ratios that also learn from target rows, and for those that do nothing but reweight source rows.
    """
    from gtl_lightning.data.exact import ExactRatio
    from gtl_lightning.evaluation.advisor import advise, diagnose, effective_share

    module, _ = problem.classifier(clean=False)
    held_out = problem.data[problem.folds[0][1]]
    source = problem.source_data[1]
    levels = [
        diagnose(share, *(_log_ratios(module, rows, share, problem.seed) for rows in (source, held_out)))
        for share in ADVISOR_SHARES
    ]
    exact = ExactRatio(problem.source, problem.target).sequence(_masked(source, 0.5, problem.seed))
    return advise(levels), advise(levels, open_share=0.0), effective_share(exact.numpy())


def _log_ratios(module: StackedModule, x_0: Tensor, share: float, seed: int) -> np.ndarray:
    """log q/p by the classifier that was trained without fold 0, with this share of the tokens masked."""
    import torch

    x_t = _masked(x_0, share, seed)
    with torch.no_grad():
        found: Tensor = module.network.member(0)(x_t, torch.full((len(x_t),), share))
    return found.numpy()


def _masked(x_0: Tensor, share: float, seed: int) -> Tensor:
    import torch

    rank = torch.rand(x_0.shape, generator=generator(seed, SCORE_STREAM)).argsort(1).argsort(1)
    mask_index = int(x_0.max()) + 1
    return x_0.masked_fill(rank < round(share * x_0.shape[1]), mask_index)
