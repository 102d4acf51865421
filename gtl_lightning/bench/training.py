"""Benchmarks of training: one step of each module, and whether the data keep up with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gtl_lightning.bench.sampling import PAD, Bench, Row
from gtl_lightning.bench.timing import flops, matrix_product, paired, peak_memory, share_of_rate
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.data.loading import DomainDataModule
from gtl_lightning.modules.base import TrainedModule
from gtl_lightning.modules.causal import CausalLMModule
from gtl_lightning.modules.classifier import ClassifierModule
from gtl_lightning.modules.concrete_score import (
    ConcreteScoreModule,
    DistilledModule,
    KeptModule,
    cross_entropy_terms,
    score_form_terms,
)
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.modules.fit import resolve_precision
from gtl_lightning.modules.planner import PlannerModule
from gtl_lightning.modules.ratio import SequenceRatioModule, TokenRatioModule
from gtl_lightning.networks import CausalLM, SequenceRatioNetwork

PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
_EXAMPLES, _LOADED = 4096, 32
NELBO = "source"
"""The module whose step the others that train a denoiser are compared with."""
KEPT = 32
"""Tokens of a law that distillation keeps."""


def modules(bench: Bench) -> Iterator[tuple[str, TrainedModule]]:
    """Every kind of module that the pipeline trains; networks with random weights."""
    yield NELBO, DenoiserModule(bench.denoiser.trainable_copy())
    yield from objectives(bench)
    for name, ratio, method in (("ratio", "token", "gtl"), ("head", "head", "gtl-head"), ("warm", "warm", "gtl-warm")):
        loss = bench.params.methods.of(method)
        weights = {key: getattr(loss, key) for key in ("bce_weight", "nll_weight", "martingale_weight")}
        yield name, TokenRatioModule(deepcopy(bench.ratios[ratio]), bench.denoiser, **weights)
    for name, kind in (("sequence", SequenceRatioModule), ("classifier", ClassifierModule)):
        network = SequenceRatioNetwork(bench.backbone(bench.sizes["sequence" if name == "sequence" else "classifier"]))
        extra: dict[str, Any] = {"loss": "bce", "eta_1": 0.0} if name == "sequence" else {"noised": True}
        yield name, kind(network, **extra)
    yield "planner", PlannerModule(deepcopy(bench.planner), bench.denoiser)
    yield "reference", CausalLMModule(CausalLM(bench.backbone(bench.sizes["reference"])))


def objectives(bench: Bench) -> Iterator[tuple[str, TrainedModule]]:
    """What pre-trains a denoiser beside the NELBO (docs/method.md 3.6), and distillation from laws that were kept."""
    denoiser = bench.denoiser
    yield "tcsm-score", ConcreteScoreModule(denoiser.trainable_copy(), terms=score_form_terms, by_level=True)
    yield "tcsm-distribution", ConcreteScoreModule(denoiser.trainable_copy(), terms=cross_entropy_terms, by_level=False)
    teacher = CausalLM(bench.backbone(bench.sizes["denoiser"])).to(bench.device)
    yield "tcsm-distilled", DistilledModule(denoiser.trainable_copy(), teacher=teacher)
    yield f"tcsm-kept-{KEPT}", KeptModule(denoiser.trainable_copy())


def kept_laws(bench: Bench, x_0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """What a batch of `KeptModule` holds beside x_0: some tokens at each position, all equally likely."""
    k = min(KEPT, bench.vocab_size)
    scores = torch.rand(*x_0.shape, bench.vocab_size, generator=generator, device=x_0.device)
    ids = scores.topk(k, -1).indices
    share = math.log(1 / (k + 1))
    log_pi = torch.full(ids.shape, share, device=x_0.device)
    return {"ids": ids, "log_pi": log_pi, "log_rest": log_pi[..., 0]}


def training_rows(bench: Bench) -> list[Row]:
    """Tokens per second and share of the matrix-product rate, by module."""
    settings, device = bench.settings, bench.device
    shape = (settings.train_batch, bench.length)
    generator = torch.Generator(device).manual_seed(0)
    x_0 = torch.randint(2, bench.vocab_size, shape, generator=generator, device=device)
    batch = {"x_0": x_0, "is_target": torch.arange(len(x_0), device=device) % 2 == 0}
    loading = loading_seconds(bench)
    batch |= kept_laws(bench, x_0, generator)
    plain = DenoiserModule(bench.denoiser.trainable_copy()).to(device).train()
    rows = []
    for name, module in modules(bench):
        module.to(device).train()
        precision = resolve_precision(bench.params.machine.precision, module.width, bench.params.machine.accelerator)
        step = training_step(module, batch, precision)
        product = matrix_product(device, PRECISIONS[precision], settings.matrix)
        # Beside each of them, so that what else the machine does is in both.
        beside = {"nelbo": training_step(plain, batch, precision)} if name.startswith("tcsm") else {}
        found = paired({"step": step, "product": product, **beside}, settings.rounds, device, settings.seconds)
        times = found["step"]
        counted = flops(step)
        memory = peak_memory(step, device)
        rows.append(
            {
                "part": "training",
                "group": "training",
                "module": name,
                "batch": shape[0],
                "length": shape[1],
                "precision": precision,
                "seconds_per_step": times.median,
                "spread": times.spread,
                "rounds": len(times.seconds),
                "over_nelbo": times.over(found["nelbo"])[0] if beside else None,
                "tokens_per_second": math.prod(shape) / times.median,
                "gflop_per_step": counted / 1e9,
                "share_of_rate": share_of_rate(counted, times, settings.matrix, found["product"]),
                "loading_share": loading / times.median,
                "peak_mb": None if memory is None else memory / 2**20,
            }
        )
    return rows


def training_step(module: TrainedModule, batch: dict[str, Tensor], precision: str) -> Callable[[], None]:
    """Loss, gradient and optimiser step, as Lightning makes them."""
    optimiser = cast(Any, module.configure_optimizers())["optimizer"]
    kind = module.device.type

    def step() -> None:
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = module.loss(batch, module.generator(0))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def loading_seconds(bench: Bench) -> float:
    """Seconds that a batch of two domains takes to be read and padded, of texts of random lengths."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(max(1, bench.length // 4), bench.length + 1, _EXAMPLES)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = generator.integers(2, bench.vocab_size, int(offsets[-1])).astype(np.int32)
    data = TokenDataset.from_arrays(tokens, offsets, PAD)
    module = DomainDataModule(
        data,
        data,
        data,
        data,
        batch=max(2, bench.settings.train_batch),
        steps_per_epoch=_LOADED,
        seed=0,
        pad_index=PAD,
    )
    times = paired(
        {"epoch": lambda: [batch["x_0"] for batch in module.train_dataloader()]},
        bench.settings.rounds,
        torch.device("cpu"),
        bench.settings.seconds,
    )
    return times["epoch"].median / _LOADED
