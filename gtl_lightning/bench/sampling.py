"""Benchmarks of the sampler: which cases, what is measured of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from gtl_lightning.bench.reference import plain_sample
from gtl_lightning.bench.timing import Times, flops, growth, matrix_product, paired, peak_memory, share_of_rate
from gtl_lightning.core.blocks import Blocks
from gtl_lightning.core.counts import Pairs
from gtl_lightning.core.guidance import Guidance, SequenceRatio, TokenRatio
from gtl_lightning.core.sampling import sample
from gtl_lightning.fields import Network
from gtl_lightning.networks import (
    BackboneConfig,
    CountTokenRatio,
    DifferenceTokenRatio,
    FeatureTokenRatio,
    MaskedDenoiser,
    PositionNetwork,
    SequenceRatioNetwork,
    TokenRatioNetwork,
    seeded,
)
from gtl_lightning.workspace.params import Params

Row = dict[str, Any]
MASK, PAD = 1, 0
PLAIN = "plain"
"""Guidance of the rows of the plain reference."""
COUNTED = 1000
"""Texts whose pairs are counted."""


@dataclass(frozen=True)
class Case:
    """One way to sample. `guidance` is none, token, head, warm, counts, sequence or plain; `block` 0 is no blocks."""

    guidance: str = "none"
    batch: int = 1
    length: int = 1
    n_ratio: int = 1
    k: int = 1
    planner: str = "random"
    block: int = 0


class Bench:
    """Networks of random weights, and calls of the sampler with them.

    Args:
        params: sizes and cases.
        device: where to measure.
    """

    def __init__(self, params: Params, device: torch.device) -> None:
        self.params, self.settings, self.device = params, params.bench, device
        methods, networks = params.methods, params.networks
        self.sizes = {
            "denoiser": networks.denoiser,
            "planner": networks.planner,
            "reference": networks.reference,
            "classifier": networks.classifier,
            "token": methods.of("gtl").network,
            "sequence": methods.of("gtl-sequence-gkl").network,
        }
        with seeded(0):
            self.denoiser = MaskedDenoiser(self.backbone(self.sizes["denoiser"])).eval().to(device)
            own = TokenRatioNetwork(self.backbone(self.sizes["token"]))
            self.ratios = {
                "token": own.eval().to(device),
                "head": FeatureTokenRatio(self.denoiser, methods.of("gtl-head").rank).eval().to(device),
                "warm": DifferenceTokenRatio(self.denoiser).eval().to(device),
                "counts": self.of_counts().eval().to(device),
            }
            self.sequence = SequenceRatioNetwork(self.backbone(self.sizes["sequence"])).eval().to(device)
            self.planner = PositionNetwork(self.backbone(self.sizes["planner"])).eval().to(device)

    def of_counts(self) -> CountTokenRatio:
        """A ratio of counts of `COUNTED` texts: their tokens' ranks are log-uniform, as those of words about are."""
        v, reach = self.vocab_size, self.params.methods.of("gtl-counts").reach
        generator = torch.Generator().manual_seed(0)
        rank = float(v - 2) ** torch.rand(COUNTED, self.length, generator=generator, dtype=torch.double)
        texts, tables = rank.long() + 1, {}
        for apart in range(1, reach + 1):
            left, right = texts[:, :-apart].flatten(), texts[:, apart:].flatten()
            for place, beside, token in ((-apart, left, right), (apart, right, left)):
                pairs = Pairs.of(beside, token, v)
                tables[place] = pairs.keys, pairs.counts.log1p()
        size = sum(len(keys) for keys, _ in tables.values())
        return CountTokenRatio(v, MASK, PAD, reach, size).fill(torch.zeros(v), tables)

    def backbone(self, size: Network) -> BackboneConfig:
        """Configuration of a network of that size."""
        return BackboneConfig(
            vocab_size=self.vocab_size,
            length=max(*self.settings.lengths, self.length),
            mask_index=MASK,
            pad_index=PAD,
            **size.model_dump(),
        )

    @property
    def vocab_size(self) -> int:
        """Ids."""
        return self.settings.vocab_size or self.params.tokenizer.vocab_size

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' products while sampling, as the pipeline samples."""
        return torch.bfloat16 if self.params.machine.sampling_precision == "bf16-mixed" else torch.float32

    @property
    def length(self) -> int:
        """Tokens of a row in which the length is not varied."""
        return self.params.tokenizer.length

    def steps(self, case: Case) -> int:
        """Steps in a call: those of one whole block, or as many as are asked for and fit."""
        if case.block:
            return math.ceil(case.block / case.k)
        return max(1, min(self.settings.steps, case.length // case.k))

    def call(self, case: Case) -> Callable[[], Tensor]:
        """A call of the public sampler with a prompt that takes exactly `steps(case)` steps."""
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (case.batch, case.length)
        prompt = torch.randint(2, self.vocab_size, shape, generator=generator, device=self.device)
        masks = case.block or self.steps(case) * case.k
        # A block in the middle of the text, or masks spread over it.
        spread = torch.arange(masks, device=self.device) * (1 if case.block else case.length // masks)
        start = case.length // 2 // case.block * case.block if case.block else 0
        prompt[:, spread + start] = MASK
        if case.guidance == PLAIN:
            return lambda: plain_sample(
                self.denoiser,
                self.sequence,
                prompt=prompt,
                mask_index=MASK,
                n_ratio=case.n_ratio,
                gamma=1.0,
                generator=generator,
            )

        def call() -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                return sample(
                    self.denoiser,
                    mask_index=MASK,
                    prompt=prompt,
                    guidance=self.guidance(case),
                    planner=self.planner if case.planner == "learned" else case.planner,
                    positions_per_step=case.k,
                    blocks=Blocks(case.block) if case.block else None,
                    generator=generator,
                )

        return call

    def guidance(self, case: Case) -> Guidance | None:
        """The guidance that a case names."""
        if case.guidance == "none":
            return None
        if case.guidance == "sequence":
            return Guidance(SequenceRatio(self.sequence), n_ratio=case.n_ratio)
        return Guidance(TokenRatio(self.ratios[case.guidance]), n_ratio=case.n_ratio)

    def cases(self) -> Iterator[tuple[str, list[Case]]]:
        """(group: what varies, cases measured against one another)."""
        bench = self.settings
        base = Case(batch=bench.batches[0], length=self.length, n_ratio=min(bench.n_ratios[-1], self.vocab_size))
        token = replace(base, guidance="token")
        for batch in bench.batches:
            yield "batch", [replace(base, batch=batch), replace(token, batch=batch)]
        for length in bench.lengths:
            if length != base.length:
                yield "length", [replace(base, length=length), replace(token, length=length)]
        asked = [replace(token, n_ratio=n) for n in bench.n_ratios if n <= self.vocab_size]
        yield "n_ratio", [base, *asked]
        for k in bench.positions_per_step:
            yield "k", [replace(base, k=k), replace(token, k=k)]
        # A certainty planner projects all that is masked: half of the text, as on average, revealed in one step.
        half = replace(base, k=max(1, base.length // 2))
        yield "planner", [replace(half, planner=p) for p in ("random", "confidence", "margin", "entropy", "learned")]
        for block in bench.blocks:
            yield "block", [base, replace(base, block=block), replace(token, block=block)]
        yield "guidance", [base, *(replace(base, guidance=name) for name in ("token", "head", "warm", "counts"))]
        by_candidate = replace(base, n_ratio=min(bench.candidates, self.vocab_size))
        yield (
            "candidates",
            [
                by_candidate,
                *(replace(by_candidate, guidance=name) for name in ("token", "sequence", PLAIN)),
            ],
        )

    def rows(self, group: str, cases: list[Case]) -> list[Row]:
        """Time a group's cases against one another, and against a matrix product."""
        size = self.settings.matrix
        runs: dict[str, Callable[[], Tensor]] = {str(index): self.call(case) for index, case in enumerate(cases)}
        runs["product"] = matrix_product(self.device, self.dtype, size)
        *times, product = paired(runs, self.settings.rounds, self.device, self.settings.seconds).values()
        rows = []
        for case, measured in zip(cases, times, strict=True):
            steps = self.steps(case)
            one = replace(case, batch=1)
            per_step = flops(self.call(one)) / steps
            seconds = measured.median / steps
            twin = self._unguided(case, cases, times)
            ratio = (None, None, None) if twin is None else measured.over(twin)
            on_cpu = self.device.type == "cpu"
            memory = peak_memory(self.call(case), self.device)
            rows.append(
                {
                    "part": "sampling",
                    "group": group,
                    **asdict(case),
                    "seconds_per_step": seconds,
                    "spread": measured.spread,
                    "rounds": len(measured.seconds),
                    "guided_over_unguided": ratio[0],
                    "guided_over_unguided_low": ratio[1],
                    "guided_over_unguided_high": ratio[2],
                    "processor_seconds_per_step": fmean(measured.processor) / steps,
                    "processor_over_unguided": measured.processor_over(twin) if twin and on_cpu else None,
                    "gflop_per_step": per_step / 1e9,
                    "gflop_per_token": per_step / case.k / 1e9,
                    "share_of_rate": share_of_rate(per_step * steps * case.batch, measured, size, product),
                    "products_per_step": measured.over(product)[0] / steps,
                    "tokens_per_second": case.batch * case.k / seconds,
                    "samples_per_second": case.batch * case.k / seconds / case.length,
                    "peak_mb": None if memory is None else memory / 2**20,
                }
            )
        return rows

    def counted(self) -> Row:
        """The plain reference at the full n_ratio: counted only, as its operations are linear in the candidates."""
        base = Case(guidance=PLAIN, length=self.length)
        one, two = (flops(self.call(replace(base, n_ratio=n))) / self.steps(base) for n in (1, 2))
        n_ratio = min(self.settings.n_ratios[-1], self.vocab_size)
        total = (one + (n_ratio - 1) * (two - one)) / 1e9
        row = {**asdict(replace(base, n_ratio=n_ratio)), "gflop_per_step": total, "gflop_per_token": total}
        return {"part": "sampling", "group": "counted", **row}

    @staticmethod
    def _unguided(case: Case, cases: list[Case], times: list[Times]) -> Times | None:
        """Times of the unguided case beside a guided one; n_ratio means nothing to it."""
        if case.guidance == "none":
            return None
        twin = replace(case, guidance="none")
        return next((t for c, t in zip(cases, times, strict=True) if replace(c, n_ratio=case.n_ratio) == twin), None)


def growth_rows(rows: list[Row]) -> list[Row]:
    """Fitted exponents of time and of counted operations over batch and over length, unguided and guided.

    Time is taken in units of a matrix product of the same round: groups are timed one after another, and the machine
    may have become slower or faster in between.
    """
    found = []
    rows = [row for row in rows if row["part"] == "sampling"]
    for axis in ("batch", "length"):
        for guidance in ("none", "token"):
            groups = {"batch"} if axis == "batch" else {"batch", "length"}
            chosen = [r for r in rows if r["group"] in groups and r["guidance"] == guidance and "spread" in r]
            if axis == "length":
                chosen = [row for row in chosen if row["batch"] == min(r["batch"] for r in chosen)]
            xs = [row[axis] for row in chosen]
            found.append(
                {
                    "part": "growth",
                    "group": "growth",
                    "axis": axis,
                    "guidance": guidance,
                    "exponent_seconds": growth(xs, [row["products_per_step"] for row in chosen]),
                    "exponent_flops": growth(
                        xs, [row["gflop_per_step"] * (row["batch"] if axis == "batch" else 1) for row in chosen]
                    ),
                }
            )
    return found
