"""The overlap study: the target moved away from the source, and the advisor's word on it (docs/markov.md)."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from gtl_lightning.files import write_json
from gtl_lightning.studies.markov.cell import Row, evaluate, timeless
from gtl_lightning.studies.markov.domains import SCORE_STREAM, chain, chains, generator, load_source
from gtl_lightning.studies.markov.models import REWEIGHTED, Problem
from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.studies.markov.study import OVERLAP
from gtl_lightning.workspace.paths import log
from gtl_lightning.workspace.spread import spread

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gtl_lightning.evaluation.overlap import Advice
    from gtl_lightning.studies.markov.stacked import StackedModule

SIDE_BY_SIDE = ((REWEIGHTED,), ("gtl-token", "source", "bigram"))
"""What runs in one process, the longest first. The advisor speaks before the first is sampled."""


def measure_overlap(settings: Markov) -> None:
    """The target moved away from the source: transfer error, overlap and the advisor's word on it.

    Raises:
        UserError: a bad matrix, or no source denoiser yet.
    """
    targets = list(product(settings.overlap.diagonals, settings.overlap.seeds))
    jobs = [(settings, *target, methods) for methods in SIDE_BY_SIDE for target in targets]
    found = spread("overlap", _target, jobs)
    facts = {key: facts for key, facts, _ in found if facts}
    write_json(
        OVERLAP, [row | facts[key] for target in targets for key, _, rows in found if key == target for row in rows]
    )


def _target(
    settings: Markov, diagonal: float, seed: int, methods: tuple[str, ...]
) -> tuple[tuple[float, int], Row, list[Row]]:
    """Which target, what the advisor says of it (where that is asked here), a row for each method."""
    source, _ = chains(settings)
    target = chain("target", diagonal, None, settings.states)
    problem = Problem(settings, source, target, load_source(), settings.overlap.n, seed)
    facts: Row = _facts(problem, diagonal) if REWEIGHTED in methods else {}
    return (diagonal, seed), facts, [timeless(evaluate(problem, method)[0]) for method in methods]


def _facts(problem: Problem, diagonal: float) -> Row:
    """From the folds' classifier and data it has not seen: nothing has been sampled yet."""
    advice, reweighting, exact = _advice(problem)
    clean, half = (next(x for x in advice.levels if x.masked_share == share) for share in (0.0, 0.5))
    log.info("diagonal %.2f: %s", diagonal, reweighting.sentence)
    return {
        "diagonal_target": diagonal,
        "seed": problem.seed,
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
        "kl_source": problem.target.kl(problem.source, problem.settings.length),
    }


def _advice(problem: Problem) -> tuple[Advice, Advice, float]:
    """The advisor's word from the noised classifier, and the effective share of the exact ratio at half masked.

    Twice: for ratios that also learn from target rows, and for those that do nothing but reweight source rows.
    """
    from gtl_lightning.evaluation.overlap import MASKED_SHARES, advise, diagnose, effective_share
    from gtl_lightning.laws.exact import ExactRatio

    module, _ = problem.classifier(clean=False)
    held_out = problem.data[problem.folds[0][1]]
    source = problem.source_data[1]
    levels = [
        diagnose(share, *(_log_ratios(module, rows, share, problem.seed) for rows in (source, held_out)))
        for share in MASKED_SHARES
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
