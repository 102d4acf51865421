"""`gtl tradeoff`: what positions per step and reuse across steps cost in quality, and what they save in time."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

from gtl_lightning.bench.results import PAGE, ROWS, measured, write_page
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.likelihood import nelbo
from gtl_lightning.files import write_json
from gtl_lightning.workspace.likelihood import masking, selected_gamma
from gtl_lightning.workspace.metrics import sample_metrics
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import Cell, log
from gtl_lightning.workspace.real import RealText
from gtl_lightning.workspace.sampler import Sampler, at_gamma, draw_lengths
from gtl_lightning.workspace.text import decode_all


def measure_tradeoff(params: Params) -> None:
    """Sample the ablation's cell for every k and block of params.bench; add the rows to reports/bench.json.

    Nothing is trained or selected: gamma is the one that validation chooses for the cell.

    Raises:
        UserError: the cell's networks or the judge's are missing.
    """
    cell = Cell(params.ablation.method, params.ablation.fraction, params.sweep.seeds[0])
    sampler = Sampler.open(params, cell)
    if sampler.guidance is None:
        raise UserError(f"ablation.method = {cell.method} has no ratio to guide with; choose one of sweep.ratios")
    train, val = sampler.corpus.target(params.ablation.fraction, params.data.min_examples)
    real = RealText.open(params, sampler.corpus)
    gamma = selected_gamma(params, sampler, val)
    lengths = draw_lengths(train.lengths, real.samples, cell.seed)
    rows = []
    for block, k in itertools.product((0, *params.bench.blocks), params.bench.positions_per_step):
        point = _with(params, k, block)
        guidance = at_gamma(params, sampler.guidance, gamma)
        # Points are timed one after another: the processor's time says more than the clock where others work too.
        clock = time.process_time if sampler.device.type == "cpu" else time.perf_counter
        start = clock()
        sampled = sampler.draw(point, lengths, guidance=guidance, seed=cell.seed)
        seconds = clock() - start
        found = sample_metrics(params, sampler.corpus, real, decode_all(sampled), sampled)
        row: dict[str, Any] = {
            "profile": params.profile,
            "part": "quality",
            "group": "quality",
            "method": cell.method,
            "fraction": cell.fraction,
            "gamma": gamma,
            "k": k,
            "block": block,
            "samples": len(sampled),
            "tokens_per_second": sum(lengths) / seconds,
            "reference_nats": math.log(found["reference_ppl"]),
            "reference_nats_real": math.log(found["reference_ppl_real"]),
            "nelbo": _nelbo(params, sampler, guidance, sampled),
            **{name: found[name] for name in ("mauve", "mauve_low", "mauve_high", "mauve_real", "domain_score")},
        }
        rows.append(row)
        log.info("k %d, block %d: %.0f tokens/s, MAUVE %.3f", k, block, row["tokens_per_second"], row["mauve"])
    kept = [r for r in measured() if r["part"] != "quality" or r["profile"] != params.profile]
    write_json(ROWS, [*kept, *rows])
    write_page()
    log.info("speed against quality: %s", PAGE)


def _with(params: Params, k: int, block: int) -> Params:
    sampling = params.sampling.model_copy(update={"positions_per_step": k, "block": block or None})
    return params.model_copy(update={"sampling": sampling})


def _nelbo(params: Params, sampler: Sampler, guidance: Any, sampled: list[Any]) -> float:
    """Of the samples under the model that they come from: how surprising it finds them as a whole, nats per token."""
    return nelbo(sampler.denoiser, sampled, masking(params, sampler), guidance).nats_per_token
