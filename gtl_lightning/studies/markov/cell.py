"""One cell of the Markov study measured against the exact chains (docs/markov.md)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gtl_lightning.studies.markov.domains import SAMPLE_STREAM, SCORE_STREAM, generator, mixed
from gtl_lightning.studies.markov.models import Model, Problem, sample_model
from gtl_lightning.workspace.paths import log
from gtl_lightning.workspace.provenance import made_with

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

Row = dict[str, Any]
SMOOTHING = 0.5
"""Count added to each bigram of the statistical limit (Jeffreys' prior)."""
SECONDS = "_seconds"
"""What names of times end in."""
CALIBRATION_ROWS = 400
CALIBRATION_SHARES = (0.05, 0.25, 0.5, 0.75, 1.0)


def evaluate(problem: Problem, method: str) -> tuple[Row, list[Row]]:
    """Train, select, sample and measure one cell: its row, and the calibration of its ratio by noise level."""
    from gtl_lightning.laws.chain_metrics import measure_samples
    from gtl_lightning.laws.chains import MarkovChain

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
        row["kl"] = model_kl(problem.target, conditionals(model), settings.length, settings.kl_draws, draws)
        if model.guidance is not None and method != "vanilla-local":
            errors = [{**timeless(row), **error} for error in _calibration(problem, model)]
    found = measure_samples(x, problem.target)
    row |= {
        "made_with": made_with("cpu", "32-true"),
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


def timeless(row: Row) -> Row:
    """A row without what making it took."""
    return {key: value for key, value in row.items() if not key.endswith(SECONDS)}


def conditionals(model: Model) -> Callable[[Tensor, Tensor], Tensor]:
    """(x_t, t) -> Float[b,l,v]: log-probabilities of the next token at every masked position, as the sampler draws it.

    A sequence ratio is asked for every token at every masked position.
    """
    import torch

    from gtl_lightning.core.guidance import guided_log_probs

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        t = t.float()
        with torch.no_grad():
            log_p = model.denoiser(x_t, t)
            if model.guidance is None:
                return log_p
            masked = x_t == log_p.shape[-1] - 1
            row, position = masked.nonzero(as_tuple=True)
            tokens = torch.arange(log_p.shape[-1], device=x_t.device).expand(len(row), -1)
            log_r = model.guidance.ratio.log_ratio(x_t, t, t, row, position, tokens, model.guidance.chunk)
            assert not callable(model.guidance.gamma)
            log_p[row, position] = guided_log_probs(log_p[row, position], log_r, model.guidance.gamma)
            return log_p

    guided.normalised = True  # type: ignore[attr-defined]  # as `protocols.Denoiser` has it
    return guided


def model_kl(law: Any, network: Any, length: int, draws: int, random: torch.Generator) -> float:
    """Upper bound on KL(law || model), nats per sequence; sequence ratios make it dear, so chunks are small."""
    import torch

    from gtl_lightning.laws.enumerated import any_order_kl

    with torch.no_grad():
        return any_order_kl(law, network, n=draws, length=length, generator=random)[0]


def _calibration(problem: Problem, model: Model) -> list[Row]:
    import torch

    from gtl_lightning.laws.chain_metrics import tilt_errors

    settings, guidance = problem.settings, model.guidance
    assert guidance is not None

    def scores(x_t: Tensor, position: Tensor) -> Tensor:
        row, t = torch.arange(len(x_t)), (x_t == settings.states).float().mean(1)
        tokens = torch.arange(settings.states).expand(len(x_t), -1)
        with torch.no_grad():
            return guidance.ratio.log_ratio(x_t, t, t, row, position, tokens, guidance.chunk)

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
